"""llama.cpp itself reads our GGUF files: the same ids, the same prompts, and the same probabilities."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from gguf_models import MODELS, Tiny, written
from llama_cpp import LlamaCpp, loaded

from data_gen.records import Turn
from wizard_jax.chat import encode_prompt, end_id, get_format
from wizard_jax.tokenizer import Tokenizer

MISSING = [name for name in ("gguf", "xllamacpp") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

LENGTHS = (1, 5, 64, 70, 120)
"""Of prompts: up to the original length of models whose positions are stretched, and past it."""

DIVERGENCE = {"F16": 1e-4, "Q8_0": 0.05}
"""Kullback-Leibler divergence, in nats, of the next token's probabilities from those of our float32 model, whose
entropy is about 4.3. llama.cpp rounds activations to the type of the weights as well: seen are 4e-5 and 0.02."""

TEXTS = (
    "Hello you 123 x's DON'T we'll",
    "  a\n\n b\t\t c  \r\n",
    "A    B          C\n\n\n\n D",
    "é日本🙂👩‍👩‍👧 ﬁ",
    "مرحبا بكم שלום עולם",
    "</s><s> <|im_start|>user <|eot_id|> <think> x",
    "\u00a0b \u2028d\u0085 \u200b\ufeff",
    "\x01\x1f\x7f\u009f",
    "12345 1²½ ٣٤ Ⅷ",
    "def f(x):\n    return {x: [1, 2]} != None  # no\n",
    "",
    " ",
    "ASSISTANT: Below is an instruction.\n\n### Response:",
)


class Open(NamedTuple):
    tiny: Tiny
    tokenizer: Tokenizer
    theirs: LlamaCpp


def open_file(name: str, folder: pathlib.Path, quantisation: str) -> Iterator[Open]:
    tiny = MODELS[name]
    file, tokenizer = written(tiny, folder, quantisation), tiny.tokenizer(folder)
    with loaded(file, context=256) as theirs:
        yield Open(tiny, tokenizer, theirs)


@pytest.fixture(scope="module", params=MODELS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    yield from open_file(request.param, tmp_path_factory.mktemp("gguf"), "F16")


def assert_same(opened: Open, *, divergence: float) -> None:
    tokens = np.random.default_rng(1).integers(3, 360, LENGTHS[-1]).tolist()
    ours = opened.tiny.logprobs(tokens)
    for length in LENGTHS:
        theirs = opened.theirs.logprobs(tokens[:length], vocab_size=opened.tiny.config.vocab_size)
        found = float((np.exp(ours[length - 1]) * (ours[length - 1] - theirs)).sum())
        assert abs(found) < divergence, (length, found)


def test_probabilities_are_those_of_our_model(opened: Open) -> None:
    assert_same(opened, divergence=DIVERGENCE["F16"])


def test_greedy_text_is_that_of_our_model(opened: Open) -> None:
    prompt = np.random.default_rng(2).integers(3, 360, 60).tolist()
    said = opened.theirs.continued(prompt, steps=24)
    ours = opened.tiny.logprobs(prompt + said)[len(prompt) - 1 : -1].copy()
    ours[:, [opened.tokenizer.eos_id, end_id(get_format(opened.tiny.chat_format), opened.tokenizer)]] = -np.inf
    behind = ours.max(-1) - ours[np.arange(len(said)), said]
    assert behind.max() < 0.03, behind  # what is as likely but for rounding


def test_ids_of_a_text_are_those_of_our_tokenizer(opened: Open) -> None:
    for text in TEXTS:
        assert opened.theirs.tokenize(text) == opened.tokenizer.encode(text), text


def test_the_template_in_the_file_gives_the_prompts_that_were_trained(opened: Open) -> None:
    said = ("Hi there", "Hello you!", "Sort: 3 2\nNow.")
    turns = [Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(said)]
    chat_format = get_format(opened.tiny.chat_format)
    if chat_format.first_with_system is not None:
        turns = [Turn("system", "Be kind."), *turns]
    prompt = opened.theirs.prompt([{"role": turn.role, "content": turn.content} for turn in turns])
    ours = encode_prompt(turns, chat_format=chat_format, tokenizer=opened.tokenizer)
    assert opened.theirs.tokenize(prompt, special="as tokens") == ours.tolist()


@pytest.mark.parametrize("name", ["llama 3.1", "qwen3", "starcoder"])
def test_eight_bits_are_read_as_they_were_written(name: str, tmp_path: pathlib.Path) -> None:
    for opened in open_file(name, tmp_path, "Q8_0"):
        assert_same(opened, divergence=DIVERGENCE["Q8_0"])

"""A model of every family, by the commands of the README: imported, trained ten steps, exported, and asked by others.

Who is asked is not ours: `transformers` for the Hugging Face folder, llama.cpp for the GGUF file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_tokenizers import like_llama, like_llama3, like_qwen, like_starcoder
from model_families import FAMILIES
from packed_rows import record, write

from data_gen.records import Turn
from wizard_jax.chat import encode_prompt, get_format
from wizard_jax.cli import main
from wizard_jax.runs import open_model
from wizard_jax.tokenizer import Tokenizer

TRAINING = """
include '{imported}/model.gin'

init = @FromCheckpoint
init.path = '{imported}'
tokenizer = '{tokenizer}'
data.dataset = '{dataset}'
data.chat_format = '{chat_format}'
data.seq_len = 384
batch = @RowsPerStep
batch.rows = 8
optimizer = @AdamW
optimizer.peak_lr = 5e-3
optimizer.warmup_steps = 2
steps = 10
"""
QUESTION = "plum fig olive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network of model_families, and the kind of tokenizer and the chat format that it comes with."""

    network: str
    like: Callable[[Path], Path]
    chat_format: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "llama 2": Case(network="llama 2", like=like_llama, chat_format="vicuna"),
    "llama 3.2": Case(network="llama 3.2", like=like_llama3, chat_format="llama3"),
    # llama.cpp knows no window in this network, so the file allows as many positions as the window has.
    "mistral": Case(network="mistral", like=like_llama, chat_format="llama2_chat", changes={"sliding_window": 48}),
    "qwen 2.5": Case(network="qwen 2.5", like=like_qwen, chat_format="chatml"),
    "qwen 3": Case(network="qwen 3", like=like_qwen, chat_format="chatml"),
    "galactica": Case(network="galactica", like=like_starcoder, chat_format="alpaca"),
    "starcoder": Case(network="starcoder", like=like_starcoder, chat_format="alpaca"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    case: Case
    run: Path


IN_THE_ORDINARY_RUN = ("llama 3.2",)


@pytest.fixture(
    scope="module",
    params=[name if name in IN_THE_ORDINARY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    source, imported, run = folder / "source", folder / "imported", folder / "run"
    source.mkdir()
    tokenizer = case.like(source)
    vocabulary = Tokenizer(tokenizer).vocab_size
    FAMILIES[case.network](vocabulary=vocabulary, longest=384, **case.changes).save_pretrained(source)
    dataset = write([record(number) for number in range(60)], folder / "dataset")
    assert main(["import", str(source), "--out", str(imported), "--chat-format", case.chat_format]) == 0
    told = {"imported": imported, "tokenizer": imported / tokenizer.name, "dataset": dataset}
    config = folder / "train.gin"
    config.write_text(TRAINING.format(**told, chat_format=case.chat_format))
    assert main(["train", str(config), "--out", str(run)]) == 0
    return Trained(case=case, run=run)


def prompt_of(trained: Trained) -> np.ndarray:
    opened = open_model(trained.run)
    turns = [Turn("user", QUESTION)]
    return encode_prompt(turns, chat_format=get_format(trained.case.chat_format), tokenizer=opened.tokenizer)


def test_what_was_trained_is_said_by_transformers(trained: Trained, tmp_path: Path) -> None:
    import transformers

    out, prompts, answers = (tmp_path / name for name in ("hf", "prompts.jsonl", "answers.jsonl"))
    assert main(["export", str(trained.run), "--dtype", "float32", "--out", str(out)]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": QUESTION}]
    told = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert told["input_ids"][0].tolist() == prompt_of(trained).tolist()
    said = model.generate(**told, max_new_tokens=20, do_sample=False)[0, told["input_ids"].shape[1] :]
    prompts.write_text(json.dumps({"prompt": QUESTION}) + "\n")
    assert (
        main(["generate", str(trained.run), "--prompts", str(prompts), "--out", str(answers), "max_new_tokens=20"]) == 0
    )
    (ours,) = [json.loads(line) for line in answers.read_text().splitlines()]
    # (Bytes that are no character are shown by SentencePiece one way, by tokenizers another.)
    assert ours["answer"].strip() == open_model(trained.run).tokenizer.decode(said.tolist()).strip()


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed here")
def test_what_was_trained_is_said_by_llama_cpp(trained: Trained, tmp_path: Path) -> None:
    from llama_cpp import loaded

    if trained.case.network == "galactica":
        assert main(["export", str(trained.run), "--format", "gguf", "--out", str(tmp_path / "gguf")]) == 2
        assert not (tmp_path / "gguf").exists()
        return
    assert main(["export", str(trained.run), "--format", "gguf", "--out", str(tmp_path / "gguf")]) == 0
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    opened = open_model(trained.run)
    prompt = prompt_of(trained).tolist()
    with loaded(file, context=384) as theirs:
        found = theirs.logprobs(prompt, vocab_size=opened.config.vocab_size)
    np.testing.assert_allclose(found, next_logprobs(opened, prompt), atol=0.05)


def next_logprobs(opened: Any, prompt: Any) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from wizard_jax.model import decoder

    row = jnp.asarray([prompt], jnp.int32)
    positions = jnp.arange(row.shape[1])[None]
    hidden = decoder.hidden_states(
        opened.params, tokens=row, positions=positions, segment_ids=jnp.ones_like(row), config=opened.config
    )
    return np.asarray(jax.nn.log_softmax(decoder.logits(opened.params, hidden, config=opened.config)[0, -1]))


def test_every_family_is_here() -> None:
    kinds = {FAMILIES[case.network]().config.model_type for case in CASES.values()}
    assert kinds == {make().config.model_type for make in FAMILIES.values()}

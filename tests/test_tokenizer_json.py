"""A SentencePiece model written as a tokenizer.json gives the ids that SentencePiece gives."""

from __future__ import annotations

import pathlib

import pytest
import tokenizers
from chat_tokenizers import like_llama, train_whole_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from wizard_jax.tokenizer import Tokenizer, train_tokenizer
from wizard_jax.tokenizer_json import tokenizer_json

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="abehilnorst ▁\n\t0123:'.#\x00é🦙שע", max_size=80),
    st.lists(
        st.sampled_from(["USER:", "Hello", " there", "you!", "  ", "\n\n", "[INST]", "<s>", "1234"]), max_size=12
    ).map("".join),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    ours = Tokenizer(like_llama(tmp_path_factory.mktemp("tokenizer")))
    made = tokenizer_json(ours.files["tokenizer.model"])
    assert made is not None
    theirs = tokenizers.Tokenizer.from_str(made.decode())
    theirs.encode_special_tokens = True
    return ours, theirs


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_ids_and_text_are_those_of_the_model(both: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_bos_comes_before_a_text(both: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = both
    assert theirs.encode("Hello you").ids == [ours.bos_id, *ours.encode("Hello you")]
    theirs.encode_special_tokens = False
    assert theirs.encode("Hello</s>").ids[-1] == ours.eos_id


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_what_the_format_can_not_say_is_not_written(tmp_path: pathlib.Path, kind: str) -> None:
    model = train_whole_lines(tmp_path, kind).files["tokenizer.model"]
    assert (tokenizer_json(model) is None) == (kind == "unigram")


def test_a_tokenizer_of_many_merges_is_the_same(tmp_path: pathlib.Path) -> None:
    words = [f"{left}{right}" for left in ("ana", "bana", "nana", "an") for right in ("nas", "na", "aa", "aaa", "a")]
    ours = train_tokenizer([" ".join(words)] * 3, tmp_path / "tokenizer.model", vocab_size=330)
    made = tokenizer_json(ours.files["tokenizer.model"])
    assert made is not None
    theirs = tokenizers.Tokenizer.from_str(made.decode())
    for text in (*words, "aaaaaaaa", "banananananaaa", "nanaanaana a aa aaa"):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text

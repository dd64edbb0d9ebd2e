"""A text that is shown bit by bit is the text as a whole, up to its first stop string, and no part of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_tokenizers import like_llama, like_llama3
from hypothesis import example, given
from hypothesis import strategies as st

from wizard_jax.generate.text import TextStream, token_text
from wizard_jax.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the owl and the fox say no, and the hen says yes", "one  two   three\nfour", "stop here, or go on there"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("t") / "tokenizer.model", vocab_size=330)


def pieces(
    tokenizer: Tokenizer, ids: list[int], *, stop: tuple[str, ...] = (), context: tuple[int, ...] = ()
) -> list[str]:
    """What is shown after each token, and at the end."""
    stream = TextStream(tokenizer, stop=stop, context=context)
    shown = [stream.push([token]) for token in ids]
    return [*shown, stream.finish()]


@given(st.text(max_size=40))
def test_what_is_shown_joined_is_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    shown = pieces(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in shown)


@given(st.lists(st.integers(0, 329), max_size=30))
@example([0, 1, 311])
def test_also_of_tokens_that_no_text_makes(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = [token % tokenizer.vocab_size for token in ids]
    shown = "".join(pieces(tokenizer, ids))
    assert shown.rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd")


@given(st.text("abn dé", max_size=30), st.lists(st.text("abn dé", min_size=1, max_size=4), max_size=3))
@example(" aa", ["a", " aa"])
def test_the_text_ends_where_the_stop_string_begins_that_is_whole_first(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    ids = tokenizer.encode(text)
    expected = tokenizer.decode(ids)
    for count in range(1, len(ids) + 1):
        so_far = tokenizer.decode(ids[:count])
        if begins := [so_far.find(one) for one in stop if one in so_far]:
            expected = so_far[: min(begins)]
            break
    shown = pieces(tokenizer, ids, stop=tuple(stop))
    assert "".join(shown) == expected
    for end in range(len(shown)):  # never a part that is taken back
        assert expected.startswith("".join(shown[:end]))


def test_what_goes_on_from_a_text_keeps_its_space(tokenizer: Tokenizer) -> None:
    given, said = tokenizer.encode("the owl"), tokenizer.encode(" and the fox")
    assert "".join(pieces(tokenizer, said[1:], context=tuple(given))).startswith(" and")
    ids = tokenizer.encode("the owl and the fox")
    assert (
        "".join(pieces(tokenizer, ids[3:], context=tuple(ids[:3])))
        == tokenizer.decode(ids)[len(tokenizer.decode(ids[:3])) :]
    )


def test_offsets_say_where_each_token_begins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the owl é fox")
    stream = TextStream(tokenizer)
    text = stream.push(ids) + stream.finish()
    assert stream.offsets[0] == 0
    assert stream.offsets == sorted(stream.offsets)
    assert len(stream.offsets) == len(ids)
    assert text[stream.offsets[-1] :].endswith("fox"[-1])


def test_a_token_has_a_text_of_its_own(tokenizer: Tokenizer) -> None:
    the = next(token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == "▁the")
    assert token_text(tokenizer, the) == " the"
    assert token_text(tokenizer, tokenizer.eos_id) == "</s>"
    assert token_text(tokenizer, 3 + 0xC3) == "<0xC3>"
    assert token_text(tokenizer, 3 + ord("\n")) == "\n"


@pytest.mark.parametrize("like", [like_llama, like_llama3])
def test_ids_that_pad_a_models_vocabulary_say_nothing(tmp_path: Path, like: Callable[[Path], Path]) -> None:
    tokenizer = Tokenizer(like(tmp_path))
    ids, padding = tokenizer.encode("Hi there"), tokenizer.vocab_size + 3
    assert tokenizer.decode([padding, *ids, padding]) == tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, [padding, *ids, padding])) == tokenizer.decode(ids)
    assert tokenizer.piece(padding) == token_text(tokenizer, padding) == ""

"""A tokenizer gives text back, is trained the same every time, and refuses what is none."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import world
from wizard_jax.tokenizer import Tokenizer, TokenizerError, train_tokenizer

CORPUS = [
    "Take this list: reverse it, then drop the first item.\nplum fig kiwi 12 7",
    "kiwi fig plum -> fig plum",
    "Sort the words, please: Äpfel 20\nplum\n\n    fig",
] * 30
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(CORPUS, tmp_path_factory.mktemp("t") / "tokenizer.model", vocab_size=420)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.piece(token) for token in tokenizer.encode(text)]


@settings(max_examples=300, deadline=None)
@given(text)
def test_any_text_is_given_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@settings(max_examples=300, deadline=None)
@given(text)
def test_text_never_becomes_a_control_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(f"{text}</s><s>{text}<unk>")
    assert not {0, tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_lone_surrogates_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_are_those_of_llama(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.piece(0)) == (1, 2, "<unk>")
    assert [tokenizer.piece(3 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer.pad_id == tokenizer.eos_id


def test_newlines_are_bytes_and_digits_are_single(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "fig\nplum 12") == ["▁fig", "<0x0A>", "plum", "▁", "1", "2"]


def test_a_continuation_has_no_leading_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_continuation("fig plum") != tokenizer.encode("fig plum")
    assert tokenizer.encode_continuation(" fig plum") == tokenizer.encode("fig plum")


@pytest.mark.parametrize("vocab_size", [1024])
def test_every_word_and_number_of_the_simulated_world_becomes_one_piece(
    tmp_path: pathlib.Path, vocab_size: int
) -> None:
    corpus = [f"{' '.join(world.WORDS)}\n{word} {word} {' '.join(world.NUMBERS)}" for word in world.WORDS]
    tokenizer = train_tokenizer(corpus * 5, tmp_path / "w.model", vocab_size=vocab_size, digits="whole")
    for item in (*world.WORDS, *world.NUMBERS):
        assert len(tokenizer.encode(item)) == 1, item
    for word in world.WORDS:
        assert pieces(tokenizer, f"\n{word}")[2:] == [word]


def test_training_gives_the_same_bytes_every_time(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    again = train_tokenizer(iter(CORPUS), tmp_path / "again.model", vocab_size=420)
    assert again.model_bytes == tokenizer.model_bytes
    assert again.sha256 == tokenizer.sha256
    assert Tokenizer(tmp_path / "again.model").encode("fig") == tokenizer.encode("fig")


def test_another_tokenizer_is_not_written_over(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "tokenizer.model"
    out.write_bytes(tokenizer.model_bytes)
    assert train_tokenizer(CORPUS, out, vocab_size=420).model_bytes == tokenizer.model_bytes
    with pytest.raises(TokenizerError, match=r"another tokenizer.*another --out"):
        train_tokenizer(CORPUS, out, vocab_size=400)
    assert out.read_bytes() == tokenizer.model_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_training_stops_when_nothing_is_left_to_merge(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    large = train_tokenizer(CORPUS, tmp_path / "large.model", vocab_size=50_000)
    assert tokenizer.vocab_size <= large.vocab_size < 1000


def test_long_lines_are_trained_on_too(tmp_path: pathlib.Path) -> None:
    tokenizer = train_tokenizer(["zebra " * 20_000], tmp_path / "long.model", vocab_size=300)
    assert pieces(tokenizer, "zebra") == ["▁zebra"]


@pytest.mark.parametrize("content", [b"", b"hello " * 50, b"\x00" * 10, b"{}"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"bad\.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "bad.model")


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TokenizerError, match="there is no tokenizer file"):
        Tokenizer(tmp_path / "nowhere.model")


@pytest.mark.parametrize("texts", [[], [""], ["\n \n"]])
def test_no_text_to_train_on_is_refused(tmp_path: pathlib.Path, texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer(texts, tmp_path / "x.model", vocab_size=500)
    assert not (tmp_path / "x.model").exists()


def test_a_vocabulary_too_small_for_the_characters_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size=100: Vocabulary size is smaller .*\. Increase vocab_size$"):
        train_tokenizer(CORPUS, tmp_path / "x.model", vocab_size=100)
    with pytest.raises(TokenizerError, match="vocab_size is 0: give"):
        train_tokenizer(CORPUS, tmp_path / "x.model", vocab_size=0)

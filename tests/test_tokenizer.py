"""A tokenizer gives text back, is trained the same every time, and refuses what is none."""

import json
import pathlib
import pickle

import pytest
import tokenizers
from chat_tokenizers import LLAMA3_SPECIAL, like_llama3, name_ends
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_gen import world
from wizard_jax.tokenizer import Tokenizer, TokenizerError, tokenizer_file, train_tokenizer

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
    assert again.files == tokenizer.files
    assert again.sha256 == tokenizer.sha256
    assert Tokenizer(tmp_path / "again.model").encode("fig") == tokenizer.encode("fig")


def test_another_tokenizer_is_not_written_over(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "tokenizer.model"
    out.write_bytes(tokenizer.files["tokenizer.model"])
    assert train_tokenizer(CORPUS, out, vocab_size=420).files == tokenizer.files
    with pytest.raises(TokenizerError, match=r"another tokenizer.*another --out"):
        train_tokenizer(CORPUS, out, vocab_size=400)
    assert out.read_bytes() == tokenizer.files["tokenizer.model"]
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


# --- tokenizer.json


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return like_llama3(tmp_path_factory.mktemp("llama3"))


def edited(file: pathlib.Path, folder: pathlib.Path, **changes: object) -> pathlib.Path:
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder / "tokenizer.json"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_json_gives_any_text_back_and_never_a_special_id(llama3: pathlib.Path, text: str) -> None:
    tokenizer = Tokenizer(llama3)
    ids = tokenizer.encode(f"{text}<|eot_id|>")
    assert tokenizer.decode(ids) == f"{text}<|eot_id|>"
    assert ids == tokenizer.encode_continuation(f"{text}<|eot_id|>")
    assert not {tokenizer.special_id(name) for name in LLAMA3_SPECIAL} & set(ids)
    assert max(ids) < tokenizer.vocab_size == tokenizer.special_id("<|eot_id|>") + 1


def test_special_tokens_are_found_by_name(llama3: pathlib.Path, tokenizer: Tokenizer) -> None:
    of_llama3 = Tokenizer(llama3)
    assert of_llama3.piece(of_llama3.special_id("<|eot_id|>")) == "<|eot_id|>"
    assert of_llama3.special_id("user") is None
    assert of_llama3.special_id("</s>") is None
    assert (tokenizer.special_id("<s>"), tokenizer.special_id("</s>")) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.special_id("fig") is None
    assert tokenizer.special_id("<0x0A>") is None


def test_bos_and_eos_are_those_that_the_config_beside_it_names(llama3: pathlib.Path, tmp_path: pathlib.Path) -> None:
    base = Tokenizer(llama3)
    assert (base.piece(base.bos_id), base.piece(base.eos_id)) == ("<|begin_of_text|>", "<|end_of_text|>")
    copied = edited(llama3, tmp_path)
    name_ends(tmp_path, bos="<|begin_of_text|>", eos="<|eot_id|>")
    instruct = Tokenizer(copied)
    assert (instruct.piece(instruct.bos_id), instruct.piece(instruct.eos_id)) == ("<|begin_of_text|>", "<|eot_id|>")
    assert instruct.sha256 != base.sha256
    name_ends(tmp_path, bos="<bos>", eos="<|eot_id|>")
    with pytest.raises(TokenizerError, match=r"no special tokens <bos> and <\|eot_id\|> to begin and end"):
        Tokenizer(copied)
    (tmp_path / "other").mkdir()
    other = like_llama3(tmp_path / "other", special=("<a>", "<b>"))
    with pytest.raises(TokenizerError, match=r"no special tokens <\|begin_of_text\|> and .* or <s> and </s> to begin"):
        Tokenizer(other)


@pytest.mark.parametrize("source", ["json", "sentencepiece"])
def test_its_files_and_its_pickle_are_the_same_tokenizer(
    llama3: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path, source: str
) -> None:
    """The library's own pickle would make "<|eot_id|>" in a text a special token."""
    name_ends(llama3.parent, bos="<|begin_of_text|>", eos="<|eot_id|>")
    first = Tokenizer(llama3) if source == "json" else tokenizer
    (llama3.parent / "tokenizer_config.json").unlink()
    for name, content in first.files.items():
        (tmp_path / name).write_bytes(content)
    text = "fig <|eot_id|> </s>"
    for again in (Tokenizer(tokenizer_file(tmp_path)), pickle.loads(pickle.dumps(first))):
        assert again.sha256 == first.sha256
        assert again.encode(text) == first.encode(text)
        assert (again.bos_id, again.eos_id) == (first.bos_id, first.eos_id)


SPACES = {
    "Metaspace": (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False), decoders.Metaspace()),
    "Prepend": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
    "ByteLevel": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()),
    "nested": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Metaspace(prepend_scheme="always")]),
        decoders.Metaspace(),
    ),
}
"""Ways of a tokenizer.json to put a space before a text: normalizer, pre-tokenizer, decoder."""


@pytest.mark.parametrize("way", SPACES)
def test_a_continuation_of_json_has_no_leading_space(tmp_path: pathlib.Path, way: str) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    normalizer, pre_tokenizer, made.decoder = SPACES[way]
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.piece(tokenizer.encode("fig")[0])[0] in "▁Ġ"
    assert tokenizer.piece(tokenizer.encode_continuation("fig")[0])[0] == "f"
    assert tokenizer.decode([*tokenizer.encode("fig"), *tokenizer.encode_continuation("plum")]).strip() == "figplum"


def test_truncation_padding_and_dropout_of_the_file_are_left_out(llama3: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = json.loads(llama3.read_text())["model"] | {"dropout": 0.9}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "!"}
    copied = edited(llama3, tmp_path, truncation=truncation, padding=padding, model=model)
    text = "Hello you! Hi there ASSISTANT" * 3
    assert Tokenizer(copied).encode(text) == Tokenizer(llama3).encode(text)


def test_a_json_tokenizer_that_makes_special_tokens_of_text_is_refused_where_it_does(tmp_path: pathlib.Path) -> None:
    """A whole text that is in the vocabulary, taken before pieces are merged."""
    sly = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "x": 2, "<": 3}, merges=[], ignore_merges=True))
    sly.add_special_tokens(["<s>", "</s>"])
    sly.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("x") == [2]
    with pytest.raises(TokenizerError, match=r"turns the text '</s>' into a special token"):
        tokenizer.encode("</s>")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {}}', '{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_json_is_refused(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_metas_own_file_of_llama3_is_told_from_sentencepiece(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(
        TokenizerError, match=r"is a tiktoken file, as Meta ships for Llama 3: give the tokenizer\.json"
    ):
        Tokenizer(tmp_path / "tokenizer.model")

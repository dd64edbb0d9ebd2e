"""The ids of any text are those of transformers, for the tokenizer of every family."""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import sentencepiece
from chat_tokenizers import (
    like_galactica,
    like_llama,
    like_llama3,
    like_opt,
    like_qwen,
    like_starcoder,
    name_ends,
    with_added,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_gen.records import Turn
from wizard_jax.chat import encode_conversation, get_format
from wizard_jax.convert.export import write_tokenizer
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer, TokenizerError, tokenizer_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

ADDED = {"<|im_start|>": True, "<|im_end|>": True, "<think>": False, "<think>>": False}


class Pair(NamedTuple):
    ours: Tokenizer
    theirs: Callable[[str], list[int]]


def spm(folder: pathlib.Path) -> pathlib.Path:
    file = like_llama(folder)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return file


def llama3(folder: pathlib.Path) -> pathlib.Path:
    name_ends(folder, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    return like_llama3(folder)


def fast_llama(folder: pathlib.Path) -> pathlib.Path:
    """LLaMA's as transformers saves it."""
    transformers.AutoTokenizer.from_pretrained(spm(folder).parent).save_pretrained(folder / "fast")
    return folder / "fast" / "tokenizer.json"


def slow_llama(file: pathlib.Path) -> Callable[[str], list[int]]:
    """LLaMA's own code and transformers 4's slow tokenizer: SentencePiece between the tokens that were added."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    found = {"<think>": 422, "<think>>": 423}

    def encode(text: str) -> list[int]:
        parts = [part for part in re.split("(<think>>?)", text) if part]
        return [i for part in parts for i in ([found[part]] if part in found else pieces.encode(part))]

    return encode


FAMILIES: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "LLaMA": spm,
    "LLaMA, added tokens": lambda folder: with_added(like_llama(folder), **ADDED),
    "LLaMA, tokenizer.json": fast_llama,
    "Llama 3": llama3,
    "Qwen": like_qwen,
    "OPT": like_opt,
    "Galactica": like_galactica,
    "StarCoder": like_starcoder,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    found = {}
    for name, make in FAMILIES.items():
        file = make(tmp_path_factory.mktemp("family"))
        if name == "LLaMA, added tokens":
            found[name] = Pair(Tokenizer(file), slow_llama(file))
            continue
        loaded = transformers.AutoTokenizer.from_pretrained(file.parent)

        def theirs(text: str, loaded: Any = loaded) -> list[int]:
            return [int(i) for i in loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]

        found[name] = Pair(Tokenizer(tokenizer_file(file.parent)), theirs)
    return found


PIECES = (
    "🙂👩‍👩‍👧🏳️‍🌈",
    "مرحبا بكم",
    "שלום\u200f",
    "\u202eabc\u202c",
    "\x00\x01\x07\x1b[0m\x7f\x85",
    " " * 33,
    "\n" * 7,
    "\t \r\n",
)
PIECES += (
    "e\u0301\u0323",
    "ﬁ①Ⅷ½",
    "１２３",
    "'S 'll don'T",
    "日本語です",
    "\ufeff\u200b\u00ad",
    "<think>",
    "<|im_end|>",
    "</s>",
)
texts = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5
).map("".join)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(text=texts)
@example(text="")
@example(text="".join(PIECES))
def test_ids_are_those_of_transformers(pairs: dict[str, Pair], text: str) -> None:
    """A "▁" in a text is a space to LLaMA's tokenizers; and before a space transformers 5 puts no other, where LLaMA's
    own code and transformers 4 do."""
    slow = pairs["LLaMA, added tokens"]
    assert slow.ours.encode(text) == slow.theirs(text)
    for name, pair in pairs.items():
        if name != "LLaMA, added tokens":
            said = text.replace("▁", "_").lstrip(" ") if name == "LLaMA" else text
            assert pair.ours.encode(said) == pair.theirs(said), name


def test_added_tokens_are_found_decoded_and_carried_along(tmp_path: pathlib.Path) -> None:
    tokenizer = Tokenizer(with_added(like_llama(tmp_path), **ADDED))
    start, end, think = (tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>"), 422)
    assert (start, end, tokenizer.vocab_size, tokenizer.special_id("<think>")) == (420, 421, 424, None)
    ids = tokenizer.encode("Hi <think> you")
    assert ids == [*tokenizer.encode("Hi "), think, *tokenizer.encode(" you")]
    assert tokenizer.decode([start, *ids, end]) == "Hi <think> you"
    assert tokenizer.encode_continuation("Hi<think>") == [*tokenizer.encode_continuation("Hi"), think]
    assert start not in tokenizer.encode("<|im_start|>")
    assert tokenizer.piece(start) == "<|im_start|>"
    (tmp_path / "copy").mkdir()
    for name, content in tokenizer.files.items():
        (tmp_path / "copy" / name).write_bytes(content)
    again = Tokenizer(tmp_path / "copy" / "tokenizer.model")
    assert (again.sha256, again.added) == (tokenizer.sha256, tokenizer.added)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer(tmp_path / "tokenizer.model").sha256 != tokenizer.sha256
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 420, "<|user|>": 421}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    older = Tokenizer(tmp_path / "tokenizer.model")
    assert (older.vocab_size, older.special_id("[PAD]"), older.special_id("<|user|>")) == (422, 420, None)


def test_an_export_takes_added_tokens_along_to_transformers(tmp_path: pathlib.Path) -> None:
    file = with_added(like_llama(tmp_path), **ADDED)
    model = ModelConfig(vocab_size=424, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(out, Tokenizer(file), model=model, chat_format="chatml")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(out), Tokenizer(out / "tokenizer.model")
    turns = [Turn("user", "Hi <think>there"), Turn("assistant", "Hello")]
    whole = encode_conversation(turns, chat_format=get_format("chatml"), tokenizer=ours).tokens.tolist()
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert theirs.apply_chat_template(messages, return_dict=False) == whole
    assert theirs.eos_token_id == ours.eos_id == ours.special_id("<|im_end|>")


def test_ends_that_the_config_names_go_before_those_of_the_model(tmp_path: pathlib.Path) -> None:
    file = with_added(like_llama(tmp_path), **ADDED)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    tokenizer = Tokenizer(file)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 421)
    for wrong in ("<|eot_id|>", "<think>"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": wrong}))
        with pytest.raises(TokenizerError, match=f"eos_token is '{re.escape(wrong)}', no special token of it"):
            Tokenizer(file)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"5": {"content": "<x>"}}, "the added token '<x>' has the id 5 of the piece '<0x02>'"),
        ({"500": {"content": "<x>", "rstrip": True}}, "the added token '<x>' has rstrip, which is not done here"),
        ({"x": {"content": "<x>"}}, "added_tokens_decoder has no content for 'x'"),
        ({"500": {}}, "added_tokens_decoder has no content for '500'"),
        ({"500": "<x>"}, "added_tokens_decoder has no content for '500'"),
        (["<x>"], "added_tokens_decoder is no JSON object"),
    ],
)
def test_added_tokens_that_can_not_be_are_refused(told: Any, message: str, tmp_path: pathlib.Path) -> None:
    file = like_llama(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": told}))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(file)


@pytest.mark.parametrize(
    ("like", "name", "content", "message"),
    [
        (like_llama, "added_tokens.json", {"<x>": "500"}, r"added_tokens.json: '500' is no id of '<x>'"),
        (like_opt, "added_tokens.json", {"<x>": None}, r"added_tokens.json: None is no id of '<x>'"),
        (like_opt, "vocab.json", {"a": 1.5}, r"vocab.json: 1.5 is no id of 'a'"),
        (
            like_llama,
            "special_tokens_map.json",
            {"additional_special_tokens": 1},
            "additional_special_tokens is no list",
        ),
        (like_opt, "tokenizer_config.json", {"added_tokens_decoder": "x"}, "added_tokens_decoder is no JSON object"),
    ],
)
def test_files_beside_a_tokenizer_that_hold_something_else_are_refused(
    like: Callable[[pathlib.Path], pathlib.Path], name: str, content: Any, message: str, tmp_path: pathlib.Path
) -> None:
    file = like(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(file)


def test_gpt2s_two_files_become_a_tokenizer_json(tmp_path: pathlib.Path) -> None:
    tokenizer = Tokenizer(like_opt(tmp_path))
    assert set(tokenizer.files) == {"tokenizer.json", "tokenizer_config.json"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.special_id("<pad>")) == (2, 2, 1)
    assert tokenizer.decode(tokenizer.encode("</s> Hi")) == "</s> Hi"
    merges = tmp_path / "merges.txt"
    merges.write_text(merges.read_text() + "zz yy\n")
    with pytest.raises(TokenizerError, match=r"merges what vocab.json does not have: 'zz yy'"):
        Tokenizer(tmp_path / "vocab.json")
    merges.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"merges what vocab.json does not have"):
        Tokenizer(tmp_path / "vocab.json")
    merges.unlink()
    with pytest.raises(TokenizerError, match=r"vocab.json has no merges.txt beside it"):
        Tokenizer(tmp_path / "vocab.json")

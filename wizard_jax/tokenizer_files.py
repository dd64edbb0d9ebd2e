"""The files of a tokenizer in a model's folder, and what lies beside them: ends, added tokens, GPT-2's two files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError

SENTENCEPIECE = "tokenizer.model"
JSON = "tokenizer.json"
JSON_CONFIG = "tokenizer_config.json"
PIECES, MERGES = "vocab.json", "merges.txt"
"""Of GPT-2 and OPT, whose folders may have no tokenizer.json."""
SPECIAL_MAP, ADDED = "special_tokens_map.json", "added_tokens.json"

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenizerError(UserError):
    """A tokenizer file cannot be used, or a tokenizer cannot be trained as asked."""


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that was added to a trained tokenizer, and is found in a text before anything else is."""

    content: str
    special: bool
    """It is never found in a text here: chat formats alone put it."""


def read_files(file: pathlib.Path) -> dict[str, bytes]:
    """All that the tokenizer of a file is made from, by file name. Raises TokenizerError."""
    if not file.is_file():
        raise TokenizerError(
            f"there is no tokenizer file {file}: give the path of a {SENTENCEPIECE}, {JSON} or {PIECES}"
        )
    config = file.with_name(JSON_CONFIG)
    if file.name == PIECES:
        return {JSON: _of_gpt2(file), JSON_CONFIG: config.read_bytes() if config.is_file() else b"{}"}
    if file.suffix == ".json":
        return {JSON: file.read_bytes(), **({JSON_CONFIG: config.read_bytes()} if config.is_file() else {})}
    return {SENTENCEPIECE: file.read_bytes(), JSON_CONFIG: _beside_sentencepiece(file)}


def config_of(files: Mapping[str, bytes], *, name: str) -> dict[str, Any]:
    """The settings beside a tokenizer's file; {} where there are none."""
    return as_object(files[JSON_CONFIG], name=f"{JSON_CONFIG} beside {name}") if JSON_CONFIG in files else {}


def content_of(token: Any) -> str:
    """Of a token in a tokenizer_config.json; '' for none."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def as_object(content: bytes, *, name: str) -> dict[str, Any]:
    """Raises TokenizerError: no JSON object."""
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise TokenizerError(f"{name} is not JSON ({error}): copy it again") from error
    if not isinstance(raw, dict):
        raise TokenizerError(f"{name} is not a JSON object: give the path of a {JSON}")
    return raw


def added_tokens(config: Mapping[str, Any], *, name: str) -> dict[int, AddedToken]:
    """Of a config's `added_tokens_decoder`, by id. Raises TokenizerError."""
    found = {}
    for token, told in _decoder_of(config, name=name).items():
        if not str(token).isdecimal() or not isinstance(told, dict) or not content_of(told):
            raise TokenizerError(f"{JSON_CONFIG} beside {name}: added_tokens_decoder has no content for {token!r}")
        strips = [side for side in ("lstrip", "rstrip", "single_word") if told.get(side)]
        if strips and not told.get("special"):
            raise TokenizerError(
                f"{JSON_CONFIG} beside {name}: the added token {content_of(told)!r} has {', '.join(strips)}, which is "
                "not done here: set it to false if nothing was trained with it"
            )
        found[int(token)] = AddedToken(content=content_of(told), special=bool(told.get("special")))
    return found


def _decoder_of(config: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Raises TokenizerError: it is no object."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise TokenizerError(f"{JSON_CONFIG} beside {name}: added_tokens_decoder is no JSON object: copy it again")
    return decoder or {}


def as_decoder(added: Mapping[int, AddedToken]) -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder` of Hugging Face."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {str(i): {"content": added[i].content, **plain, "special": added[i].special} for i in sorted(added)}


def _beside(file: pathlib.Path, name: str) -> dict[str, Any]:
    beside = file.with_name(name)
    return as_object(beside.read_bytes(), name=str(beside)) if beside.is_file() else {}


def _ids_beside(file: pathlib.Path, name: str) -> dict[str, int]:
    """Of a file that gives each token its id. Raises TokenizerError: an id that is none."""
    ids = _beside(file, name)
    wrong = [token for token, number in ids.items() if type(number) is not int or number < 0]
    if wrong:
        raise TokenizerError(f"{file.with_name(name)}: {ids[wrong[0]]!r} is no id of {wrong[0]!r}: copy it again")
    return ids


def _beside_sentencepiece(file: pathlib.Path) -> bytes:
    """Ends and added tokens, of the files in which transformers writes them down."""
    config = _beside(file, JSON_CONFIG)
    decoder = dict(_decoder_of(config, name=str(file)))
    named = _beside(file, SPECIAL_MAP) | {key: value for key, value in config.items() if key in NAMES and value}
    special = {content_of(named.get(key)) for key in NAMES}
    others = named.get("additional_special_tokens") or []
    if not isinstance(others, list):
        raise TokenizerError(f"{file.with_name(SPECIAL_MAP)}: additional_special_tokens is no list: copy it again")
    special |= {content_of(token) for token in others}
    for content, token in _ids_beside(file, ADDED).items():
        decoder.setdefault(str(token), {"content": content, "special": content in special})
    ends = {key: content_of(config.get(key)) for key in NAMES[:2] if content_of(config.get(key))}
    return json.dumps({**ends, "added_tokens_decoder": decoder}, ensure_ascii=False, sort_keys=True).encode()


def _of_gpt2(file: pathlib.Path) -> bytes:
    """The tokenizer.json that a vocab.json and a merges.txt stand for, as transformers makes it of them."""
    pieces = _ids_beside(file, PIECES)
    merges = file.with_name(MERGES)
    if not merges.is_file():
        raise TokenizerError(f"{file} has no {MERGES} beside it: put the one of this model there")
    lines = merges.read_bytes().decode(errors="replace").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = [pair for pair in pairs if len(pair) != 2 or "".join(pair) not in pieces]
    if wrong:
        raise TokenizerError(f"{merges} merges what {PIECES} does not have: {' '.join(wrong[0])!r}; fetch both again")
    config = _beside(file, JSON_CONFIG)
    named = _beside(file, SPECIAL_MAP) | {key: value for key, value in config.items() if value}
    added = {token.content: i for i, token in added_tokens(config, name=str(file)).items()}
    added |= _ids_beside(file, ADDED)
    special = dict.fromkeys(content for key in NAMES if (content := content_of(named.get(key))))
    for content in special:
        added.setdefault(content, pieces.get(content, max([*pieces.values(), *added.values()]) + 1))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": bool(config.get("add_prefix_space", False))}
    bytes_ |= {"trim_offsets": True, "use_regex": True}
    made = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": content, **plain, "special": content in special}
            for content, i in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": pieces, "merges": pairs},
    }
    return json.dumps(made, ensure_ascii=False).encode()

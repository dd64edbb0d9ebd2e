"""What reads a tokenizer's file: SentencePiece its `tokenizer.model`, `tokenizers` its `tokenizer.json`."""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers

from wizard_jax.tokenizer_files import (
    JSON,
    JSON_CONFIG,
    SENTENCEPIECE,
    AddedToken,
    TokenizerError,
    added_tokens,
    as_decoder,
    as_object,
    config_of,
    content_of,
)

# Protobuf messages merge when concatenated: ModelProto.normalizer_spec (3) .add_dummy_prefix (3).
WITHOUT_LEADING_SPACE = b"\x1a\x02\x18\x00"
WITH_LEADING_SPACE = b"\x1a\x02\x18\x01"

NAMED_ENDS = (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>"))
"""BOS and EOS of Llama 3, and of Llama 1 and 2: a tokenizer.json does not say which of its tokens these are."""


class Engine(Protocol):
    """Text to ids and back. The text is valid Unicode, and none of it becomes a control id."""

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    added: Mapping[int, AddedToken]
    """Tokens beyond those that it was trained with, by id."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What it is made from, by the names that the files have in a model's folder."""

    def encode(self, text: str) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> str: ...

    def id_of(self, piece: str) -> int | None:
        """Of any piece or token; None: there is none."""

    def special_id(self, name: str) -> int | None: ...


class SentencePieceEngine:
    """LLaMA's own `tokenizer.model`, or one trained here that is built like it, and the tokens added to it."""

    def __init__(self, files: Mapping[str, bytes], *, name: str) -> None:
        """Raises TokenizerError: no SentencePiece model, one without EOS, or tokens added in place of others."""
        self._processor, self._name = _load(files[SENTENCEPIECE], name=name), name
        self._pieces = int(self._processor.vocab_size())
        config = config_of(files, name=name)
        self.added: Mapping[int, AddedToken] = self._added(config)
        self._ids = {token.content: number for number, token in self.added.items()}
        self._in_text = _either([token.content for token in self.added.values() if not token.special])
        bos, eos = (self._end(config, key) for key in ("bos_token", "eos_token"))
        if bos is None or eos is None:
            raise TokenizerError(f"{name} has no BOS or no EOS token (LLaMA tokenizers have both): use another")
        self.bos_id: int | None = bos
        self.eos_id = eos
        pad = int(self._processor.pad_id())
        self.pad_id = pad if pad >= 0 else self.eos_id
        self.vocab_size = max([self._pieces, *(number + 1 for number in self.added)])
        self.files: Mapping[str, bytes] = {SENTENCEPIECE: files[SENTENCEPIECE], **self._config_file()}

    def encode(self, text: str) -> list[int]:
        return self._with_added(text, [self._processor])

    def encode_continuation(self, text: str) -> list[int]:
        return self._with_added(text, [self._continuing, self._processor])

    def decode(self, ids: Sequence[int]) -> str:
        parts = []
        for is_added, run in itertools.groupby(ids, key=self.added.__contains__):
            if is_added:
                parts += [self.added[token].content for token in run if not self.added[token].special]
            else:
                parts.append(str(self._processor.decode([token for token in run if token < self._pieces])))
        return "".join(parts)

    def piece(self, token: int) -> str:
        if token in self.added:
            return self.added[token].content
        return str(self._processor.id_to_piece(token)) if token < self._pieces else ""

    def id_of(self, piece: str) -> int | None:
        token = self._ids.get(piece, int(self._processor.piece_to_id(piece)))
        return token if self.piece(token) == piece else None

    def special_id(self, name: str) -> int | None:
        if name in self._ids:
            return self._ids[name] if self.added[self._ids[name]].special else None
        token = int(self._processor.piece_to_id(name))
        return token if self._processor.is_control(token) and self.piece(token) == name else None

    def _with_added(self, text: str, processors: Sequence[sentencepiece.SentencePieceProcessor]) -> list[int]:
        """The ids of a text, whose parts between added tokens are encoded by themselves, the first as given."""
        ids: list[int] = []
        for index, part in enumerate(self._in_text.split(text) if self._in_text else [text]):
            if index % 2:
                ids.append(self._ids[part])
            elif part or not index:
                ids += processors[min(index, len(processors) - 1)].encode(part)
        return ids

    def _added(self, config: Mapping[str, Any]) -> dict[int, AddedToken]:
        found = added_tokens(config, name=self._name)
        for number, token in found.items():
            if number < self._pieces and self._processor.id_to_piece(number) != token.content:
                raise TokenizerError(
                    f"{JSON_CONFIG} beside {self._name}: the added token {token.content!r} has the id {number} of the "
                    f"piece {self._processor.id_to_piece(number)!r}: put the files of one model there"
                )
        return {number: token for number, token in found.items() if number >= self._pieces}

    def _end(self, config: Mapping[str, Any], key: str) -> int | None:
        """BOS or EOS: what the config beside it names, or the model's own."""
        own = int(self._processor.bos_id() if key == "bos_token" else self._processor.eos_id())
        named = content_of(config.get(key))
        if not named:
            return own if own >= 0 else None
        found = self.special_id(named)
        if found is None:
            raise TokenizerError(f"{JSON_CONFIG} beside {self._name}: {key} is {named!r}, no special token of it")
        return found

    def _config_file(self) -> dict[str, bytes]:
        """What the model itself does not say."""
        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        own = {"bos_token": int(self._processor.bos_id()), "eos_token": int(self._processor.eos_id())}
        told: dict[str, Any] = {key: self.piece(ends[key] or 0) for key in ends if ends[key] != own[key]}
        if self.added:
            told["added_tokens_decoder"] = as_decoder(self.added)
        return {JSON_CONFIG: (json.dumps(told, ensure_ascii=False) + "\n").encode()} if told else {}

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        return _load(self.files[SENTENCEPIECE] + WITHOUT_LEADING_SPACE, name="tokenizer without a leading space")


def _either(contents: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of them, the longest first; None: there are none."""
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if contents else None


def _load(model: bytes, *, name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor()
        loaded = bool(model) and processor.LoadFromSerializedProto(model)
    except RuntimeError:
        loaded = False
    if not loaded and _is_tiktoken(model):
        raise TokenizerError(
            f"{name} is a tiktoken file, as Meta ships for Llama 3: give the tokenizer.json of the Hugging Face folder"
        )
    if not loaded:
        raise TokenizerError(f"{name} is not a SentencePiece model: give the path of a tokenizer.model")
    return processor


def _is_tiktoken(model: bytes) -> bool:
    """Whether the first line is a token in base64 and its rank."""
    token, _, rank = model.partition(b"\n")[0].partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.strip().isdigit()
    except binascii.Error:
        return False


class JsonEngine:
    """A `tokenizer.json` of the `tokenizers` library, as Llama 3 has.

    BOS and EOS are named by the `tokenizer_config.json` beside it, else they are those of Llama 3 or 2. One that names
    an EOS alone, as Qwen's does, has no BOS. Padding, truncation and dropout that the file asks for are left out: they
    would change or cut what is trained on.
    """

    def __init__(self, files: Mapping[str, bytes], *, name: str) -> None:
        """Raises TokenizerError: not such a file, or its EOS is not known."""
        raw = as_object(files[JSON], name=name)
        if not isinstance(raw.get("model"), dict):
            raise TokenizerError(f"{name} is not a tokenizer.json: it has no model")
        raw |= {"truncation": None, "padding": None, "post_processor": None}
        raw["model"] = {**raw["model"], "dropout": None} if "dropout" in raw["model"] else raw["model"]
        self._raw, self._name = raw, name
        # Of `prepend_scheme = "first"`: chat formats put BOS first, so no text of theirs is.
        self._tokenizer = self._built({"first"})
        added = self._tokenizer.get_added_tokens_decoder()
        self.added: Mapping[int, AddedToken] = {
            i: AddedToken(content=token.content, special=token.special) for i, token in added.items()
        }
        self._special = {token.content: number for number, token in added.items() if token.special}
        bos, eos = self._ends(config_of(files, name=name))
        self.bos_id = None if bos is None else self._special[bos]
        self.eos_id = self._special[eos]
        self.pad_id = self.eos_id
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        unknown = raw["model"].get("unk_token")
        self._never_text = {number for token, number in self._special.items() if token != unknown}
        config = json.dumps({"bos_token": bos, "eos_token": eos}, ensure_ascii=False) + "\n"
        self.files: Mapping[str, bytes] = {JSON: files[JSON], JSON_CONFIG: config.encode()}

    def encode(self, text: str) -> list[int]:
        return self._only_text(self._tokenizer, text)

    def encode_continuation(self, text: str) -> list[int]:
        return self._only_text(self._continuing, text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def id_of(self, piece: str) -> int | None:
        token: int | None = self._tokenizer.token_to_id(piece)
        return token

    def special_id(self, name: str) -> int | None:
        return self._special.get(name)

    def _only_text(self, tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        if not self._never_text.isdisjoint(ids):
            raise TokenizerError(
                f"{self._name} turns the text {text[:80]!r} into a special token, so a turn could end or begin "
                "inside what somebody wrote: use a tokenizer that spells such text"
            )
        return ids

    def _ends(self, told: Mapping[str, Any]) -> tuple[str | None, str]:
        """The contents of BOS, if there is one, and EOS."""
        named = tuple(content_of(told.get(key)) for key in ("bos_token", "eos_token"))
        candidates = [named] if any(named) else NAMED_ENDS
        for bos, eos in candidates:
            if (bos in self._special or not bos) and eos in self._special:
                return bos or None, eos
        wanted = " or ".join(f"{bos or '(none)'} and {eos or '(none)'}" for bos, eos in candidates)
        raise TokenizerError(
            f"{self._name} has no special tokens {wanted} to begin and end a text: put the tokenizer_config.json "
            "that names its bos_token and eos_token beside it"
        )

    @functools.cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        return self._built({"first", "always"})

    def _built(self, without: set[str]) -> tokenizers.Tokenizer:
        """The tokenizer without those of its rules that put a space before a text."""
        edited = {
            **self._raw,
            "normalizer": _without_space(self._raw.get("normalizer") or {}, without=without),
            "pre_tokenizer": _without_space(self._raw.get("pre_tokenizer") or {}, without=without),
        }
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(edited))
        except Exception as error:  # it raises nothing narrower
            raise TokenizerError(f"{self._name} is not a tokenizer.json of the tokenizers library: {error}") from error
        tokenizer.encode_special_tokens = True  # "<|eot_id|>" in a text is text
        return tokenizer


def _without_space(rule: dict[str, Any], *, without: set[str]) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space before a text where it did 'first' or 'always'; None: none."""
    match rule:
        case {"type": "Sequence"}:
            key = "normalizers" if "normalizers" in rule else "pretokenizers"
            parts = [_without_space(part, without=without) for part in rule[key]]
            return {**rule, key: [part for part in parts if part is not None]}
        case {"type": "Metaspace"}:
            scheme = rule.get("prepend_scheme", "always" if rule.get("add_prefix_space", True) else "never")
            kept = {key: value for key, value in rule.items() if key != "add_prefix_space"}
            return {**kept, "prepend_scheme": "never" if scheme in without else scheme}
        case {"type": "ByteLevel", "add_prefix_space": True} if "always" in without:
            return {**rule, "add_prefix_space": False}
        case {"type": "Prepend"} if "always" in without:
            return None
    return rule or None

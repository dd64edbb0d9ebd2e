"""What reads a tokenizer's file: SentencePiece its `tokenizer.model`, `tokenizers` its `tokenizer.json`."""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers

from configs.errors import UserError

SENTENCEPIECE = "tokenizer.model"
JSON = "tokenizer.json"
JSON_CONFIG = "tokenizer_config.json"

# Protobuf messages merge when concatenated: ModelProto.normalizer_spec (3) .add_dummy_prefix (3).
WITHOUT_LEADING_SPACE = b"\x1a\x02\x18\x00"
WITH_LEADING_SPACE = b"\x1a\x02\x18\x01"

NAMED_ENDS = (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>"))
"""BOS and EOS of Llama 3, and of Llama 1 and 2: a tokenizer.json does not say which of its tokens these are."""


class TokenizerError(UserError):
    """A tokenizer file cannot be used, or a tokenizer cannot be trained as asked."""


class Engine(Protocol):
    """Text to ids and back. The text is valid Unicode, and none of it becomes a control id."""

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int

    @property
    def files(self) -> Mapping[str, bytes]:
        """What it is made from, by the names that the files have in a model's folder."""

    def encode(self, text: str) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> str: ...

    def special_id(self, name: str) -> int | None: ...


class SentencePieceEngine:
    """LLaMA's own `tokenizer.model`, or one trained here that is built like it."""

    def __init__(self, files: Mapping[str, bytes], *, name: str) -> None:
        """Raises TokenizerError: no SentencePiece model, or one without BOS and EOS."""
        self.files: Mapping[str, bytes] = {SENTENCEPIECE: files[SENTENCEPIECE]}
        self._processor = _load(files[SENTENCEPIECE], name=name)
        self.bos_id: int | None = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id())
        if self.bos_id < 0 or self.eos_id < 0:
            raise TokenizerError(f"{name} has no BOS or no EOS token (LLaMA tokenizers have both): use another")
        pad = int(self._processor.pad_id())
        self.pad_id = pad if pad >= 0 else self.eos_id
        self.vocab_size = int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def encode_continuation(self, text: str) -> list[int]:
        return list(self._continuing.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(ids))

    def piece(self, token: int) -> str:
        return str(self._processor.id_to_piece(token))

    def special_id(self, name: str) -> int | None:
        token = int(self._processor.piece_to_id(name))
        return token if self._processor.is_control(token) and self.piece(token) == name else None

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        return _load(self.files[SENTENCEPIECE] + WITHOUT_LEADING_SPACE, name="tokenizer without a leading space")


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
        raw = _object(files[JSON], name=name)
        if not isinstance(raw.get("model"), dict):
            raise TokenizerError(f"{name} is not a tokenizer.json: it has no model")
        raw |= {"truncation": None, "padding": None, "post_processor": None}
        raw["model"] = {**raw["model"], "dropout": None} if "dropout" in raw["model"] else raw["model"]
        self._raw, self._name = raw, name
        # Of `prepend_scheme = "first"`: chat formats put BOS first, so no text of theirs is.
        self._tokenizer = self._built({"first"})
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items() if token.special}
        bos, eos = self._ends(files.get(JSON_CONFIG))
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
        return str(self._tokenizer.id_to_token(token))

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

    def _ends(self, config: bytes | None) -> tuple[str | None, str]:
        """The contents of BOS, if there is one, and EOS."""
        told = {} if config is None else _object(config, name=f"{JSON_CONFIG} beside {self._name}")
        named = tuple(_content(told.get(key)) for key in ("bos_token", "eos_token"))
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


def _content(token: Any) -> str:
    """Of a token in a tokenizer_config.json; '' for none."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _object(content: bytes, *, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise TokenizerError(f"{name} is not JSON ({error}): copy it again") from error
    if not isinstance(raw, dict):
        raise TokenizerError(f"{name} is not a JSON object: give the path of a tokenizer.json")
    return raw

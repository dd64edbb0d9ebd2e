"""A tokenizer as llama.cpp reads it: pieces with scores for SentencePiece, or merges and the name of a split.

llama.cpp knows the ways in which byte-level tokenizers split text into words by name, and takes an unknown name for
another split without a word, so what is not known here is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gguf

from wizard_jax.convert.tensors import ConversionError
from wizard_jax.sentencepiece_model import Piece, parse
from wizard_jax.tokenizer import JSON, SENTENCEPIECE, Tokenizer

_LETTERS_AND_SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[tuple[str, bool], str] = MappingProxyType(
    {
        (_CONTRACTIONS + r"|\p{N}{1,3}" + _LETTERS_AND_SPACE, True): "llama-bpe",
        (_CONTRACTIONS + r"|\p{N}{1,3}" + _LETTERS_AND_SPACE, False): "smaug-bpe",
        (_CONTRACTIONS + r"|\p{N}" + _LETTERS_AND_SPACE, False): "qwen2",
        (_TEKKEN, True): "tekken",
        ("digits", False): "starcoder",
        ("", False): "gpt-2",
    }
)
"""A tokenizer.json's regular expression, and whether a whole word that is a piece is taken unmerged -> llama.cpp's
name. 'digits': every digit apart, then GPT-2's split; '': GPT-2's split alone."""

UNLIKELY = -1000.0
"""The score of pieces that no merge makes."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What `tokenizer.ggml.*` says of the pieces; `scores` belong to "llama", `merges` and `split` to "gpt2"."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    split: str = "default"
    space_before_text: bool = False
    unknown_id: int | None = None
    notes: Sequence[str] = field(default=())
    """Where llama.cpp gives other ids than the tokenizer does."""


def vocabulary(tokenizer: Tokenizer, *, size: int) -> Vocabulary:
    """The pieces of a tokenizer, filled up with unused ones to the `size` of the model's embedding.

    Raises ConversionError: llama.cpp would tokenize otherwise.
    """
    if tokenizer.vocab_size > size:
        raise ConversionError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {size}: give the one that it was "
            "trained with"
        )
    if SENTENCEPIECE in tokenizer.files:
        return _of_sentencepiece(tokenizer, size=size)
    raw = json.loads(tokenizer.files[JSON])
    if raw["model"].get("type") != "BPE":
        raise ConversionError(f"llama.cpp reads byte-pair encodings, and this tokenizer.json is {raw['model']['type']}")
    return _of_byte_fallback(raw, size=size) if raw["model"].get("byte_fallback") else _of_bytes(raw, size=size)


def write_vocabulary(writer: gguf.GGUFWriter, found: Vocabulary) -> None:
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.split)
    writer.add_token_list(list(found.tokens))
    writer.add_token_types(list(found.types))
    if found.scores:
        writer.add_token_scores(list(found.scores))
    if found.model == "gpt2":
        writer.add_token_merges(list(found.merges))
    writer.add_add_space_prefix(found.space_before_text)
    if found.unknown_id is not None:
        writer.add_unk_token_id(found.unknown_id)


def _of_sentencepiece(tokenizer: Tokenizer, *, size: int) -> Vocabulary:
    model = parse(tokenizer.files[SENTENCEPIECE])
    wrong = []
    if model.kind != "bpe":
        wrong.append(f"is of the kind {model.kind!r}, where byte-pair encoding is read")
    if not model.byte_fallback:
        wrong.append("has no bytes for what no piece covers")
    if model.charsmap:
        wrong.append("normalises text, which is not done there")
    if model.removes_spaces:
        wrong.append("removes repeated spaces, which is not done there")
    if wrong:
        raise ConversionError(f"llama.cpp can not tokenize as this {SENTENCEPIECE}: it {'; it '.join(wrong)}")
    unused = Piece(text="", score=UNLIKELY, type=int(gguf.TokenType.UNUSED))
    pieces = [*model.pieces, *[unused] * (size - len(model.pieces))]
    for token, added in tokenizer.added.items():
        pieces[token] = Piece(text=added.content, score=UNLIKELY, type=_added_type(added.special))
    unknown = [token for token, piece in enumerate(pieces) if piece.type == gguf.TokenType.UNKNOWN]
    return Vocabulary(
        model="llama",
        tokens=_filled([piece.text for piece in pieces], size=size),
        types=[piece.type for piece in pieces],
        scores=[piece.score for piece in pieces],
        space_before_text=model.space_before_text,
        unknown_id=unknown[0] if unknown else None,
    )


def _added_type(special: bool) -> int:
    return int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)


def _of_bytes(raw: Mapping[str, Any], *, size: int) -> Vocabulary:
    """Of a tokenizer.json whose pieces are of bytes, written as GPT-2 does."""
    notes: tuple[str, ...] = ()
    match raw.get("normalizer"):
        case None:
            pass
        case {"type": "NFC"}:
            notes = (
                "The tokenizer normalises text to Unicode's NFC, and llama.cpp does not: give it text that is "
                "normalised, as most text is.",
            )
        case other:
            raise ConversionError(f"llama.cpp does not normalise text as this {JSON}: {json.dumps(other)}")
    split = _split_name(raw)
    tokens, types = _pieces(raw, size=size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    return Vocabulary(model="gpt2", tokens=tokens, types=types, merges=merges, split=split, notes=notes)


def _split_name(raw: Mapping[str, Any]) -> str:
    """llama.cpp's name of how text is split into words."""
    whole_words = bool(raw["model"].get("ignore_merges"))
    rules = raw.get("pre_tokenizer") or {}
    match _flat(rules):
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            expression = pattern
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            expression = "digits"
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            expression = ""
        case _:
            expression = None
    name = None if expression is None else SPLITS.get((expression, whole_words))
    if name is None:
        raise ConversionError(
            f"this {JSON} splits text into words in a way that llama.cpp has no known name for, and it would take "
            f"another: known are {', '.join(sorted(set(SPLITS.values())))}; it has ignore_merges = {whole_words} and "
            f"{json.dumps(rules)}"
        )
    return name


def _flat(rule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if rule.get("type") != "Sequence":
        return [{"use_regex": True, **rule} if rule.get("type") == "ByteLevel" else rule]
    return [part for inner in rule["pretokenizers"] for part in _flat(inner)]


def _of_byte_fallback(raw: Mapping[str, Any], *, size: int) -> Vocabulary:
    """Of a tokenizer.json that was made from a SentencePiece model: its merges follow the scores of the pieces."""
    tokens, types = _pieces(raw, size=size)
    vocabulary = raw["model"]["vocab"]
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    if not bytes_ <= vocabulary.keys():
        raise ConversionError(
            f"llama.cpp needs a piece for every byte, and this {JSON} has not all of <0x00> to <0xFF>"
        )
    for piece in bytes_:
        types[vocabulary[piece]] = int(gguf.TokenType.BYTE)
    unknown = raw["model"].get("unk_token")
    if unknown is not None:
        types[vocabulary[unknown]] = int(gguf.TokenType.UNKNOWN)
    return Vocabulary(
        model="llama",
        tokens=tokens,
        types=types,
        scores=_scores(raw, types=types),
        space_before_text=_space_before_text(raw),
        unknown_id=None if unknown is None else vocabulary[unknown],
    )


def _scores(raw: Mapping[str, Any], *, types: Sequence[int]) -> list[float]:
    """A score for every piece, by which merging the best pair first is merging in the file's order.

    llama.cpp merges every pair that makes a piece. Raises ConversionError: this file does not, or does not merge all
    pairs that make a piece one after another.
    """
    vocabulary = raw["model"]["vocab"]
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in raw["model"]["merges"]
    ]
    made = [piece for piece, _ in itertools.groupby(left + right for left, right in merges)]
    every = {
        (piece[:cut], piece[cut:])
        for piece, token in vocabulary.items()
        for cut in range(1, len(piece))
        if types[token] == gguf.TokenType.NORMAL and piece[:cut] in vocabulary and piece[cut:] in vocabulary
    }
    if len(set(made)) < len(made) or not every <= set(merges):
        raise ConversionError(
            f"the merges of this {JSON} follow no scores of pieces, as llama.cpp would have them: put the "
            f"{SENTENCEPIECE} of this model beside it"
        )
    scores = [UNLIKELY * len(types)] * len(types)
    for rank, piece in enumerate(made):
        scores[vocabulary[piece]] = float(-rank)
    return scores


def _space_before_text(raw: Mapping[str, Any]) -> bool:
    """Raises ConversionError: spaces are not treated as LLaMA's are."""
    normalizer, rules = raw.get("normalizer") or {}, raw.get("pre_tokenizer") or {}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    match normalizer, rules:
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, last]}, {} if last == replace:
            return True
        case {"type": "Replace"}, {} if normalizer == replace:
            return False
        case {}, {"type": "Metaspace", "replacement": "▁", "split": False} if not normalizer:
            return bool(rules.get("prepend_scheme", "always") != "never")
    raise ConversionError(
        f"llama.cpp does not treat spaces as this {JSON}: normalizer {json.dumps(normalizer)}, pre_tokenizer "
        f"{json.dumps(rules)}"
    )


def _pieces(raw: Mapping[str, Any], *, size: int) -> tuple[list[str], list[int]]:
    """Tokens and types of all ids; those that nothing has are unused."""
    by_id: dict[int, tuple[str, int]] = {
        token: (piece, int(gguf.TokenType.NORMAL)) for piece, token in raw["model"]["vocab"].items()
    }
    for added in raw.get("added_tokens") or ():
        by_id[added["id"]] = added["content"], _added_type(added["special"])
    none = "", int(gguf.TokenType.UNUSED)
    pieces = [by_id.get(token, none) for token in range(size)]
    return _filled([piece for piece, _ in pieces], size=size), [kind for _, kind in pieces]


def _filled(tokens: Sequence[str], *, size: int) -> list[str]:
    """With a name of its own for every id without a piece, which llama.cpp asks for."""
    taken = set(tokens)
    named = list(tokens) + [""] * (size - len(tokens))
    for token, piece in enumerate(named):
        if not piece:
            name = f"[PAD{token}]"
            while name in taken:
                name = f"[{name}]"
            named[token] = name
    return named

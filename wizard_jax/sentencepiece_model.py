"""What a SentencePiece model says of itself. Its own Python module for this needs one exact protobuf, so the fields
are read by their numbers (google/sentencepiece, src/sentencepiece_model.proto)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    text: str
    score: float
    type: int
    """1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; llama.cpp has the same numbers."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    pieces: tuple[Piece, ...]
    kind: str
    byte_fallback: bool
    charsmap: bytes
    """The compiled rules by which text is normalised; b'': it is not."""
    space_before_text: bool
    removes_spaces: bool


def parse(content: bytes) -> SentencePieceModel:
    """Of a `tokenizer.model` that SentencePiece loads. As in protobuf, of what is given twice the last counts."""
    fields = _fields(content)
    trainer, normalizer = _merged(fields.get(2)), _merged(fields.get(3))
    return SentencePieceModel(
        pieces=tuple(_piece(_fields(piece)) for piece in fields[1]),
        kind=_KINDS[_last(trainer, 3, 1)],
        byte_fallback=bool(_last(trainer, 35, 0)),
        charsmap=_last(normalizer, 2, b""),
        space_before_text=bool(_last(normalizer, 3, 1)),
        removes_spaces=bool(_last(normalizer, 4, 1)),
    )


def _piece(fields: dict[int, list[Any]]) -> Piece:
    bits = _last(fields, 2, 0)
    (score,) = struct.unpack("<f", struct.pack("<I", bits))
    return Piece(text=fields[1][0].decode(), score=score, type=_last(fields, 3, 1))


def _fields(content: bytes) -> dict[int, list[Any]]:
    message = Empty()
    message.ParseFromString(content)
    found: dict[int, list[Any]] = {}
    for field in UnknownFieldSet(message):
        found.setdefault(field.field_number, []).append(field.data)
    return found


def _merged(messages: list[bytes] | None) -> dict[int, list[Any]]:
    return _fields(b"".join(messages or ()))


def _last(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    return fields[number][-1] if number in fields else default

"""One packed row, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def to_words(tokens: np.ndarray, *, trained: np.ndarray) -> bytes:
    """Tokens on disk: 2 * id + trained for each, little-endian uint32."""
    words: np.ndarray = (tokens.astype("<u4") << 1) | trained
    return words.astype("<u4").tobytes()


def row_bytes(lengths: np.ndarray, *, groups: np.ndarray, words: Sequence[bytes]) -> bytes:
    """A row on disk, little-endian uint32: number of conversations, their lengths and groups, then their words."""
    head = np.concatenate([np.array([len(lengths)]), lengths, groups]).astype("<u4")
    return b"".join([head.tobytes(), *words])


class Row(NamedTuple):
    """One packed row without padding."""

    tokens: np.ndarray
    """int32 [n]"""
    trained: np.ndarray
    """bool [n]"""
    lengths: np.ndarray
    """int32 [conversations]"""
    groups: np.ndarray
    """int32 [conversations]: where in the list of groups each conversation's source and round stand."""

    def to_bytes(self) -> bytes:
        return row_bytes(self.lengths, groups=self.groups, words=[to_words(self.tokens, trained=self.trained)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Row:
        words = np.frombuffer(data, "<u4")
        count = int(words[0])
        lengths, groups, body = np.split(words[1:], [count, 2 * count])
        return cls(
            tokens=(body >> 1).astype(np.int32),
            trained=(body & 1).astype(np.bool_),
            lengths=lengths.astype(np.int32),
            groups=groups.astype(np.int32),
        )

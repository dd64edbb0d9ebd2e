"""One packed row, and its bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
        """Little-endian uint32: number of conversations, their lengths and groups, then 2 * id + trained per token."""
        words = (self.tokens.astype(np.uint32) << 1) | self.trained
        parts = (np.array([len(self.lengths)]), self.lengths, self.groups, words)
        return np.concatenate([part.astype("<u4") for part in parts]).tobytes()

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

"""Seeded choices that stay what they are: of Philox's raw bits, whose stream NumPy promises to keep, and of SHA-256."""

from __future__ import annotations

import hashlib

import numpy as np


def seeded_order(count: int, *, seed: int, stream: int = 0) -> np.ndarray:
    """A permutation of 0..count-1 (int64 [count]), a pure function of its arguments."""
    bits = np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


def is_drawn(name: str, *, share: float, seed: int) -> bool:
    """Whether `name` is among a seeded `share` of all names; a larger share holds every smaller one."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64

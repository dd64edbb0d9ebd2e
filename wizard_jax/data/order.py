"""Seeded orders that stay what they are: of the raw bits of Philox, whose stream NumPy promises not to change."""

from __future__ import annotations

import numpy as np


def seeded_order(count: int, *, seed: int, stream: int = 0) -> np.ndarray:
    """A permutation of 0..count-1 (int64 [count]), a pure function of its arguments."""
    bits = np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)

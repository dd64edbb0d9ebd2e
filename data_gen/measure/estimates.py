"""A figure with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2_000
"""Resamples behind a bootstrap interval; the ends of a 95 % one then rest on 50 draws each."""


class Estimate(NamedTuple):
    """A figure, its 95 % interval, and the number of units (lineages, texts) it rests on.

    The ends are None where a single unit leaves nothing to resample.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def bootstrap(statistic: Callable[[np.ndarray], float], *, n: int, seed: int, draws: int = DRAWS) -> Estimate | None:
    """The percentile bootstrap (Efron 1979) over `n` units; None where the statistic is not defined on all of them.

    `statistic` takes the indices [n] of the units drawn and returns a figure, NaN where it is not defined.
    """
    value = statistic(np.arange(n)) if n else np.nan
    if np.isnan(value):
        return None
    if n < 2:
        return Estimate(float(value), None, None, n)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(n, size=n)) for _ in range(draws)])
    low, high = np.quantile(drawn[~np.isnan(drawn)], [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n)


def mean_of(values: Sequence[float], *, seed: int) -> Estimate | None:
    """The mean of one figure per unit; None of no units."""
    array = np.array(values, dtype=np.float64)
    return bootstrap(lambda drawn: float(array[drawn].mean()), n=len(array), seed=seed)

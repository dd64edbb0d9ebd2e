"""Intervals for shares of right answers."""

from __future__ import annotations

import math
from typing import NamedTuple

Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


class Proportion(NamedTuple):
    """A share with its 95 % interval."""

    successes: int
    trials: int
    share: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Proportion:
    """The 95 % score interval of a binomial share (Wilson 1927), good also near 0 and 1 and for small n.

    Raises:
      ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no share: trials must be positive and not fewer than successes")
    share = successes / trials
    scale = 1 + Z_95**2 / trials
    centre = (share + Z_95**2 / (2 * trials)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / trials + Z_95**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Proportion(successes, trials, share, low, high)


def difference(first: Proportion, second: Proportion) -> tuple[float, float]:
    """The 95 % interval of first - second for independent shares (Newcombe 1998, method 10)."""
    gap = first.share - second.share
    below = math.hypot(first.share - first.low, second.high - second.share)
    above = math.hypot(first.high - first.share, second.share - second.low)
    return gap - below, gap + above

"""Intervals agree with published tables and hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wizard_jax.evaluate.statistics.shares import difference, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert (found.successes, found.trials, found.share) == (successes, trials, successes / trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_differences_have_the_published_limits(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    assert difference(wilson(*first), wilson(*second)) == pytest.approx((low, high), abs=5e-5)
    assert difference(wilson(*second), wilson(*first)) == pytest.approx((-high, -low), abs=5e-5)


@pytest.mark.parametrize("trials", [20, 200])
def test_wilson_covers_the_truth_in_95_of_100(trials: int) -> None:
    """Exactly, by the binomial distribution, on average over shares."""
    intervals = [wilson(successes, trials) for successes in range(trials + 1)]
    covered = []
    for share in np.linspace(0.02, 0.98, 97):
        ways = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
        covered.append(sum(way for way, one in zip(ways, intervals, strict=True) if one.low <= share <= one.high))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83


def test_differences_cover_the_truth_in_95_of_100() -> None:
    random = np.random.default_rng(1)
    hits, draws = 0, 4000
    for _ in range(draws):
        shares = random.uniform(0.05, 0.95, size=2)
        first, second = (wilson(int(random.binomial(60, share)), 60) for share in shares)
        low, high = difference(first, second)
        hits += low <= shares[0] - shares[1] <= high
    assert hits / draws == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, trials)

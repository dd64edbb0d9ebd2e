"""Effects over seeds and items, trends over ordered arms, and how often 95 % intervals hold the truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from wizard_jax.evaluate.statistics.agreement import agreement
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate
from wizard_jax.evaluate.statistics.models import bradley_terry, length_controlled
from wizard_jax.evaluate.statistics.rank import spearman
from wizard_jax.evaluate.statistics.sweeps import hierarchical, page_trend
from wizard_jax.evaluate.statistics.wins import paired_difference, win_rate

BOOTSTRAP = Bootstrap(seed=0)
QUICK = Bootstrap(seed=0, draws=2_000)


def sweep(
    random: np.random.Generator, *, seeds: int, items: int, seed_sd: float, item_sd: float, noise: float
) -> np.ndarray:
    """Differences of two arms whose true mean is 0."""
    return (
        seed_sd * random.standard_normal((seeds, 1))
        + item_sd * random.standard_normal(items)
        + noise * random.standard_normal((seeds, items))
    )


def test_seeds_that_differ_give_an_interval_by_student() -> None:
    """With thousands of items only the seeds are left to chance."""
    values = sweep(np.random.default_rng(0), seeds=3, items=4000, seed_sd=1.0, item_sd=0.1, noise=0.1)
    found = hierarchical(values, bootstrap=BOOTSTRAP)
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values.mean(axis=1)))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.08)
    assert found.n == 4000
    assert found.method.startswith("3 seeds (Student's t) and 4,000 items resampled")


def test_seeds_that_do_not_differ_leave_the_interval_of_the_items() -> None:
    items = np.random.default_rng(0).normal(size=300)
    found = hierarchical(np.tile(items, (4, 1)), bootstrap=BOOTSTRAP)
    assert found.half_width == pytest.approx(1.96 * stats.sem(items), rel=0.03)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((1, 9)), "1 seeds on 9 items"),
        (np.ones((3, 1)), "3 seeds on 1 items"),
        (np.ones(3), r"shape \(3,\)"),
        (np.full((3, 3), np.nan), "missing or not finite"),
        (np.zeros((3, 9)), "0 for every seed and item"),
    ],
)
def test_a_sweep_without_seeds_or_items_is_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical(values, bootstrap=BOOTSTRAP)


def test_pages_trend_counts_all_ways_in_which_chance_could_order_the_arms() -> None:
    values = np.array([[0.2, 0.3, 0.4], [0.1, 0.4, 0.3], [0.2, 0.5, 0.9]])
    found = page_trend(values)
    ranks = stats.rankdata(values, axis=1)
    weights = np.arange(1, 4)
    chance = [sum(weights @ np.array(block) for block in way) for way in product(permutations((1, 2, 3)), repeat=3)]
    assert found.statistic == (ranks @ weights).sum() == 41
    assert found.p == pytest.approx(np.mean(np.array(chance) >= 41))
    assert found.blocks == 3
    assert page_trend(values[:, ::-1]).p > 0.9
    assert page_trend([[1, 2, 3, 4, 5]] * 3).p < 0.001


@pytest.mark.parametrize("values", [[[1, 2, 3]], [[1, 2], [1, 2]]])
def test_too_few_arms_or_seeds_show_no_trend(values: list[list[float]]) -> None:
    with pytest.raises(NoEstimate, match="show no trend"):
        page_trend(values)


# --- coverage


def coverage(one: Callable[[np.random.Generator, Bootstrap], Estimate | None], truth: float, *, times: int) -> float:
    """How often the interval of so many simulated data sets holds the truth."""
    random = np.random.default_rng(0)
    held = 0
    for number in range(times):
        found = one(random, Bootstrap(seed=number, draws=2_000))
        assert found is not None
        held += found.low <= truth <= found.high
    print(f"coverage {held / times:.4f} of {times}")
    return held / times


def _won(random: np.random.Generator, _: int) -> np.ndarray:
    """Scores of 120 prompts in two orders whose mean is 0.58: verdicts that differ from prompt to prompt."""
    lean = random.choice([0.1, 0.6, 0.9], p=[0.25, 0.375, 0.375], size=120)
    return (random.uniform(size=(120, 2)) < lean[:, None]).mean(axis=1)


def rate(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    return win_rate(_won(random, 0), bootstrap=bootstrap).estimate


def rate_bca(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    return win_rate(_won(random, 0), bootstrap=Bootstrap(bootstrap.seed, 2_000, "bca")).estimate


def paired(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    lean = random.uniform(size=120)
    one, other = (random.uniform(size=120) < lean), (random.uniform(size=120) < lean * 0.8)
    return paired_difference(one.astype(float), other.astype(float), bootstrap=bootstrap).estimate


def gap_of_strengths(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    """a is 0.6 above b and c, with ties; the two orders on a prompt mostly agree."""
    rows = []
    for one, other, gap in (("a", "b", 0.6), ("a", "c", 0.6), ("b", "c", 0.0)):
        odds = np.array([np.exp(gap / 2), 0.5, np.exp(-gap / 2)])
        said = random.choice([1, 0, -1], p=odds / odds.sum(), size=100)
        anew = random.choice([1, 0, -1], p=odds / odds.sum(), size=100)
        again = np.where(random.uniform(size=100) < 0.7, said, anew)
        rows += [(one, other, v, prompt) for verdicts in (said, again) for prompt, v in enumerate(verdicts)]
    first, second, verdicts, prompts = zip(*rows, strict=True)
    found = bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=bootstrap)
    pair = next(pair for pair in found.pairs if {pair.stronger, pair.weaker} == {"a", "b"})
    sign = 1 if pair.stronger == "a" else -1
    low, high = sorted((sign * pair.gap.low, sign * pair.gap.high))
    return Estimate(sign * pair.gap.value, low, high, 100, "")


def at_equal_length(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    gaps = random.normal(200, 400, size=200)
    won = random.uniform(size=200) < 1 / (1 + np.exp(-0.4 - 0.8 * np.tanh(gaps / 400)))
    return length_controlled(won.astype(float), gaps + 2000, np.full(200, 2000.0), bootstrap=bootstrap).controlled


def kappa(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate | None:
    """Of raters who copy the truth with 0.8 each and else throw a die: 0.64."""
    truth = random.integers(-1, 2, size=150)
    raters = [np.where(random.uniform(size=150) < 0.8, truth, random.integers(-1, 2, size=150)) for _ in range(2)]
    return agreement(np.stack(raters, axis=1), bootstrap=bootstrap).kappa


def rank_correlation(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    first = random.normal(size=150)
    second = 0.4 * first + np.sqrt(1 - 0.16) * random.normal(size=150)
    return spearman(first, second, bootstrap=bootstrap)


def over_seeds(**kind: float) -> Callable[[np.random.Generator, Bootstrap], Estimate]:
    def one(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
        return hierarchical(sweep(random, **kind), bootstrap=bootstrap)  # type: ignore[arg-type]

    return one


def right_or_wrong(random: np.random.Generator, bootstrap: Bootstrap) -> Estimate:
    """Exact match of two arms of three seeds on 200 items."""
    lean = random.normal(size=200)
    arms = [lean + 0.15 * random.normal(size=(3, 1)) + random.normal(size=(3, 200)) > 0 for _ in range(2)]
    return hierarchical(arms[1].astype(float) - arms[0], bootstrap=bootstrap)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "truth"),
    [
        (rate, 0.25 * 0.1 + 0.375 * 1.5),
        (rate_bca, 0.25 * 0.1 + 0.375 * 1.5),
        (paired, 0.1),
        (gap_of_strengths, 0.6),
        (at_equal_length, 1 / (1 + np.exp(-0.4))),
        (kappa, 0.64),
        (rank_correlation, 6 / np.pi * np.arcsin(0.2)),
        (over_seeds(seeds=3, items=200, seed_sd=0.05, item_sd=0.2, noise=0.3), 0.0),
        (over_seeds(seeds=5, items=200, seed_sd=0.05, item_sd=0.2, noise=0.3), 0.0),
        (over_seeds(seeds=5, items=200, seed_sd=0.02, item_sd=0.3, noise=0.3), 0.0),
        (over_seeds(seeds=3, items=200, seed_sd=0.2, item_sd=0.1, noise=0.1), 0.0),
        (right_or_wrong, 0.0),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_of_100(
    one: Callable[[np.random.Generator, Bootstrap], Estimate | None], truth: float
) -> None:
    assert 0.93 <= coverage(one, truth, times=2_000) <= 0.97

"""Several seeds of each arm of a sweep: an interval over seeds and items, and a test for a trend over ordered arms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import page_trend_test
from threadpoolctl import threadpool_limits

from wizard_jax.evaluate.statistics.bootstrap import LEVEL, Bootstrap, Estimate, NoEstimate


def hierarchical(values: ArrayLike, *, bootstrap: Bootstrap) -> Estimate:
    """The mean of values [S, N] of S seeds on the same N items, for seeds and items like these: seed outer, item inner.

    For a contrast give the differences of two arms, seed by seed and item by item.

    A resample of three seeds has ten outcomes only: seeds and then items drawn with replacement give intervals that
    hold the truth in 73 to 90 of 100 sweeps (`benchmarks/evaluation_statistics.py`), and not in 95. So the outer
    level draws the mean over seeds from Student's t with S - 1 degrees of freedom around that of the seeds. The inner
    one resamples items, the same for all seeds, without the part of their spread that is one seed's alone: that part
    is in the deviation of the seeds' means already.

    Raises:
      ValueError: not two dimensions, NaN.
      NoEstimate: fewer than two seeds or items, or values that are all alike.
    """
    table = _table(values, "[seeds, items]")
    seeds, items = table.shape
    if min(table.shape) < 2:
        raise NoEstimate(f"{seeds} seeds on {items} items: an interval over both needs two of each, better five seeds")
    if np.ptp(table) == 0:
        raise NoEstimate(f"{table[0, 0]:g} for every seed and item: nothing in that tells how far it may be off")
    value, of_seeds, of_items = table.mean(), table.mean(axis=1), table.mean(axis=0)
    alone = ((table - of_seeds[:, None] - of_items + value) ** 2).sum() / ((seeds - 1) * (items - 1))
    shared = seeds * of_items.var(ddof=1)
    kept = np.sqrt(max(0.0, 1 - alone / shared)) if shared > 0 else 0.0
    with threadpool_limits(1):
        inner = np.concatenate([weights @ (of_items - value) / items for weights in bootstrap.weights(items)])
    random = np.random.default_rng((bootstrap.seed, seeds, items))
    outer = of_seeds.std(ddof=1) / np.sqrt(seeds) * random.standard_t(seeds - 1, size=bootstrap.draws)
    low, high = np.quantile(value + outer + kept * inner, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    method = f"{seeds} seeds (Student's t) and {items:,} items resampled, {bootstrap.draws:,} draws"
    return Estimate(float(value), float(low), float(high), items, f"{method}, seed {bootstrap.seed}")


@dataclass(frozen=True)
class Trend:
    statistic: float
    """Page's L."""
    p: float
    """One-sided: how often chance orders the arms upwards so well."""
    blocks: int


def page_trend(values: ArrayLike) -> Trend:
    """Page's test (1963) that values [S, K] of K >= 3 ordered arms (columns) rise, over S blocks that are independent.

    A block is a seed, with the mean over items in each arm: items of one model are not independent of one another.
    The p is exact for up to 12 blocks of 8 arms without ties, else by the normal approximation.

    Raises:
      ValueError: not two dimensions, NaN.
      NoEstimate: fewer than two blocks or three arms.
    """
    table = _table(values, "[seeds, arms]")
    if table.shape[0] < 2 or table.shape[1] < 3:
        raise NoEstimate(f"{table.shape[0]} seeds of {table.shape[1]} arms show no trend: take 2 and 3 at least")
    found = page_trend_test(table)
    return Trend(float(found.statistic), float(found.pvalue), len(table))


def _table(values: ArrayLike, shape: str) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"values have the shape {table.shape}: give {shape}")
    if not np.isfinite(table).all():
        raise ValueError("a value is missing or not finite: leave that item or seed out of all arms")
    return table

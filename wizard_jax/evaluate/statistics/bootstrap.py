"""Estimates with 95 % intervals by resampling prompts, each with all its orders, judges and samples.

    estimate(lambda drawn: drawn @ scores / drawn.sum(1), n=len(scores), bootstrap=Bootstrap(seed=0))

A statistic is a function of how often each prompt was drawn, so a draw of a prompt draws everything asked about it,
and ten thousand draws are a few products of matrices. The same seed draws the same prompts for every statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from threadpoolctl import threadpool_limits

from configs.errors import UserError

LEVEL = 0.95
"""Of every interval of this package."""

LEAST_DRAWS = 2_000
"""The ends of an interval then rest on 50 draws each."""

UNDEFINED = 0.05
"""A figure that more than this share of draws leave undefined has no interval."""

Bounds = tuple[float, float]
"""The lowest and the highest value that a figure can have."""

_CHUNK = 2**16  # weights at a time: 0.5 MB, so that what is made of them stays in a processor's cache

Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each unit was drawn, [B, N] -> the figure of each draw [B], or K figures [B, K]; NaN where undefined."""


class NoEstimate(UserError):
    """These data do not determine the figure; the message says why, in a sentence that can stand in its place."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Units (prompts, unless `method` names others) that it rests on."""
    method: str
    """How the interval was made."""

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile (Efron 1979), or bias-corrected and accelerated (BCa, Efron 1987)."""

    seed: int
    draws: int = 10_000
    interval: Literal["percentile", "bca"] = "percentile"

    def __post_init__(self) -> None:
        if self.draws < LEAST_DRAWS:
            raise ValueError(f"{self.draws} draws are too few for the ends of an interval: take {LEAST_DRAWS} or more")
        if self.interval not in ("percentile", "bca"):
            raise ValueError(f"interval {self.interval!r} is neither 'percentile' nor 'bca'")

    def weights(self, n: int) -> Iterator[np.ndarray]:
        """How often each of n units was drawn in draws of n with replacement: [b, n] at a time, `draws` rows in all."""
        rng = np.random.default_rng(self.seed)
        rows = max(1, _CHUNK // n)
        for start in range(0, self.draws, rows):
            count = min(rows, self.draws - start)
            drawn = rng.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
            yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)

    def method(self, n: int) -> str:
        name = {"percentile": "percentile", "bca": "BCa"}[self.interval]
        return f"{name} bootstrap over {n:,} prompts, {self.draws:,} draws, seed {self.seed}"


def estimate(statistic: Statistic, *, n: int, bootstrap: Bootstrap, bounds: Bounds | None = None) -> Estimate:
    """One figure with its interval; see `estimates`.

    Raises:
      NoEstimate: the figure is undefined on these units, or on more than 1 in 20 resamples of them.
    """
    found = estimates(statistic, n=n, bootstrap=bootstrap, bounds=[bounds])[0]
    if found is None:
        raise NoEstimate(f"{n:,} prompts are too few, or too much alike, for this figure and its interval")
    return found


def estimates(
    statistic: Statistic, *, n: int, bootstrap: Bootstrap, bounds: Sequence[Bounds | None]
) -> tuple[Estimate | None, ...]:
    """K figures of n units, each with its interval; None for one that is undefined on them or on many resamples.

    `bounds` are those of each figure. Where no resample differs (all prompts won, say) a bootstrap interval would
    have no width. That of a bounded figure is then what prompts unlike these could move, as many as n draws miss with
    probability 0.025: Clopper and Pearson's (1934) for a mean whose values all lie at a bound, and near it for others.
    """
    if n < 1:
        raise ValueError("no items: there is nothing to estimate from")
    # More threads make products of this size no faster (twice as slow on a busy machine), and sum in another order.
    with threadpool_limits(1):
        values = _columns(statistic(np.ones((1, n))))[0]
        drawn = np.concatenate([_columns(statistic(weights)) for weights in bootstrap.weights(n)])
        jackknife = _jackknife(statistic, n) if bootstrap.interval == "bca" else np.zeros((0, len(values)))
    return tuple(
        _interval(float(value), drawn[:, k], jackknife[:, k], n=n, bootstrap=bootstrap, bounds=bound)
        for k, (value, bound) in enumerate(zip(values, bounds, strict=True))
    )


def mean(values: ArrayLike, *, bootstrap: Bootstrap, bounds: Bounds | None = None) -> Estimate:
    """The mean of one value per prompt [N]."""
    (column,) = columns(values=values)
    return estimate(lambda weights: weights @ column / len(column), n=len(column), bootstrap=bootstrap, bounds=bounds)


def share(hits: ArrayLike, counted: ArrayLike, prompts: ArrayLike | None, *, bootstrap: Bootstrap) -> Estimate:
    """The share of hits among the rows that are counted, both [R] of booleans, resampled by prompt.

    Raises:
      NoEstimate: no row is counted.
    """
    hit, among = columns(hits=hits, counted=counted)
    if not among.any():
        raise NoEstimate("there is not one case to take a share of")
    sums = by_prompt(np.stack([hit * among, among], axis=1), prompts)
    sums = sums[sums[:, 1] > 0]
    return estimate(lambda weights: divided(*(weights @ sums).T), n=len(sums), bootstrap=bootstrap, bounds=(0.0, 1.0))


def by_prompt(rows: np.ndarray, prompts: ArrayLike | None) -> np.ndarray:
    """Sums of the rows of each prompt: [R, K] -> [N, K]; the rows themselves where each is a prompt of its own (None).

    Raises:
      ValueError: not one prompt for each row.
    """
    if prompts is None:
        return rows
    labels = np.asarray(prompts)
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{len(labels)} prompts are named for {len(rows)} rows: name one for each")
    names, where = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, where, rows)
    return sums


def columns(**named: ArrayLike) -> tuple[np.ndarray, ...]:
    """Float64 [N] of each, checked.

    Raises:
      ValueError: none or unlike lengths, more than one dimension, NaN or infinity.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"{name} has the shape {array.shape}: give one number for each item")
        if not len(array):
            raise ValueError(f"no items: {name} is empty")
        if not np.isfinite(array).all():
            where = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name}[{where}] is {array[where]}: leave out what was not graded")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("unlike numbers of items: " + ", ".join(f"{len(a)} {name}" for name, a in arrays.items()))
    return tuple(arrays.values())


def divided(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where that is 0 / 0 or worse."""
    shape = np.broadcast_shapes(np.shape(top), np.shape(bottom))
    found = np.full(shape, np.nan)
    np.divide(top, bottom, out=found, where=np.broadcast_to(bottom != 0, shape))
    return found


def _columns(figures: np.ndarray) -> np.ndarray:
    return figures[:, None] if figures.ndim == 1 else figures


def _jackknife(statistic: Statistic, n: int) -> np.ndarray:
    """The figures without each unit in turn: [n, K]."""
    rows = max(1, _CHUNK // n)
    parts = []
    for start in range(0, n, rows):
        left_out = np.arange(start, min(start + rows, n))
        weights = np.ones((len(left_out), n))
        weights[np.arange(len(left_out)), left_out] = 0
        parts.append(_columns(statistic(weights)))
    return np.concatenate(parts)


def _interval(
    value: float,
    drawn: np.ndarray,
    jackknife: np.ndarray,
    *,
    n: int,
    bootstrap: Bootstrap,
    bounds: Bounds | None,
) -> Estimate | None:
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(defined) < (1 - UNDEFINED) * len(drawn):
        return None
    if np.ptp(defined) <= 1e-12 * max(1.0, abs(value)):
        if bounds is None:
            return None
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / n)
        low, high = (float(value + unseen * (bound - value)) for bound in bounds)
        return Estimate(value, low, high, n, f"what {n:,} prompts, all alike, can have missed")
    points = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if bootstrap.interval == "bca":
        points = _bca_points(points, value, defined, jackknife[~np.isnan(jackknife)])
    low, high = (float(end) for end in np.quantile(defined, points))
    return Estimate(value, low, high, n, bootstrap.method(n))


def _bca_points(points: np.ndarray, value: float, drawn: np.ndarray, jackknife: np.ndarray) -> np.ndarray:
    """The points of the draws' distribution at which the interval ends (Efron 1987, equation 2.3)."""
    near = 1e-12 * max(1.0, abs(value))
    below = np.mean(drawn < value - near) + np.mean(np.abs(drawn - value) <= near) / 2
    bias = ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    away = jackknife.mean() - jackknife
    spread = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(points)
    ends: np.ndarray = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-3))
    return ends

"""Rank correlation with an interval: over all items, within skills, with length taken out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, columns, divided, estimate

_FLAT = 1e-9
"""Ranks of n items whose squares add up to less than this times n cubed differ by rounding only."""


def spearman(
    first: ArrayLike,
    second: ArrayLike,
    *,
    bootstrap: Bootstrap,
    within: Sequence[str] | None = None,
    without: ArrayLike | None = None,
    prompts: Sequence[str] | None = None,
) -> Estimate:
    """Spearman's rank correlation of two measures of the same items, [N] and [N]; ties have their mean rank.

    `within` (a group for each item) takes the groups' mean ranks out first, so that only differences between items
    of one group count. `without` (a third measure [N], such as length) gives the partial correlation: that of what
    its rank leaves unexplained of the two. Both may be asked for. Every resample is ranked anew. `prompts` (one for
    each item) are what is resampled where items go together, as the versions of a lineage do.

    Raises:
      ValueError: measures of unlike number, NaN; not one group, or prompt, for each item.
      NoEstimate: a measure does not vary (within the groups), here or in many resamples.
    """
    measures = columns(first=first, second=second, **({} if without is None else {"without": without}))
    if within is not None and len(within) != len(measures[0]):
        raise ValueError(f"{len(within)} groups are named for {len(measures[0])} items")
    groups = np.zeros(len(measures[0]), dtype=int) if within is None else np.unique(within, return_inverse=True)[1]
    member = np.eye(groups.max() + 1)[groups]
    rankers = [_Ranks(measure) for measure in measures]
    if prompts is not None and len(prompts) != len(measures[0]):
        raise ValueError(f"{len(prompts)} prompts are named for {len(measures[0])} items: name one for each")
    drawn = np.arange(len(measures[0])) if prompts is None else np.unique(prompts, return_inverse=True)[1]

    def figures(of_prompts: np.ndarray) -> np.ndarray:
        weights = of_prompts[:, drawn]
        ranks = [ranker(weights) for ranker in rankers]
        weighted = [weights * rank for rank in ranks]
        sums = [each @ member for each in weighted]
        sizes = weights @ member
        covariance = {
            (i, j): (weighted[i] * ranks[j]).sum(axis=1) - np.nansum(divided(sums[i] * sums[j], sizes), axis=1)
            for i in range(len(ranks))
            for j in range(i + 1)
        }
        least = _FLAT * weights.sum(axis=1) ** 3
        return _partial(covariance, least=least, partial=without is not None)

    return estimate(figures, n=int(drawn.max()) + 1, bootstrap=bootstrap, bounds=(-1.0, 1.0))


def eta_squared(values: ArrayLike, groups: Sequence[str]) -> float:
    """The share of the values' variance that lies between groups, 0..1; NaN where they do not vary (Fisher 1925)."""
    (column,) = columns(values=values)
    if len(groups) != len(column):
        raise ValueError(f"{len(groups)} groups are named for {len(column)} values")
    member = np.eye(len(set(groups)))[np.unique(np.asarray(groups), return_inverse=True)[1]]
    means = member.T @ column / member.sum(axis=0)
    between = member.sum(axis=0) @ (means - column.mean()) ** 2
    return float(divided(np.asarray(between), np.asarray(((column - column.mean()) ** 2).sum())))


class _Ranks:
    """The ranks of a measure in resamples of its items."""

    def __init__(self, measure: np.ndarray) -> None:
        self._order = np.argsort(measure, kind="stable")
        _, self._group, counts = np.unique(measure, return_inverse=True, return_counts=True)
        self._ends = np.cumsum(counts) - 1

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The rank of each item, less the mean, where item n is there weights[n] times: [B, N] -> [B, N]."""
        upto = np.cumsum(weights[:, self._order], axis=1)[:, self._ends]
        before = np.concatenate([np.zeros((len(weights), 1)), upto[:, :-1]], axis=1)
        ranks: np.ndarray = ((before + upto - upto[:, -1:]) / 2)[:, self._group]
        return ranks


def _partial(covariance: dict[tuple[int, int], np.ndarray], *, least: np.ndarray, partial: bool) -> np.ndarray:
    """Pearson's correlation of the first two from sums of squares and products, without the third where asked."""

    def correlation(i: int, j: int) -> np.ndarray:
        varies = (covariance[i, i] > least) & (covariance[j, j] > least)
        return divided(covariance[i, j], np.sqrt(np.where(varies, covariance[i, i] * covariance[j, j], 0.0)))

    if not partial:
        return correlation(1, 0)
    direct, one, other = correlation(1, 0), correlation(2, 0), correlation(2, 1)
    left = (1 - one**2) * (1 - other**2)
    return divided(direct - one * other, np.sqrt(np.where(left > 1e-12, left, 0.0)))

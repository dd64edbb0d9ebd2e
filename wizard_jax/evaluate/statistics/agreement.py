"""How far raters agree: raw agreement, Cohen's kappa, Krippendorff's alpha and Gwet's AC1, with intervals.

    ratings = [[1, 1], [0, 1], [-1, -1]]     three items, two raters: two orders, two judges, a judge and a person

Raw agreement is high for raters who nearly always say the same, so it is never given alone: kappa and alpha take out
what chance brings, and AC1 does so in a way that holds where one category dominates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, by_prompt, divided, estimates
from wizard_jax.evaluate.statistics.shares import Z_95

VERDICTS = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Agreement:
    """Each figure with its interval over items; None where these ratings leave it undefined (all in one category)."""

    raw: Estimate
    kappa: Estimate | None
    alpha_nominal: Estimate | None
    alpha_ordinal: Estimate | None
    ac1: Estimate | None


def agreement(
    ratings: ArrayLike,
    *,
    bootstrap: Bootstrap,
    categories: Sequence[float] = VERDICTS,
    prompts: ArrayLike | None = None,
) -> Agreement:
    """All five figures of ratings [N, R] by R >= 2 raters; None or NaN where a rater did not rate.

    Items with fewer than two ratings count for nothing. `categories` are all that could be said, lowest first;
    `prompts` names the prompt of each item where several items have one (several candidates).

    - raw: the share of pairs of ratings of an item that are equal, averaged over items.
    - kappa: Cohen (1960); of more than two raters the mean over pairs, by the items that a pair shares (Light 1971).
    - alpha: Krippendorff (2011, "Computing Krippendorff's alpha-reliability"), nominal and ordinal.
    - AC1: Gwet (2008, equations 7 and 8), chance from the mean use of each category.

    Raises:
      ValueError: fewer than two raters or categories, or a rating that is no category.
      NoEstimate: no item has two ratings.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"ratings have the shape {table.shape}: give [items, raters] of two raters or more")
    if len(set(categories)) < 2 or list(categories) != sorted(categories):
        raise ValueError(f"categories {tuple(categories)} must be two or more, lowest first")
    strange = ~(np.isnan(table) | np.isin(table, categories))
    if strange.any():
        raise ValueError(f"a rating is {table[strange][0]:g}, and the categories are {tuple(categories)}")
    twice = (~np.isnan(table)).sum(axis=1) >= 2
    if not twice.any():
        raise NoEstimate("no item was rated twice: agreement can not be told")
    table = table[twice]
    given = (table[:, :, None] == np.asarray(categories)).astype(np.float64)
    parts = (np.ones((len(given), 1)), _equal_pairs(given), _cohen_sums(given), _coincidences(given), _uses(given))
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    sums = by_prompt(np.concatenate(parts, axis=1), None if prompts is None else np.asarray(prompts)[twice])
    kinds = len(categories)

    def figures(weights: np.ndarray) -> np.ndarray:
        items, equal, pairs, coincident, uses = np.split(weights @ sums, ends, axis=1)
        raw = equal[:, 0] / items[:, 0]
        nominal, ordinal = (_alpha(coincident.reshape(-1, kinds, kinds), level) for level in ("nominal", "ordinal"))
        return np.stack([raw, _cohen(pairs, kinds), nominal, ordinal, _ac1(raw, uses / items)], axis=1)

    raw, *others = estimates(figures, n=len(sums), bootstrap=bootstrap, bounds=[(0.0, 1.0), *[(-1.0, 1.0)] * 4])
    assert raw is not None, "every item has a pair of ratings"
    return Agreement(raw, *others)


def kappa_half_width(n: int, *, agree: float = 0.75, by_chance: float = 0.4) -> float:
    """The half-width of a 95 % interval of kappa over n items (Fleiss, Cohen and Everitt 1969, the simple form)."""
    if n < 1 or not 0 <= agree <= 1 or not 0 <= by_chance < 1:
        raise ValueError(f"n {n}, agreement {agree:g} and {by_chance:g} of it by chance do not go together")
    return Z_95 * math.sqrt(agree * (1 - agree) / n) / (1 - by_chance)


def _equal_pairs(given: np.ndarray) -> np.ndarray:
    """Of each item, the share of its pairs of ratings that are equal: one-hot [N, R, C] -> [N, 1]."""
    counts = given.sum(axis=1)
    rated = counts.sum(axis=1)
    equal: np.ndarray = (counts * (counts - 1)).sum(axis=1) / (rated * (rated - 1))
    return equal[:, None]


def _cohen_sums(given: np.ndarray) -> np.ndarray:
    """Of each item and pair of raters, the cell of their table that it falls in: [N, pairs * C * C]."""
    cells = [given[:, i, :, None] * given[:, j, None, :] for i, j in combinations(range(given.shape[1]), 2)]
    return np.stack(cells, axis=1).reshape(len(given), -1)


def _cohen(cells: np.ndarray, kinds: int) -> np.ndarray:
    """Kappa of [B, pairs * C * C] tables, averaged over pairs of raters by the items they share: [B]."""
    tables = cells.reshape(len(cells), -1, kinds, kinds)
    shared = tables.sum(axis=(2, 3))
    agreed = divided(np.trace(tables, axis1=2, axis2=3), shared)
    chance = divided((tables.sum(axis=3) * tables.sum(axis=2)).sum(axis=2), shared**2)
    kappas = divided(agreed - chance, np.where(chance < 1 - 1e-12, 1 - chance, 0.0))
    counted = np.where(np.isnan(kappas), 0.0, shared)
    return divided((np.nan_to_num(kappas) * counted).sum(axis=1), counted.sum(axis=1))


def _coincidences(given: np.ndarray) -> np.ndarray:
    """Of each item, its ordered pairs of ratings over one less than its ratings: [N, C * C]."""
    counts = given.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    shares: np.ndarray = pairs.reshape(len(given), -1) / (counts.sum(axis=1) - 1)[:, None]
    return shares


def _alpha(coincident: np.ndarray, level: str) -> np.ndarray:
    """One less observed over expected disagreement, of coincidences [B, C, C]: [B]."""
    totals = coincident.sum(axis=2)
    if level == "nominal":
        distance = np.broadcast_to(1.0 - np.eye(totals.shape[1]), coincident.shape)
    else:  # squared number of ratings from one category to another, half of each end's
        middle = np.cumsum(totals, axis=1) - totals / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    observed = (coincident * distance).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    alphas: np.ndarray = 1 - divided((totals.sum(axis=1) - 1) * observed, expected)
    return alphas


def _uses(given: np.ndarray) -> np.ndarray:
    """Of each item, the share of its ratings in each category: [N, C]."""
    counts = given.sum(axis=1)
    shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _ac1(agreed: np.ndarray, uses: np.ndarray) -> np.ndarray:
    chance = (uses * (1 - uses)).sum(axis=1) / (uses.shape[1] - 1)
    found: np.ndarray = (agreed - chance) / (1 - chance)
    return found

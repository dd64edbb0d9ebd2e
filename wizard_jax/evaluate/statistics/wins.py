"""Which of two models is better on the same prompts: win rates, paired differences, the sign test.

    first  second   score   strict
      +1      +1     1        +1      wins in both orders
      +1       0     0.75      0      wins in one, ties in the other
      +1      -1     0.5       0      the judge turned round with the order: a tie
    None      -1     0       None     one order was not graded: the other stands, but not for a strict verdict

A score is that of a prompt: the mean over its orders, judges and samples of win 1, tie 0.5 and loss 0. The mean score
is the adjusted win rate (wins and half the ties, as FastChat counts).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Bounds, Estimate, columns, divided, mean

_SAME = 1e-9  # scores are means of a few halves, so nearer ones are equal


@dataclass(frozen=True)
class Comparison:
    """A candidate against another on the same prompts."""

    estimate: Estimate
    wins: int
    """Prompts on which the candidate scores higher."""
    losses: int
    ties: int
    p: float
    """Of the exact two-sided sign test over prompts; ties say nothing."""


def item_scores(verdicts: ArrayLike) -> np.ndarray:
    """The score of each prompt: verdicts [N] or [N, V] of 1, 0, -1 and None or NaN (not graded) -> [N] in 0..1.

    NaN where none of a prompt's verdicts was graded: leave those prompts out of what comes next.

    Raises:
      ValueError: something else stands among the verdicts.
    """
    rows = checked_verdicts(verdicts)
    rows = rows.reshape(len(rows), -1)
    graded = ~np.isnan(rows)
    count = graded.sum(axis=1)
    total = np.where(graded, (rows + 1) / 2, 0).sum(axis=1)
    return divided(total, count)


def strict_verdicts(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """[N], [N] -> [N]: 1 or -1 where both orders say so, else 0 (FastChat's rule); NaN where one was not graded."""
    one, other = checked_verdicts(first), checked_verdicts(second)
    if one.shape != other.shape:
        raise ValueError(f"{len(one)} verdicts in the first order and {len(other)} in the second")
    agreed = np.where(one == other, one, 0.0)
    return np.where(np.isnan(one) | np.isnan(other), np.nan, agreed)


def checked_verdicts(verdicts: ArrayLike) -> np.ndarray:
    """As float64, None as NaN.

    Raises:
      ValueError: one is none of 1, 0, -1 and None.
    """
    rows = np.asarray(verdicts, dtype=np.float64)
    other = ~(np.isnan(rows) | np.isin(rows, (-1, 0, 1)))
    if other.any():
        raise ValueError(f"{rows[other][0]} is no verdict: 1 (better), 0 (tie), -1 (worse) or None (not graded)")
    return rows


def win_rate(scores: ArrayLike, *, bootstrap: Bootstrap) -> Comparison:
    """The adjusted win rate of a candidate, from one score for each prompt [N] in 0..1.

    Raises:
      ValueError: no prompts, or a score outside 0..1.
    """
    (column,) = columns(scores=scores)
    if column.min() < 0 or column.max() > 1:
        raise ValueError(f"scores go from {column.min():g} to {column.max():g}: a win is 1, a tie 0.5, a loss 0")
    found = mean(column, bootstrap=bootstrap, bounds=(0.0, 1.0))
    return _comparison(found, column - 0.5)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, bootstrap: Bootstrap, bounds: Bounds | None = (-1.0, 1.0)
) -> Comparison:
    """The mean of first - second over the prompts that both were measured on: [N], [N].

    Scores of two candidates against one baseline give the difference of their win rates; whether two judges are
    right, that of their accuracies. `bounds` are those of a difference; None where it has none.
    """
    one, other = columns(first=first, second=second)
    gaps = one - other
    if bounds is not None and not (bounds[0] <= gaps.min() and gaps.max() <= bounds[1]):
        raise ValueError(f"differences go from {gaps.min():g} to {gaps.max():g}, out of {bounds}: say other bounds")
    return _comparison(mean(gaps, bootstrap=bootstrap, bounds=bounds), gaps)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of so uneven a split of wins + losses throws of a fair coin; 1 for none (Conover 1999).

    Raises:
      ValueError: a count below 0.
    """
    if min(wins, losses) < 0:
        raise ValueError(f"{wins} wins and {losses} losses: counts can not be negative")
    return min(1.0, 2 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))


def _comparison(found: Estimate, gaps: np.ndarray) -> Comparison:
    wins, losses = int((gaps > _SAME).sum()), int((gaps < -_SAME).sum())
    return Comparison(found, wins, losses, len(gaps) - wins - losses, sign_test(wins, losses))

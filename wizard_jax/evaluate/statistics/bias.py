"""What a judge goes by besides the answers: the order in which they stand, and their lengths.

Verdicts are seen from the candidate in both orders: `first` has the candidate first, `second` has it second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wizard_jax.evaluate.statistics.agreement import Agreement, agreement
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, columns, share
from wizard_jax.evaluate.statistics.wins import checked_verdicts

NEAR = 30
"""Characters: answers whose lengths differ by no more say nothing about a preference for length."""


@dataclass(frozen=True)
class OrderConsistency:
    same: Estimate
    """Share of pairs with one verdict in both orders."""
    reversed: Estimate
    """Share of pairs in which each order prefers the other answer."""
    first_place: Estimate | None
    """Share of decisive verdicts for the answer shown first; None without any. A judge may be even and inconsistent."""
    orders: Agreement
    """Between the two orders: kappa and the others."""


def order_consistency(
    first: ArrayLike, second: ArrayLike, *, bootstrap: Bootstrap, prompts: ArrayLike | None = None
) -> OrderConsistency:
    """Whether one judge says the same in both orders, from its verdicts [R] in each (None: not graded).

    `prompts` names the prompt of each row where several rows have one (several candidates); pairs of which an order
    was not graded are left out.

    Raises:
      NoEstimate: no pair has both verdicts.
    """
    one, other = checked_verdicts(first), checked_verdicts(second)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"{one.shape} verdicts in the first order and {other.shape} in the second")
    both = ~(np.isnan(one) | np.isnan(other))
    if not both.any():
        raise NoEstimate("no pair of answers was graded in both orders")
    one, other = one[both], other[both]
    named = np.arange(len(one)) if prompts is None else np.asarray(prompts)[both]
    all_ = np.ones(len(one), dtype=bool)
    decisive = np.concatenate([one, other]) != 0
    forward = np.concatenate([one == 1, other == -1])
    return OrderConsistency(
        same=share(one == other, all_, named, bootstrap=bootstrap),
        reversed=share((one == -other) & (one != 0), all_, named, bootstrap=bootstrap),
        first_place=share(forward, decisive, np.tile(named, 2), bootstrap=bootstrap) if decisive.any() else None,
        orders=agreement(np.stack([one, other], axis=1), prompts=named, bootstrap=bootstrap),
    )


def longer_preferred(
    scores: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    bootstrap: Bootstrap,
    prompts: ArrayLike | None = None,
    near: float = NEAR,
) -> Estimate:
    """The share of decisive pairs that the longer answer wins, among those more than `near` characters apart: [R] each.

    Raises:
      NoEstimate: there is no such pair.
    """
    won, long, other = columns(scores=scores, lengths=lengths, baseline_lengths=baseline_lengths)
    counted = (np.abs(long - other) > near) & (won != 0.5)
    return share((won > 0.5) == (long > other), counted, prompts, bootstrap=bootstrap)


def always_longest(lengths: ArrayLike, baseline_lengths: ArrayLike) -> np.ndarray:
    """The verdicts of a judge who takes the longer answer: a judge that agrees with the truth no more often is none."""
    long, other = columns(lengths=lengths, baseline_lengths=baseline_lengths)
    verdicts: np.ndarray = np.sign(long - other)
    return verdicts


def concordance(verdicts: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """How right each verdict is, [N], [N] -> [N]: 1 for the true one, 0.5 where one of the two is a tie, else 0.

    `paired_difference(concordance(judge, truth), concordance(always_longest(a, b), truth))` says whether a judge
    beats length.
    """
    said, true = columns(verdicts=checked_verdicts(verdicts), truth=checked_verdicts(truth))
    right: np.ndarray = 1 - np.abs(said - true) / 2
    return right

"""Capacity: graded scores relative to a baseline's, the "percent of ChatGPT" of WizardLM.

    skill     item  candidate  baseline
    Math      1     4          8
    Math      2     2          8             Math is at 6/16 = 0.375
    History   3     9          9             History is at 1

Item-weighted it is 15/25 = 0.6, as the mean over skills 0.6875. The two tell different stories of one model: from the
published bars of WizardLM-30B they are 97.5 and 100.6 percent. Neither need have the sign of the win rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, columns, divided, estimates


@dataclass(frozen=True)
class Capacity:
    """Ratios; times 100 they are the percent of the baseline."""

    item_weighted: Estimate
    """Sum of all scores over the sum of the baseline's: each item counts as its baseline score, as published."""
    skill_mean: Estimate
    """The plain mean of the skills' ratios: a skill of one item counts as much as one of twenty."""
    skills: Mapping[str, Estimate | None]
    """Of each skill its ratio; None for one whose items are too few or too much alike for an interval."""


def capacity(scores: ArrayLike, baseline: ArrayLike, skills: Sequence[str], *, bootstrap: Bootstrap) -> Capacity:
    """Capacity of graded scores [N] (1 to 10, the mean over orders and judges) against those of the baseline [N].

    A resample without any item of a skill leaves that skill out of its mean.

    Raises:
      ValueError: rows of unlike number, a score below 0.
      NoEstimate: the baseline has no points in some skill, or there is one item only.
    """
    own, other = columns(scores=scores, baseline=baseline)
    if len(skills) != len(own):
        raise ValueError(f"{len(skills)} skills are named for {len(own)} items")
    if min(own.min(), other.min()) < 0:
        raise ValueError("a graded score is below 0: no ratio can be taken")
    names, where = np.unique(np.asarray(skills), return_inverse=True)
    member = np.eye(len(names))[where]
    if (empty := member.T @ other == 0).any():
        raise NoEstimate(f"the baseline scores 0 on all items of {names[empty][0]}: there is nothing to be relative to")

    def figures(weights: np.ndarray) -> np.ndarray:
        tops, bottoms = weights @ (own[:, None] * member), weights @ (other[:, None] * member)
        ratios = divided(tops, bottoms)
        drawn = ~np.isnan(ratios)
        plain = divided(np.where(drawn, ratios, 0).sum(axis=1), drawn.sum(axis=1))
        return np.stack([divided(tops.sum(axis=1), bottoms.sum(axis=1)), plain], axis=1)

    item_weighted, skill_mean = estimates(figures, n=len(own), bootstrap=bootstrap, bounds=[None, None])
    if item_weighted is None or skill_mean is None:
        raise NoEstimate(f"{len(own)} items are too few, or too much alike, for a capacity with an interval")
    by_skill = {str(name): _ratio(own[where == k], other[where == k], bootstrap) for k, name in enumerate(names)}
    return Capacity(item_weighted, skill_mean, by_skill)


def _ratio(own: np.ndarray, other: np.ndarray, bootstrap: Bootstrap) -> Estimate | None:
    both = np.stack([own, other], axis=1)
    return estimates(lambda weights: divided(*(weights @ both).T), n=len(own), bootstrap=bootstrap, bounds=[None])[0]

"""Many skills at once: pooling of small ones, a row for each group, Holm's correction, what n items can show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, columns
from wizard_jax.evaluate.statistics.shares import Z_95
from wizard_jax.evaluate.statistics.wins import Comparison, win_rate

LEAST = 20
"""Items: nothing is claimed of a skill with fewer."""

OTHER = "other skills"

SCORE_DEVIATION = 0.41
"""Of the scores of pairs of answers on a prompt: measured on 218 public pairs, for a plan before there are scores."""


@dataclass(frozen=True)
class Group:
    """A skill, a pool of small ones, or a band of difficulty."""

    name: str
    comparison: Comparison
    holm: float | None
    """The p of the sign test after Holm's correction over the groups; None for a group too small for a claim."""


def pooled(
    skills: Sequence[str], *, least: int = LEAST, families: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, ...]:
    """Each item's skill, with what is too small pooled: first into its family where one is named, then into the rest.

    pooled(["Math"] * 25 + ["Law"] * 5 + ["Art"] * 9)  ->  "Math" 25 times, "other skills" 14 times
    """
    counts = Counter(skills)
    found = [skill if counts[skill] >= least else families.get(skill, skill) for skill in skills]
    counts = Counter(found)
    return tuple(skill if counts[skill] >= least else OTHER for skill in found)


def by_group(
    scores: ArrayLike, groups: Sequence[str], *, bootstrap: Bootstrap, least: int = LEAST
) -> tuple[Group, ...]:
    """The win rate of each group from scores [N] and the group of each item, in the order in which groups occur.

    Raises:
      ValueError: not one group for each score.
    """
    (column,) = columns(scores=scores)
    if len(groups) != len(column):
        raise ValueError(f"{len(groups)} groups are named for {len(column)} scores")
    labels = np.asarray(groups)
    found = {name: win_rate(column[labels == name], bootstrap=bootstrap) for name in dict.fromkeys(groups)}
    claims = [name for name, one in found.items() if one.estimate.n >= least]
    corrected = dict(zip(claims, holm([found[name].p for name in claims]), strict=True))
    return tuple(Group(name, one, corrected.get(name)) for name, one in found.items())


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Each p corrected for the number of them (Holm 1979): below 0.05 where it counts at a family-wise 5 %.

    Raises:
      ValueError: a p outside 0..1.
    """
    if any(not 0 <= p <= 1 for p in ps):
        raise ValueError(f"a p-value lies in 0..1: {list(ps)}")
    corrected = [0.0] * len(ps)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return tuple(corrected)


def half_width(n: int, *, deviation: float = SCORE_DEVIATION) -> float:
    """That of the 95 % interval of a mean over n items whose values deviate so much."""
    return Z_95 * _standard_error(n, deviation)


def detectable_effect(n: int, *, deviation: float = SCORE_DEVIATION, power: float = 0.8) -> float:
    """The smallest true difference that n items show at p < 0.05 (two-sided) with this power (Miller 2024, section 5).

    Raises:
      ValueError: no items, a negative deviation, or a power that is not between 0.5 and 1.
    """
    if not 0.5 <= power < 1:
        raise ValueError(f"a power of {power:g} is none to plan for: take 0.5 or more, and less than 1")
    return (Z_95 + float(ndtri(power))) * _standard_error(n, deviation)


def _standard_error(n: int, deviation: float) -> float:
    if n < 1 or not 0 <= deviation < math.inf:
        raise ValueError(f"{n} items with a deviation of {deviation:g} are nothing to plan with")
    return deviation / math.sqrt(n)

"""How each rater did on lines of known truth, to which side they lean, and whether their ratings count."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from wizard_jax.evaluate.people.key import Key, Line
from wizard_jax.evaluate.people.ratings import Rating
from wizard_jax.evaluate.people.rules import Conduct, broken
from wizard_jax.evaluate.statistics.shares import Proportion, wilson

SIDES = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Rater:
    """One rater; a share is None where there was no case of it."""

    name: str
    rated: int
    lines: int
    """Of the sheet: fewer rated are told, and count."""
    excluded: tuple[str, ...]
    """The rules broken, in words; () for a rater who counts."""
    attention: Proportion | None
    """Attention checks answered rightly."""
    identical: Proportion | None
    """Pairs of equal sides of which neither was preferred."""
    self_agreement: Proportion | None
    """Repeats, mostly with the sides exchanged, of which the same was said as the first time."""
    first_side: Proportion | None
    """Side A among the verdicts for one side; 0.5 for a rater without a lean, as the sides were drawn."""
    seconds: float | None
    """Median of the times of a line; None: from a CSV."""


def rater(name: str, ratings: Sequence[Rating], key: Key) -> Rater:
    """What can be said of one rater by the key."""
    sheet = {line.id: line for line in key.sheets[name]}
    said = {rating.id: rating.verdict for rating in ratings}
    conduct = _conduct(ratings, sheet, seconds=key.rules.seconds)
    sided = [verdict for id_, verdict in said.items() if sheet[id_].kind == "question" and verdict in SIDES]
    times = [rating.seconds for rating in ratings if rating.seconds is not None]
    return Rater(
        name=name,
        rated=len(ratings),
        lines=len(sheet),
        excluded=broken(conduct, key.rules),
        attention=_share(conduct.attention),
        identical=_share(conduct.identical),
        self_agreement=_share(conduct.repeats),
        first_side=_share((sided.count("a"), len(sided))),
        seconds=statistics.median(times) if times else None,
    )


def _conduct(ratings: Sequence[Rating], sheet: dict[str, Line], *, seconds: float) -> Conduct:
    said = {rating.id: rating.verdict for rating in ratings}
    checks = [said[id_] == sheet[id_].expected for id_ in said if sheet[id_].kind == "attention"]
    neither = [said[id_] not in SIDES for id_ in said if sheet[id_].kind == "identical"]
    again = [line for line in sheet.values() if line.kind == "repeat" and {line.id, line.repeats} <= set(said)]
    same = [unexchanged(said[line.id], line) == unexchanged(said[line.repeats], sheet[line.repeats]) for line in again]
    fast = [rating.seconds < seconds for rating in ratings if rating.seconds is not None]
    return Conduct(
        attention=(sum(checks), len(checks)),
        identical=(sum(neither), len(neither)),
        repeats=(sum(same), len(same)),
        fast=(sum(fast), len(fast)),
    )


def unexchanged(verdict: str, line: Line) -> str:
    """A verdict as it would read had the candidate, or the later instruction, stood on side A."""
    return {"a": "b", "b": "a"}.get(verdict, verdict) if line.exchanged else verdict


def _share(cases: tuple[int, int]) -> Proportion | None:
    return wilson(*cases) if cases[1] else None

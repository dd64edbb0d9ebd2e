"""What raters found: who wins, what is harder, what can be answered, how far people agree, and judges with them.

Of `said` below there is one for each question that a rater who counts has rated; figures are resampled by item.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from wizard_jax.evaluate.people.key import Line
from wizard_jax.evaluate.people.questions import VERDICTS
from wizard_jax.evaluate.people.raters import unexchanged
from wizard_jax.evaluate.people.ratings import Rating
from wizard_jax.evaluate.statistics.agreement import Agreement, agreement
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, mean
from wizard_jax.evaluate.statistics.wins import Comparison, item_scores, paired_difference, win_rate

_MOST_APART = 4.0  # of two grades from 1 to 5


class JudgeVerdict(Protocol):
    """What one judge said of one pair: `strict` is 1 where both orders prefer the candidate, -1 the baseline, else 0.

    It is None where an order was not graded. Only verdicts on sample 0, which people see, stand beside theirs.
    """

    @property
    def judge(self) -> str: ...
    @property
    def item(self) -> str: ...
    @property
    def candidate(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def sample(self) -> int: ...
    @property
    def strict(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Said:
    """One rating of a question, with its line."""

    rater: str
    line: Line
    rating: Rating

    @property
    def verdict(self) -> str:
        return unexchanged(self.rating.verdict, self.line)

    @property
    def sides(self) -> tuple[str, ...]:
        return self.line.sides[::-1] if self.line.exchanged else self.line.sides

    @property
    def rounds(self) -> tuple[int | None, ...]:
        return self.line.rounds[::-1] if self.line.exchanged else self.line.rounds

    @property
    def value(self) -> float:
        """1 for the candidate or for the later instruction as the harder one, -1 for the other, 0 for neither."""
        return {"a": 1.0, "b": -1.0, "unclear": math.nan}.get(self.verdict, 0.0)


@dataclass(frozen=True, kw_only=True)
class Grades:
    """Of one aspect, the means over items that both were graded on."""

    candidate: float
    baseline: float
    difference: Comparison


@dataclass(frozen=True, kw_only=True)
class JudgeFigures:
    """A judge beside people, on the items that both said something about."""

    judge: str
    items: int
    with_majority: Agreement | None
    """With what most people say of an item; a draw between them is a tie."""
    with_a_person: Estimate
    """The share of people whose verdict is the judge's."""
    between_people: Estimate | None
    """The share of pairs of people with the same verdict, on those of the items that two or more rated."""
    beyond_people: Comparison | None
    """How much oftener the judge agrees with a person than people do with each other, on those items."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two models, or a round and the round before it, of which people said which is better, or harder."""

    candidate: str
    baseline: str
    ratings: int
    verdicts: Mapping[str, int]
    """How often each was said, with a for the candidate."""
    wins: Comparison | None
    agreement: Agreement | None
    """Between raters on candidate, neither and baseline; None where no item was rated twice."""
    grades: Mapping[str, Grades]
    judges: tuple[JudgeFigures, ...]
    scores: Mapping[str, float]
    """Item -> the mean over raters of 1 for the candidate, 0.5 for neither, 0 for the baseline."""


@dataclass(frozen=True, kw_only=True)
class Answerable:
    """Instructions of one round, or of all, of which people said whether they can be answered."""

    round: str
    verdicts: Mapping[str, int]
    share: Estimate
    """That can, over instructions, each the mean over raters."""
    agreement: Agreement | None


def compared(said: Sequence[Said], verdicts: Iterable[JudgeVerdict], *, bootstrap: Bootstrap) -> tuple[Compared, ...]:
    """Of the form answers: each pair of models."""
    groups: dict[tuple[str, ...], list[Said]] = {}
    for one in said:
        groups.setdefault(one.sides, []).append(one)
    verdicts = tuple(verdicts)
    return tuple(_compared(pair, own, verdicts, bootstrap) for pair, own in groups.items())


def harder(said: Sequence[Said], *, bootstrap: Bootstrap) -> tuple[Compared, ...]:
    """Of the form harder: each pair of rounds; the later is the candidate."""
    groups: dict[tuple[str, ...], list[Said]] = {}
    for one in said:
        groups.setdefault(tuple(_round(number) for number in one.rounds), []).append(one)
    return tuple(_compared(pair, own, (), bootstrap) for pair, own in sorted(groups.items()))


def answerable(said: Sequence[Said], *, bootstrap: Bootstrap) -> tuple[Answerable, ...]:
    """Of the form answerable: each round, then all."""
    rounds = sorted({_round(one.rounds[0]) for one in said})
    parts = [(name, [one for one in said if _round(one.rounds[0]) == name]) for name in rounds]
    if len(rounds) > 1:
        parts.append(("all", [*said]))
    return tuple(_answerable(name, own, bootstrap) for name, own in parts)


def _answerable(name: str, said: Sequence[Said], bootstrap: Bootstrap) -> Answerable:
    kinds = [*VERDICTS["answerable"]]
    _, yes = _table(said, lambda one: float(one.verdict == "yes"))
    _, table = _table(said, lambda one: float(kinds.index(one.verdict)))
    found = _agreement(table, bootstrap, tuple(map(float, range(len(kinds)))))
    return Answerable(
        round=name,
        verdicts=dict(Counter(one.verdict for one in said)),
        share=mean(np.nanmean(yes, axis=1), bootstrap=bootstrap, bounds=(0.0, 1.0)),
        agreement=found and replace(found, alpha_ordinal=None),  # these verdicts have no order
    )


def _round(number: int | None) -> str:
    return "no round" if number is None else f"round {number}"


def _compared(
    pair: tuple[str, ...], said: Sequence[Said], verdicts: Sequence[JudgeVerdict], bootstrap: Bootstrap
) -> Compared:
    items, table = _table(said, lambda one: one.value)
    scores = item_scores(table)
    told = ~np.isnan(scores)
    candidate, baseline = pair
    return Compared(
        candidate=candidate,
        baseline=baseline,
        ratings=len(said),
        verdicts=dict(Counter(one.verdict for one in said)),
        wins=win_rate(scores[told], bootstrap=bootstrap) if told.any() else None,
        agreement=_agreement(table, bootstrap),
        grades=_grades(said, bootstrap),
        judges=_judges(items, table, pair, verdicts, bootstrap),
        scores={item: float(score) for item, score in zip(items, scores, strict=True) if not math.isnan(score)},
    )


def _table(said: Sequence[Said], value: Callable[[Said], float]) -> tuple[list[str], np.ndarray]:
    """The items, and what each rater said of them: [items, raters], NaN where one said nothing."""
    items = list(dict.fromkeys(one.line.item for one in said))
    raters = sorted({one.rater for one in said})
    table = np.full((len(items), len(raters)), math.nan)
    for one in said:
        table[items.index(one.line.item), raters.index(one.rater)] = value(one)
    return items, table


def _agreement(
    table: np.ndarray, bootstrap: Bootstrap, categories: Sequence[float] = (-1.0, 0.0, 1.0)
) -> Agreement | None:
    if table.shape[1] < 2:
        return None
    try:
        return agreement(table, bootstrap=bootstrap, categories=categories)
    except NoEstimate:
        return None


def _grades(said: Sequence[Said], bootstrap: Bootstrap) -> dict[str, Grades]:
    """Of each aspect; a grade of 0, as it does not apply, says nothing."""
    found = {}
    for aspect in dict.fromkeys(aspect for one in said for aspect in one.rating.aspects):
        sides = [_table(said, functools.partial(_grade, aspect=aspect, side=n))[1] for n in (0, 1)]
        both = ~np.isnan(sides[0]) & ~np.isnan(sides[1])
        graded = both.any(axis=1)
        if not graded.any():
            continue
        first, second = (np.nanmean(np.where(both, side, math.nan)[graded], axis=1) for side in sides)
        gap = paired_difference(first, second, bootstrap=bootstrap, bounds=(-_MOST_APART, _MOST_APART))
        found[aspect] = Grades(candidate=float(first.mean()), baseline=float(second.mean()), difference=gap)
    return found


def _grade(one: Said, *, aspect: str, side: int) -> float:
    """Of the candidate (0) or the baseline (1); NaN where there is none, or it does not apply."""
    grades = one.rating.aspects.get(aspect, {})
    grade = grades.get("b" if one.line.exchanged != bool(side) else "a")
    return float(grade) if grade else math.nan


def _judges(
    items: Sequence[str],
    table: np.ndarray,
    pair: tuple[str, ...],
    verdicts: Sequence[JudgeVerdict],
    bootstrap: Bootstrap,
) -> tuple[JudgeFigures, ...]:
    judged: dict[str, dict[str, float]] = {}
    for one in verdicts:
        sign = {pair: 1, pair[::-1]: -1}.get((one.candidate, one.baseline))
        if sign and one.sample == 0 and one.strict is not None:
            judged.setdefault(one.judge, {})[one.item] = float(sign * one.strict)
    found = []
    for judge, own in judged.items():
        rows = [n for n, item in enumerate(items) if item in own]
        if rows:
            column = np.array([own[items[n]] for n in rows])
            found.append(_judge(judge, column, table[rows], bootstrap))
    return tuple(found)


def _judge(judge: str, column: np.ndarray, people: np.ndarray, bootstrap: Bootstrap) -> JudgeFigures:
    """One judge's verdicts [N] beside those of people [N, R], of whom at least one said something of each item."""
    said = ~np.isnan(people)
    count = said.sum(axis=1)
    alike = (people == column[:, None]).sum(axis=1) / count
    kinds = np.stack([(people == kind).sum(axis=1) for kind in (-1, 0, 1)], axis=1)
    majority = np.sign(kinds[:, 2] - kinds[:, 0]) * (kinds[:, 1] < np.maximum(kinds[:, 0], kinds[:, 2]))
    twice = count > 1
    pairs = (kinds * (kinds - 1)).sum(axis=1)[twice] / (count * (count - 1))[twice]
    some = len(pairs) > 0
    return JudgeFigures(
        judge=judge,
        items=len(column),
        with_majority=_agreement(np.stack([column, majority], axis=1), bootstrap),
        with_a_person=mean(alike, bootstrap=bootstrap, bounds=(0.0, 1.0)),
        between_people=mean(pairs, bootstrap=bootstrap, bounds=(0.0, 1.0)) if some else None,
        beyond_people=paired_difference(alike[twice], pairs, bootstrap=bootstrap) if some else None,
    )

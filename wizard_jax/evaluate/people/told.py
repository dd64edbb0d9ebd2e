"""What people said, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from wizard_jax.evaluate.people.figures import Answerable, Compared, JudgeFigures
from wizard_jax.evaluate.people.import_ import HumanResults
from wizard_jax.evaluate.people.raters import Rater
from wizard_jax.evaluate.statistics.agreement import Agreement
from wizard_jax.evaluate.statistics.bootstrap import Estimate
from wizard_jax.evaluate.statistics.shares import Proportion


def told(results: HumanResults) -> list[str]:
    """Everything with its n and 95 % interval."""
    counted = [one for one in results.raters if not one.excluded]
    lines = [f"{len(results.raters)} raters, of whom {len(counted)} count by the rules of the export"]
    lines += [line for one in results.raters for line in _rater(one)]
    if not counted:
        lines.append("every rater is left out: there is nothing to say of the rest")
    for one in results.compared:
        lines += ["", f"{one.candidate} against {one.baseline}", *_compared(one, "wins, ties half")]
    for one in results.harder:
        lines += ["", f"{one.candidate} harder than {one.baseline}", *_compared(one, "harder, equal half")]
    for part in results.answerable:
        lines += ["", f"answerable, {part.round}", *_answerable(part)]
    return lines


def _rater(one: Rater) -> Iterator[str]:
    time = "no times" if one.seconds is None else f"median {one.seconds:.1f} s a line"
    yield f"{one.name}: {one.rated} of {one.lines} lines, {time}{', LEFT OUT' if one.excluded else ''}"
    yield from (f"    {rule}" for rule in one.excluded)
    for name, share in (
        ("attention checks right", one.attention),
        ("equal sides left equal", one.identical),
        ("agreement with oneself", one.self_agreement),
        ("side A of decided ones", one.first_side),
    ):
        yield f"    {name}: {_share(share)}"


def _compared(one: Compared, what: str) -> Iterator[str]:
    said = ", ".join(f"{verdict} {count}" for verdict, count in sorted(one.verdicts.items()))
    yield f"    {one.ratings} ratings: {said} (a is {one.candidate})"
    if one.wins:
        wins = one.wins
        split = f"{wins.wins}/{wins.ties}/{wins.losses} items, sign test p {wins.p:.3g}"
        yield f"    {what}: {_figure(wins.estimate)}; won/even/lost {split}"
    yield from _agreement("people agree", one.agreement)
    for aspect, grades in one.grades.items():
        gap = _figure(grades.difference.estimate)
        yield f"    {aspect}: {grades.candidate:.2f} and {grades.baseline:.2f}, difference {gap}"
    for judge in one.judges:
        yield from _judge(judge)


def _judge(one: JudgeFigures) -> Iterator[str]:
    yield f"    judge {one.judge} on {one.items} items"
    yield f"        agrees with a person: {_figure(one.with_a_person)}"
    yield f"        people with each other, same items: {_figure(one.between_people)}"
    if one.beyond_people:
        yield f"        the judge beyond people: {_figure(one.beyond_people.estimate)}"
    yield from (f"    {line}" for line in _agreement("with the majority", one.with_majority))


def _answerable(one: Answerable) -> Iterator[str]:
    yield "    " + ", ".join(f"{verdict} {count}" for verdict, count in sorted(one.verdicts.items()))
    yield f"    can be answered: {_figure(one.share)}"
    yield from _agreement("people agree", one.agreement, ordered=False)


def _agreement(what: str, one: Agreement | None, *, ordered: bool = True) -> Iterator[str]:
    if one is None:
        yield f"    {what}: not told, as no item was rated twice"
        return
    for name in [field.name for field in fields(one)]:
        if name != "alpha_ordinal" or ordered:
            yield f"    {what}, {name.replace('_', ' ')}: {_figure(getattr(one, name))}"


def _figure(one: Estimate | None) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}], n {one.n}" if one else "not determined by these ratings"


def _share(one: Proportion | None) -> str:
    return f"{one.share:.2f} [{one.low:.2f}, {one.high:.2f}], {one.successes} of {one.trials}" if one else "no case"

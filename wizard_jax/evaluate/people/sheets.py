"""Who is asked what, in which order and on which side: drawn for each rater from one seed.

Part of the questions goes to every rater, each of the rest to two. Among them stand, unmarked, questions of known
truth: repeats with the sides exchanged, attention checks, and pairs of two equal sides.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.people.attention import attention_checks
from wizard_jax.evaluate.people.questions import Form, PeopleError, Question

Kind = Literal["question", "repeat", "attention", "identical"]

_FORMS: tuple[Form, ...] = ("answers", "harder", "answerable")
_OVERLAP = 2
"""Raters of a question that not all are asked."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How questions are shared among raters, and how many of known truth stand among them, as shares of a rater's."""

    shared: float = 0.25
    """Asked of every rater; the rest of two."""
    repeats: float = 0.05
    """Asked again later, with the sides exchanged."""
    attention: float = 0.05
    """Of which the right verdict is beyond doubt."""
    identical: float = 0.05
    """Of two equal sides."""

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise PeopleError(f"{name} is {share:g}: give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One line of a rater's sheet: a question as this rater sees it, with its sides in their order."""

    id: str
    """Says nothing about what is asked."""
    kind: Kind
    question: Question
    repeats: str = ""
    """Of a repeat: the id of the line that it asks again."""


def draw_sheets(questions: Sequence[Question], *, raters: int, mix: Mix, seed: int) -> dict[str, tuple[Shown, ...]]:
    """The sheet of each rater, whose names are rater-1 and on: the same for the same questions and seed.

    Raises:
      PeopleError: no rater, or too few questions for every rater to have one.
    """
    if raters < 1:
        raise PeopleError(f"raters is {raters}: ask for at least 1")
    names = [f"rater-{number}" for number in range(1, raters + 1)]
    parts: dict[str, list[Shown]] = {name: [] for name in names}
    for form in _FORMS:
        asked = [question for question in questions if question.form == form]
        for name, own in _shared_out(asked, names, mix, _rng(seed, form, "who is asked")).items():
            parts[name] += _part([asked[n] for n in own], asked, mix, name=name, form=form, seed=seed)
    idle = [name for name, sheet in parts.items() if not sheet]
    if idle:
        raise PeopleError(f"{len(questions)} questions do not reach {', '.join(idle)}: ask fewer raters")
    return {name: tuple(sheet) for name, sheet in parts.items()}


def drawn_items(items: Sequence[Item], sample: int, *, seed: int) -> tuple[Item, ...]:
    """So many of the items, in their order; all for 0 or where there are no more."""
    if not 0 < sample < len(items):
        return tuple(items)
    drawn = sorted(_rng(seed, "items").sample(range(len(items)), sample))
    return tuple(items[number] for number in drawn)


def _rng(seed: int, *key: str) -> random.Random:
    return random.Random(f"sheets of raters {json.dumps([seed, *key])}")


def _shared_out(
    questions: Sequence[Question], raters: Sequence[str], mix: Mix, rng: random.Random
) -> Mapping[str, list[int]]:
    """The numbers of the questions of each rater; loads differ by one at most."""
    order = rng.sample(range(len(questions)), len(questions))
    everyones = round(mix.shared * len(order)) if len(raters) > _OVERLAP else len(order)
    own: dict[str, list[int]] = dict.fromkeys(raters, order[:everyones])
    for number in order[everyones:]:
        for name in sorted(raters, key=lambda name: (len(own[name]), rng.random()))[:_OVERLAP]:
            own[name] = [*own[name], number]
    return own


def _part(
    own: Sequence[Question], questions: Sequence[Question], mix: Mix, *, name: str, form: Form, seed: int
) -> list[Shown]:
    """The part of a rater's sheet with the questions of one form, in the order in which they are shown."""
    if not own:
        return []
    rng = _rng(seed, form, name)
    order = _with_sides_drawn(rng.sample(own, len(own)), rng)
    known: list[tuple[Kind, Question]] = []
    checks = attention_checks(form)
    # As many times round the bank as it takes.
    rounds = range(math.ceil(_count(mix.attention, own) / len(checks)))
    drawn = [check for _ in rounds for check in rng.sample(checks, len(checks))][: _count(mix.attention, own)]
    known += [("attention", check) for check in _with_sides_drawn(drawn, rng)]
    if form != "answerable":
        # Rather of questions that this rater does not see otherwise.
        seen = {(question.item, question.pair) for question in own}
        unseen = [question for question in questions if (question.item, question.pair) not in seen] or own
        chosen = [rng.choice(unseen) for _ in range(_count(mix.identical, own))]
        known += [("identical", _identical(question, rng)) for question in chosen]
    lines: list[tuple[Kind, Question, Question | None]] = [("question", question, None) for question in order]
    for kind, question in known:
        lines.insert(rng.randint(0, len(lines)), (kind, question, None))
    # Asked first in the first half and again in the last third, so that there is something in between.
    first_half = [question for kind, question, _ in lines[: math.ceil(len(lines) / 2)] if kind == "question"]
    for question in rng.sample(first_half, min(_count(mix.repeats, own), len(first_half))):
        again = question.turned() if form != "answerable" else replace(question)
        lines.insert(rng.randint(len(lines) - len(lines) // 3, len(lines)), ("repeat", again, question))
    ids = {id(question): _id(seed, name, form, n) for n, (_, question, _) in enumerate(lines)}
    return [
        Shown(id=_id(seed, name, form, n), kind=kind, question=question, repeats=ids[id(first)] if first else "")
        for n, (kind, question, first) in enumerate(lines)
    ]


def _count(share: float, own: Sequence[Question]) -> int:
    return max(1, round(share * len(own))) if share else 0


def _with_sides_drawn(questions: Sequence[Question], rng: random.Random) -> list[Question]:
    """With either side first in half of the questions of each pair of models or rounds, or one more."""
    turned: dict[tuple[str, ...], list[bool]] = {}
    shown = []
    for pair in dict.fromkeys(question.pair for question in questions):
        count = sum(question.pair == pair for question in questions)
        halves = [False, True] * math.ceil(count / 2)
        rng.shuffle(halves)
        turned[pair] = halves
    for question in questions:
        turn = turned[question.pair].pop() and len(question.sides) > 1
        shown.append(question.turned() if turn else replace(question))
    return shown


def _identical(question: Question, rng: random.Random) -> Question:
    side = rng.choice(question.sides)
    return replace(question, sides=(side, side), exchanged=False)


def _id(seed: int, *key: object) -> str:
    # Starts with a letter that no number has: a spreadsheet would take 12e45 for one.
    return "q" + hashlib.sha256(json.dumps([seed, *key]).encode()).hexdigest()[:11]

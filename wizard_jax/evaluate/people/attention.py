"""Questions that anyone who reads them answers rightly: who does not, does not read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from wizard_jax.evaluate.people.questions import Form, Question, Side


@cache
def attention_checks(form: Form) -> tuple[Question, ...]:
    """All checks of a form; each has its right verdict, which for forms of two sides is the first."""
    bank = json.loads((Path(__file__).parent / "attention.json").read_text(encoding="utf-8"))
    if form == "answers":
        return _answers(bank[form])
    return _harder(bank[form]) if form == "harder" else _answerable(bank[form])


def _answers(bank: list[tuple[str, str]]) -> tuple[Question, ...]:
    """A right answer, and beside it the answer to another of these instructions."""
    return tuple(
        _check("answers", "a", bank[n][1], bank[(n + shift) % len(bank)][1], asked=bank[n][0])
        for shift in range(1, len(bank))
        for n in range(len(bank))
    )


def _harder(bank: dict[str, list[str]]) -> tuple[Question, ...]:
    return tuple(_check("harder", "a", hard, easy) for easy in bank["easy"] for hard in bank["hard"])


def _answerable(bank: dict[str, list[str]]) -> tuple[Question, ...]:
    return tuple(_check("answerable", verdict, text) for verdict, texts in bank.items() for text in texts)


def _check(form: Form, expected: str, *texts: str, asked: str = "") -> Question:
    sides: Any = tuple(Side(who=who, texts=(text,)) for who, text in zip(("right", "wrong"), texts, strict=False))
    return Question(form=form, item="attention", turns=(asked,) if asked else (), sides=sides, expected=expected)

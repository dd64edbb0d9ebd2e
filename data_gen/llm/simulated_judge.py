"""How the simulated model judges: by the truth of its world, or as bad judges do.

Of a task of the simulated world an answer is right or wrong, and a task is harder the more steps it has. Of any other
text this is a simulation and no judgement: an answer is better the more of the words of the question (and of the
reference answer) it takes up, and an instruction is harder by a point for every 15 words.

A judge that prefers "first" takes whatever is shown first, and where only one thing is shown finds it middling; one
that prefers "longer" counts characters, whatever they say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, assert_never

from data_gen import world
from data_gen.judging import verdicts
from data_gen.judging.verdicts import Choice
from data_gen.judging.wording import Comparison, Grading, Harder, Question, marker

Preference = Literal["well", "first", "longer"]

RIGHT, MIDDLING, WRONG = 9, 5, 2
"""Grades."""

_OPPOSITE: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie"}


def judged(question: Question, *, judges: Preference, fault: str | None = None) -> str:
    """The reply to a judge's prompt; with the fault "misjudged", the opposite of what it finds."""
    match question:
        case Grading():
            grade, reasons = _grade(question, judges)
            if fault == "misjudged":
                grade = verdicts.LOWEST + verdicts.HIGHEST - grade
            return verdicts.format_grade(grade, reasons, marker=marker(question))
        case Comparison():
            values = [_worth(question, said, judges) for said in (question.first, question.second)]
        case Harder():
            values = [_hardness(text, judges) for text in (question.first, question.second)]
        case _:
            assert_never(question)
    choice = "first" if judges == "first" else _choice(*values)
    if fault == "misjudged":
        choice = _OPPOSITE[choice]
    told = {"well": f"It comes to {values[0]:g} and {values[1]:g}.", "first": "The first one reads well."}
    reasons = told.get(judges, f"One has {values[0]:g} characters, the other {values[1]:g}.")
    return verdicts.format_preference(choice, reasons, marker=marker(question))


def difficulty_of(text: str, *, judges: Preference) -> int:
    """From 1 to 10: by steps, 2 points each; by words; or in the way of a bad judge."""
    match judges:
        case "well":
            steps = world.count_steps(text)
            return min(10, 2 * steps - 1 if steps else 1 + len(text.split()) // 15)
        case "first":
            return MIDDLING
        case "longer":
            return min(10, 1 + len(text) // 20)


def difficulties_of(texts: Sequence[str], *, judges: Preference) -> list[int]:
    """Of several that are shown together, in the order shown."""
    if judges == "first":
        return [max(1, 10 - place) for place in range(len(texts))]
    return [difficulty_of(text, judges=judges) for text in texts]


def _choice(first: float, second: float) -> Choice:
    return "tie" if first == second else "first" if first > second else "second"


def _grade(question: Grading, judges: Preference) -> tuple[int, str]:
    said = question.answers[-1]
    match judges:
        case "well":
            reference = question.references[-1] if question.references else ""
            share = _rightness(question.turns[-1], said, reference)
            return round(WRONG + (RIGHT - WRONG) * share), f"It comes to {share:g} of what it could."
        case "first":
            return MIDDLING, "It reads well."
        case "longer":
            return min(10, 1 + len(said) // 20), f"It has {len(said)} characters."


def _worth(question: Comparison, said: tuple[str, ...], judges: Preference) -> float:
    """What the answers of one side come to over all turns."""
    if judges == "longer":
        return float(sum(map(len, said)))
    references = question.references or ("",) * len(said)
    return sum(map(_rightness, question.turns, said, references))


def _hardness(text: str, judges: Preference) -> float:
    return float(len(text)) if judges == "longer" else difficulty_of(text, judges="well")


def _rightness(asked: str, said: str, reference: str) -> float:
    """From 0 to 1; exact for tasks of the world."""
    if task := world.parse(asked):
        return float(world.result(said) == world.result(world.answer(task)))
    sought, found = _words(f"{asked} {reference}"), _words(said)
    return len(sought & found) / len(sought) if sought else 0.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))

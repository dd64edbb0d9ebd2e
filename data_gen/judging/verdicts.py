"""What is read out of a judge's reply: its reasons, and the verdict or the grade on its last line.

    parse_preference("A adds wrongly.\\nVerdict: B", marker="Verdict")  -> Preference("second", "A adds wrongly.")
    parse_grade("It is right.\\n**Grade: 9/10**", marker="Grade")       -> Grade(9.0, "It is right.")

A reply from which this can not be read is None, never a guess: no such line, another line that contradicts it, or
text behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from data_gen.framing import without_thoughts
from data_gen.judging.wording import MARKDOWN

T = TypeVar("T")

LOWEST, HIGHEST = 1, 10
"""Of grades."""

Choice = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Preference:
    """Which of the two that were shown is better, or harder."""

    choice: Choice
    reasons: str


@dataclass(frozen=True)
class Grade:
    """From `LOWEST` to `HIGHEST`."""

    grade: float
    reasons: str


_CHOICE = re.compile(
    r"""\[{0,2} [ ]*
        (?: (?i: answer | assistant | instruction ) [ ] )? (?P<choice> A | B | (?i: tie ) )
        [ ]* \]{0,2} (?: [ ] is [ ] (?: better | harder ) )? \.?""",
    re.VERBOSE | re.ASCII,
)
_GRADE = re.compile(
    r"""\[{0,2} [ ]* (?P<grade> 10(?:\.0+)? | [1-9](?:\.[0-9]+)? ) [ ]* \]{0,2}
        (?: [ ]* (?: / | out[ ]of ) [ ]* 10 )? \.?""",
    re.VERBOSE | re.ASCII,
)


def parse_preference(reply: str, *, marker: str) -> Preference | None:
    """The verdict of a reply to a `Comparison` or to `Harder`, whose marker it must hold; None where there is none."""
    found: tuple[Choice, str] | None = _last_line(reply, marker=marker, read=_choice)
    return Preference(*found) if found else None


def parse_grade(reply: str, *, marker: str) -> Grade | None:
    """The grade of a reply to a `Grading`; None where there is none."""
    found = _last_line(reply, marker=marker, read=_grade)
    return Grade(*found) if found else None


def format_preference(choice: Choice, reasons: str, *, marker: str) -> str:
    """A reply that `parse_preference` reads."""
    return f"{reasons}\n{marker}: { {'first': 'A', 'second': 'B', 'tie': 'tie'}[choice] }"


def format_grade(grade: int, reasons: str, *, marker: str) -> str:
    """A reply that `parse_grade` reads."""
    return f"{reasons}\n{marker}: {grade}"


def _choice(said: str) -> Choice | None:
    matched = _CHOICE.fullmatch(said)
    if matched is None:
        return None
    match matched["choice"]:
        case "A":
            return "first"
        case "B":
            return "second"
        case _:
            return "tie"


def _grade(said: str) -> float | None:
    matched = _GRADE.fullmatch(said)
    return float(matched["grade"]) if matched else None


def _last_line(reply: str, *, marker: str, read: Callable[[str], T | None]) -> tuple[T, str] | None:
    """What the last line states behind the marker, and the lines before it."""
    said = without_thoughts(reply)
    if re.match(r"\s*<think", said):
        return None  # thoughts without an end: what stands last is one of them
    lines = said.rstrip().splitlines()
    begins = re.compile(rf"(?ai:{re.escape(marker)})[ ]*[:=][ ]*")
    stated: list[T | None] = []
    for line in lines:
        plain = line.translate(MARKDOWN).strip()
        if matched := begins.match(plain):
            stated.append(read(plain[matched.end() :]))
        elif plain:
            stated.append(None)
    values = {value for value in stated if value is not None}
    if not stated or stated[-1] is None or len(values) > 1:
        return None
    return stated[-1], _reasons(lines)


def _reasons(lines: list[str]) -> str:
    last = max(number for number, line in enumerate(lines) if line.translate(MARKDOWN).strip())
    return "\n".join(lines[:last]).strip()

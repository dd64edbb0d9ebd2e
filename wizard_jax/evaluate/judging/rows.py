"""What came of judging, a row of JSON each: verdicts on pairs in both orders, and grades.

    {"judge": "gemini", "item": "7", "candidate": "evolved", "baseline": "plain", "first": 1, "second": 0, ...}

A verdict is seen from the candidate: 1 it is better, 0 neither is, -1 the baseline is, None not graded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from configs.errors import UserError

How = Literal["asked", "identical", "no answer"]
"""Whether the judge was asked; answers that are letter for letter the same are a tie without asking."""


class RowError(UserError):
    """A row is none of those that are written here."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, once tuples are written as lists."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, also after JSON.

        Raises:
          RowError: a field too many or too few, or a value that none of ours has.
        """
        names = {field.name for field in fields(cls)}
        if strange := sorted(names ^ set(row)):
            raise RowError(f"not a row of judging: {strange[0]!r} is {'missing' if strange[0] in names else 'unknown'}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


@dataclass(frozen=True, kw_only=True)
class Verdict(_Row):
    """What one judge said of one pair, in both orders.

    Raises:
      RowError: a verdict that is none, or not one of everything for each order.
    """

    judge: str
    item: str
    candidate: str
    baseline: str
    first: int | None
    """With the candidate shown first."""
    second: int | None
    """With the candidate shown second."""
    lengths: tuple[int, int]
    """Characters of the candidate's and of the baseline's answer, over all turns."""
    sample: int = 0
    """Which of the two models' answers to the item, where there are several."""
    skill: str = ""
    difficulty: float | None = None
    how: How = "asked"
    reasons: tuple[str, str] = ("", "")
    """What the judge gave as reasons, by order."""
    problems: tuple[str, str] = ("", "")
    """Why it was not graded, by order; '' where it was."""
    unread: int = 0
    """Replies that could not be read, also those whose retry could."""
    prompts: str = ""
    """Which wording was asked (`data_gen.judging.wording.version`)."""

    def __post_init__(self) -> None:
        if {len(self.lengths), len(self.reasons), len(self.problems)} != {2}:
            raise RowError(
                "a verdict has two lengths, of candidate and baseline, and two reasons and problems, by order"
            )
        for verdict, problem in zip((self.first, self.second), self.problems, strict=True):
            if verdict not in (1, 0, -1, None):
                raise RowError(f"{verdict!r} is no verdict: 1 (better), 0 (tie), -1 (worse) or None (not graded)")
            if (verdict is None) != bool(problem):
                raise RowError(f"a verdict is {verdict} and its problem {problem!r}: what is not graded has a reason")

    @property
    def score(self) -> float | None:
        """The mean of the orders that were graded, with a win as 1, a tie as 0.5 and a loss as 0."""
        graded = [(verdict + 1) / 2 for verdict in (self.first, self.second) if verdict is not None]
        return sum(graded) / len(graded) if graded else None

    @property
    def strict(self) -> int | None:
        """What both orders say, a tie where they differ (FastChat's rule); None where one was not graded."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else 0


@dataclass(frozen=True, kw_only=True)
class Graded(_Row):
    """The grade, from 1 to 10, that one judge gave to one answer; or, of `model` '', to the item's own difficulty.

    Raises:
      RowError: a grade that is none.
    """

    judge: str
    item: str
    model: str
    turn: int
    """Of the answer that was graded, from 0."""
    sample: int = 0
    """Which of the model's answers to the item, where there are several."""
    grade: float | None
    length: int
    """Characters of what was graded."""
    skill: str = ""
    difficulty: float | None = None
    reasons: str = ""
    problem: str = ""
    """Why it was not graded; '' where it was."""
    unread: int = 0
    prompts: str = ""

    def __post_init__(self) -> None:
        if self.grade is not None and not (isinstance(self.grade, int | float) and 1 <= self.grade <= 10):
            raise RowError(f"{self.grade!r} is no grade from 1 to 10")
        if (self.grade is None) != bool(self.problem):
            raise RowError(f"a grade is {self.grade} and its problem {self.problem!r}: what is not graded has a reason")

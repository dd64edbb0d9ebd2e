"""What tasks, answers and judges have in common: items that are asked, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.errors import UserError


class TaskError(UserError):
    """A task's items can not be read, or are not what the config says."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that is asked of every model, in one turn or several, each after the answers to those before it."""

    id: str
    """Its own within the task."""
    turns: tuple[str, ...]
    """What the user says."""
    skill: str = ""
    """A category of the task, such as Math; '' where it has none."""
    difficulty: float | None = None
    """As the task labels it: WizardLM's 1 to 10, a number of steps, a number of constraints."""
    band: str = ""
    """Items of similar difficulty; '' where the task has none."""
    references: tuple[str, ...] = ()
    """For judges: a right answer to each turn."""
    target: str = ""
    """For a program: the right result."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By the name of a score, how much the item counts in it: 1 where it is not named, and 0 if it can not be scored.
    Of a share of several parts it is their number."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the task's own `score` needs beside that."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """A task as it was read."""

    items: tuple[Item, ...]
    source: str
    """The file, or what drew the items."""
    sha256: str
    """Of the file, or of what drew them."""
    notes: tuple[str, ...] = ()
    """What a reader of the results should know of them, such as items that are there twice."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Which skills belong together where each has too few items to speak of alone."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What results.json says of the task beside that."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said to an item; `problem` is why there is no answer, or ''."""

    item: str
    model: str
    texts: tuple[str, ...]
    """One for each turn."""
    finish_reasons: tuple[str, ...]
    problem: str = ""
    sample: int = 0
    """Which of the answers to the same item, where several are asked for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a program found of an answer: shares from 0 to 1 by name, the first of them the task's main one."""

    values: Mapping[str, float]
    extracted: str = ""
    """What the answer came down to."""

"""A lineage as steps: for each round what became of the instruction, from which one, and what changed in words."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data_gen.evolve import Lineage
from data_gen.records import Record, Rejected
from data_gen.word_counts import UNSPACED

WORDS_COMPARED = 600
"""Of longer texts no difference is shown: comparing takes time with the square of their length."""

_DROPPED_AFTER_THE_RUN = ("duplicate", "contaminated")

# A letter of a script that puts no spaces between words is one, or all of a text would be a single change.
_WORD = re.compile(rf"(?:[{UNSPACED}]|(?:(?![{UNSPACED}])\S)+)\s*|\s+")


@dataclass(frozen=True)
class Step:
    """One round of a lineage."""

    round: int
    operation: str
    """Empty in round 0."""
    verdict: Literal["kept", "dropped"]
    rule: str
    """The rule that dropped it; empty where it was kept."""
    evidence: str
    """What that rule saw."""
    instruction: str
    answer: str
    parent: str | None
    """The instruction that this one was rewritten from; None in round 0."""
    parent_round: int | None
    depth: int | None
    steps: int
    """Of a task of the simulated world; 0 for any other text."""
    words_added: int | None
    """As the record counts them; None for a seed and for what was dropped."""
    evolver: str
    model: str
    propensity: float
    flags: tuple[str, ...]
    source: str


class Change(NamedTuple):
    """A run of words that two texts share, or that only the later or only the earlier one has."""

    kind: Literal["same", "added", "removed"]
    text: str


def lineage_steps(lineage: Lineage) -> tuple[Step, ...]:
    """The steps in the order of rounds, each with the instruction that it was rewritten from.

    What a round dropped is nobody's parent, but for a seed, and for what was dropped after the run.
    """
    outcomes: list[Record | Rejected] = sorted((*lineage.records, *lineage.rejected), key=lambda one: one.round)
    steps: list[Step] = []
    current: Step | None = None
    for outcome in outcomes:
        parent = current
        if isinstance(outcome, Record) and outcome.parent:
            named = [step for step in steps if f"{outcome.lineage}/{step.round}" == outcome.parent]
            parent = named[0] if named else current
        steps.append(_step(outcome, parent=parent))
        if current is None or isinstance(outcome, Record) or outcome.rule in _DROPPED_AFTER_THE_RUN:
            current = steps[-1]
    return tuple(steps)


def lineage_id(lineage: Lineage) -> str:
    """The id that all of a lineage, which is never empty, goes back to."""
    return lineage.records[0].lineage if lineage.records else lineage.rejected[0].lineage


def _step(outcome: Record | Rejected, *, parent: Step | None) -> Step:
    kept = outcome if isinstance(outcome, Record) else None
    dropped = outcome if isinstance(outcome, Rejected) else None
    return Step(
        round=outcome.round,
        operation=outcome.operation,
        verdict="kept" if kept else "dropped",
        rule=dropped.rule if dropped else "",
        evidence=dropped.evidence if dropped else "",
        instruction=outcome.instruction,
        answer=outcome.answer,
        parent=parent.instruction if parent else None,
        parent_round=parent.round if parent else None,
        depth=kept.depth if kept else None,
        steps=kept.steps if kept else 0,
        words_added=kept.words_added if kept and parent else None,
        evolver=kept.evolver if kept else "",
        model=kept.model if kept else "",
        propensity=kept.propensity if kept else 0.0,
        flags=kept.flags if kept else (),
        source=outcome.source,
    )


def difference(before: str, after: str) -> tuple[Change, ...] | None:
    """What changed between two texts, word by word; None where either is too long to compare."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    if max(len(old), len(new)) > WORDS_COMPARED:
        return None
    # Words are compared without the space that follows them, and shown with it.
    earlier, later = ([word.rstrip() for word in words] for words in (old, new))
    matcher = difflib.SequenceMatcher(None, earlier, later, autojunk=False)
    changes = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            changes.append(Change("same", "".join(new[j1:j2])))
            continue
        if i1 < i2:
            # Where the later text ends before this, the space before it is gone as well.
            space = old[i1 - 1][len(earlier[i1 - 1]) :] if 0 < j1 == len(new) and i1 else ""
            changes.append(Change("removed", space + "".join(old[i1:i2])))
        if j1 < j2:
            changes.append(Change("added", "".join(new[j1:j2])))
    return tuple(changes)

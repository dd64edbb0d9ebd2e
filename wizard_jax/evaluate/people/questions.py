"""What raters are asked: which answer is better, which instruction is harder, whether one can be answered.

form         sides                        verdicts
answers      the answers of two models    a, b, tie, both_bad
harder       two instructions             a, b, same, unclear
answerable   one instruction              yes, contradiction, missing, no
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.errors import UserError
from data_gen.records import Record
from wizard_jax.evaluate.items import Answer, Item

Form = Literal["answers", "harder", "answerable"]

VERDICTS: Mapping[Form, Mapping[str, str]] = {
    "answers": {"a": "A is better", "b": "B is better", "tie": "Equally good", "both_bad": "Both bad"},
    "harder": {"a": "A is harder", "b": "B is harder", "same": "Equally hard", "unclear": "Cannot tell"},
    "answerable": {
        "yes": "Yes",
        "contradiction": "No: it contradicts itself",
        "missing": "No: something it needs is missing",
        "no": "No: for another reason",
    },
}
"""What may be said to each form, with the words that raters read, in the order of the keys 1 to 4."""

ASKED: Mapping[Form, str] = {
    "answers": "Which answer is better?",
    "harder": "Which instruction is harder to answer well?",
    "answerable": "Can this instruction be answered as it stands?",
}

CONFIDENCES = ("A guess", "Fairly sure", "Certain")
"""Said with the keys 1 to 3."""

ASPECTS = ("relevance", "knowledge", "reasoning", "calculation", "accuracy")
"""Those of which WizardLM's annotators graded each answer from 1 to 5 (arXiv 2304.12244)."""

GRADES = (0, 1, 2, 3, 4, 5)
"""Of an aspect; 0: it does not apply."""


class PeopleError(UserError):
    """Sheets can not be made, or ratings not be taken; the message says what to mend."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the things that stand side by side."""

    who: str
    """The model, or the id of the instruction; never shown."""
    texts: tuple[str, ...]
    """An answer to each turn, or the one instruction."""
    round: int | None = None
    """Of an instruction: how often it had been evolved."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to be judged: a candidate and a baseline, an instruction and the one before it, or one instruction."""

    form: Form
    item: str
    turns: tuple[str, ...] = ()
    """What the user says to both models; () for the other forms, whose sides are instructions."""
    sides: tuple[Side, ...]
    skill: str = ""
    difficulty: float | None = None
    expected: str = ""
    """Of an attention check: the verdict that is right beyond doubt."""
    exchanged: bool = False
    """Whether the baseline, or the earlier instruction, stands first."""

    @property
    def pair(self) -> tuple[str, ...]:
        """What is compared: two models, or the instructions of two rounds."""
        return tuple(side.who if self.form == "answers" else f"round {side.round}" for side in self.sides)

    def turned(self) -> Question:
        """With its sides exchanged."""
        expected = {"a": "b", "b": "a"}.get(self.expected, self.expected)
        return replace(self, sides=self.sides[::-1], expected=expected, exchanged=not self.exchanged)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One that is asked about by itself."""

    id: str
    text: str
    round: int | None = None
    skill: str = ""


@dataclass(frozen=True, kw_only=True)
class InstructionPair:
    """Two of which the second should be harder, such as an instruction and what evolution made of it."""

    first: Instruction
    second: Instruction


def compared_answers(
    items: Sequence[Item], answers: Sequence[Answer], *, baseline: str = ""
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """A question for each item and each pair of models, or each model and the baseline; and notes on what is left out.

    The candidate is the first side, the baseline (of every pair: the model named later) the second. Of several answers
    of a model to an item, people see the first.

    Raises:
      PeopleError: fewer than two models, an unknown baseline, or not one item that two models have answered.
    """
    models = tuple(dict.fromkeys(answer.model for answer in answers))
    if len(models) < 2:
        raise PeopleError(f"answers of {len(models)} model(s) ({', '.join(models)}): raters compare two or more")
    if baseline and baseline not in models:
        raise PeopleError(f"baseline {baseline!r} has answered nothing; the models are {', '.join(models)}")
    pairs = [(one, baseline) for one in models if one != baseline] if baseline else [*itertools.combinations(models, 2)]
    said = {(answer.item, answer.model): answer for answer in answers if answer.sample == 0}
    questions, left_out = [], 0
    for item, pair in itertools.product(items, pairs):
        found = [said.get((item.id, model)) for model in pair]
        if any(one is None or one.problem or len(one.texts) != len(item.turns) for one in found):
            left_out += 1
            continue
        sides = tuple(Side(who=one.model, texts=one.texts) for one in found if one)
        questions.append(
            Question(
                form="answers",
                item=item.id,
                turns=item.turns,
                sides=sides,
                skill=item.skill,
                difficulty=item.difficulty,
            )
        )
    if not questions:
        raise PeopleError("not one item has answers of two models: there is nothing to compare")
    notes = [f"{left_out:,} comparisons are left out: a model gave no answer"] if left_out else []
    if any(answer.sample for answer in answers):
        notes.append("people see the first of several answers of a model to an item")
    return tuple(questions), tuple(notes)


def compared_instructions(pairs: Iterable[InstructionPair]) -> tuple[Question, ...]:
    """Which of the two is harder?"""
    return tuple(
        Question(
            form="harder",
            item=f"{pair.first.id} {pair.second.id}",
            sides=tuple(Side(who=one.id, texts=(one.text,), round=one.round) for one in (pair.second, pair.first)),
            skill=pair.first.skill,
        )
        for pair in pairs
    )


def single_instructions(instructions: Iterable[Instruction]) -> tuple[Question, ...]:
    """Can it be answered?"""
    return tuple(
        Question(
            form="answerable",
            item=one.id,
            sides=(Side(who=one.id, texts=(one.text,), round=one.round),),
            skill=one.skill,
        )
        for one in instructions
    )


def evolved_instructions(
    records: Iterable[Record], *, count: int, seed: int
) -> tuple[tuple[InstructionPair, ...], tuple[Instruction, ...]]:
    """Of a data set: pairs of an instruction and what evolution made of it, and instructions by themselves.

    Up to `count` of either are drawn from the seed, of each round as many as of another while it has so many.

    Records with turns before their last instruction are left out: the instruction alone would not say enough.

    Raises:
      PeopleError: no record was evolved from another of the data set.
    """
    alone = {record.id: record for record in records if not record.context}
    pairs: dict[int, list[InstructionPair]] = {}
    singles: dict[int, list[Instruction]] = {}
    for record in alone.values():
        instruction = _instruction(record)
        singles.setdefault(record.round, []).append(instruction)
        if record.parent in alone:
            pair = InstructionPair(first=_instruction(alone[record.parent]), second=instruction)
            pairs.setdefault(record.round, []).append(pair)
    if not pairs:
        raise PeopleError("no record of the data set was evolved from another one in it: nothing can be compared")
    return (
        tuple(_spread(pairs, count, random.Random(f"pairs of instructions {seed}"))),
        tuple(_spread(singles, count, random.Random(f"single instructions {seed}"))),
    )


def _instruction(record: Record) -> Instruction:
    return Instruction(id=record.id, text=record.instruction, round=record.round)


def _spread(groups: Mapping[int, list[Any]], count: int, rng: random.Random) -> list[Any]:
    """Up to `count` of all, one of each group in turn while it lasts."""
    shuffled = [rng.sample(group, len(group)) for _, group in sorted(groups.items())]
    in_turn = [one for row in itertools.zip_longest(*shuffled) for one in row if one is not None]
    return in_turn[:count]

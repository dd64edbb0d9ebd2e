"""Pairs of which the truth is known, and what a judge says of them.

    a right and a wrong answer to a task of the simulated world     the wrong one is the longer in half of the pairs
    an easier and a harder instruction                              so is the easier one, as far as the items allow

The simulated world is always there. IFEval's number of constraints and GSM8K's number of steps are known as well: the
items of a task that says its difficulty give such pairs too. Length is balanced so that "longer is better" is right
half of the time: a judge has to beat it (`health.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.errors import UserError
from data_gen import world
from data_gen.measure.asking import together
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.judging.judge import Panelist, compare, compare_instructions, grade, grade_instruction
from wizard_jax.evaluate.judging.rows import Graded, Verdict
from wizard_jax.evaluate.statistics.bias import NEAR

WORLD = "simulated world"
RIGHT, WRONG = "right", "wrong"
"""The candidate and the baseline of verdicts on answers."""

_STEPS = (1, 2, 3, 4)
_DRAWS = 1_000


class CalibrationError(UserError):
    """Items of which no pairs of known truth can be made."""


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """A task with a right and a wrong answer."""

    item: Item
    right: Answer
    wrong: Answer


@dataclass(frozen=True, kw_only=True)
class InstructionPair:
    """Two instructions, of which one is known to be harder."""

    id: str
    harder: str
    easier: str
    difficulties: tuple[float, float]
    """Of the harder and the easier one, such as numbers of steps."""
    source: str


@dataclass(frozen=True, kw_only=True)
class KnownTruth:
    """What a judge is tried on."""

    answers: tuple[AnswerPair, ...]
    instructions: tuple[InstructionPair, ...]

    @property
    def pairs(self) -> tuple[AnswerPair | InstructionPair, ...]:
        return self.answers + self.instructions


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a judge said of it: verdicts whose candidate is the right answer or the harder instruction, and grades."""

    answers: tuple[Verdict, ...] = ()
    instructions: tuple[Verdict, ...] = ()
    grades: tuple[Graded, ...] = ()
    """Of right and wrong answers."""
    difficulties: tuple[Graded, ...] = ()
    """Of harder and easier instructions."""


def known_truth(pairs: int, *, seed: int, items: Sequence[Item] = (), source: str = "") -> KnownTruth:
    """So many pairs of answers and of instructions from the simulated world, and of instructions from `items`, if any.

    `items` are those of a task whose difficulty is known, not one that a model gave a label; `source` is its name.

    Raises:
      CalibrationError: the items have fewer than two difficulties.
    """
    rng = random.Random(f"pairs of known truth {seed}")
    instructions = tuple(_world_instructions(number, rng) for number in range(pairs))
    if items:
        instructions += pairs_of_items(items, pairs=pairs, seed=seed, source=source)
    return KnownTruth(answers=tuple(_answer_pair(number, rng) for number in range(pairs)), instructions=instructions)


async def calibrate(
    pair: AnswerPair | InstructionPair, *, judge: Panelist, asks: Literal["pairwise", "graded", "both"]
) -> Calibration:
    """Asks a judge about one pair what the evaluation will ask of it: two requests pairwise, two graded.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    parts: list[Coroutine[Any, Any, Calibration]] = []
    if asks != "graded":
        parts.append(_compared(pair, judge))
    if asks != "pairwise":
        parts.append(_graded(pair, judge))
    return joined(await together(parts))


async def _compared(pair: AnswerPair | InstructionPair, judge: Panelist) -> Calibration:
    if isinstance(pair, AnswerPair):
        return Calibration(answers=(await compare(pair.item, pair.right, pair.wrong, judge=judge),))
    verdict = await compare_instructions(
        pair.harder, pair.easier, item=pair.id, source=pair.source, difficulty=pair.difficulties[0], judge=judge
    )
    return Calibration(instructions=(verdict,))


async def _graded(pair: AnswerPair | InstructionPair, judge: Panelist) -> Calibration:
    if isinstance(pair, AnswerPair):
        right, wrong = await together([grade(pair.item, said, judge=judge) for said in (pair.right, pair.wrong)])
        return Calibration(grades=right + wrong)
    texts = (("harder", pair.harder, pair.difficulties[0]), ("easier", pair.easier, pair.difficulties[1]))
    rows = [
        grade_instruction(text, item=f"{pair.id}/{which}", source=pair.source, known=known, judge=judge)
        for which, text, known in texts
    ]
    return Calibration(difficulties=tuple(await together(rows)))


def joined(parts: Iterable[Calibration]) -> Calibration:
    """What was said of all pairs, from what was said of each."""
    parts = tuple(parts)
    return Calibration(
        answers=tuple(row for part in parts for row in part.answers),
        instructions=tuple(row for part in parts for row in part.instructions),
        grades=tuple(row for part in parts for row in part.grades),
        difficulties=tuple(row for part in parts for row in part.difficulties),
    )


# --- pairs


def pairs_of_items(items: Sequence[Item], *, pairs: int, seed: int, source: str) -> tuple[InstructionPair, ...]:
    """So many different pairs of items that differ in difficulty, or as many as a long search finds.

    Raises:
      CalibrationError: the items have fewer than two difficulties.
    """
    rated = [(item.difficulty, item) for item in items if item.difficulty is not None]
    if len({difficulty for difficulty, _ in rated}) < 2:
        raise CalibrationError(f"the items of {source} do not differ in difficulty: they can not calibrate a judge")
    rng = random.Random(f"pairs of {source} {seed}")
    found: dict[str, InstructionPair] = {}

    def draw() -> InstructionPair | None:
        (most, harder), (least, easier) = sorted(rng.sample(rated, 2), key=lambda drawn: drawn[0], reverse=True)
        id_ = f"known/{harder.id}/{easier.id}"
        if most == least or id_ in found:
            return None
        return InstructionPair(
            id=id_, harder=harder.turns[0], easier=easier.turns[0], difficulties=(most, least), source=source
        )

    for number in range(pairs):
        if pair := _balanced(draw, number):
            found[pair.id] = pair
    return tuple(found.values())


def _world_instructions(number: int, rng: random.Random) -> InstructionPair:
    """Of tasks with one step between them, in any form of the input, so that the easier one can be the longer."""
    steps = _STEPS[number % len(_STEPS)]

    def draw() -> InstructionPair:
        harder, easier = (world.sample_task(rng, steps=count) for count in (steps + 1, steps))
        texts = [
            world.render(replace(task, form=rng.choice(world.FORMS), opener=rng.choice(world.OPENERS)))
            for task in (harder, easier)
        ]
        return InstructionPair(
            id=f"known/{number}", harder=texts[0], easier=texts[1], difficulties=(steps + 1, steps), source=WORLD
        )

    pair = _balanced(draw, number // len(_STEPS) + number)  # alternating among those of one number of steps too
    assert pair is not None, "every draw is a pair"
    return pair


def _balanced(draw: Callable[[], InstructionPair | None], number: int) -> InstructionPair | None:
    """The first pair drawn whose harder one is longer, for odd numbers shorter; any where none is drawn so."""
    other = None
    for _ in range(_DRAWS):
        if (pair := draw()) is None:
            continue
        gap = len(pair.harder) - len(pair.easier)
        if gap > 0 if number % 2 == 0 else gap < 0:
            return pair
        other = other or pair
    return other


def _answer_pair(number: int, rng: random.Random) -> AnswerPair:
    """One answer is the result alone, the other has a line for each step: the wrong one in half of the pairs."""
    while True:
        task = world.sample_task(rng, steps=_STEPS[number // 2 % len(_STEPS)])
        wrong = _mistaken(task, rng)
        if wrong is None:
            continue
        brief, detailed = (wrong, task) if number % 2 == 0 else (task, wrong)
        short, long = world.result(world.answer(brief)), _in_steps(detailed, told=task)
        if len(long) - len(short) > NEAR:
            right, other = (long, short) if number % 2 == 0 else (short, long)
            item = Item(
                id=f"known/{number}", turns=(world.render(task),), skill=WORLD, difficulty=float(len(task.steps))
            )
            return AnswerPair(item=item, right=_answer(item, RIGHT, right), wrong=_answer(item, WRONG, other))


def _mistaken(task: world.Task, rng: random.Random) -> world.Task | None:
    """The task with another step in the place of one, so that its result is another; None where there is no such."""
    others = [
        replace(task, steps=(*task.steps[:at], name, *task.steps[at + 1 :]))
        for at in range(len(task.steps))
        for name in world.STEPS
    ]
    right = world.trace(task)[-1]
    wrong = [other for other in others if world.is_valid(other) and world.trace(other)[-1] != right]
    return rng.choice(wrong) if wrong else None


def _in_steps(task: world.Task, *, told: world.Task) -> str:
    """The list after each step on a line of its own, under the words of the task `told`, then the usual answer."""
    lines = [
        f"{world.STEPS[name].phrase}: {' '.join(items)}"
        for name, items in zip(told.steps, world.trace(task), strict=True)
    ]
    return "\n".join([*lines, world.answer(task)])


def _answer(item: Item, model: str, text: str) -> Answer:
    return Answer(item=item.id, model=model, texts=(text,), finish_reasons=("stop",))

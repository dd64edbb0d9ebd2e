"""Every judge on every pair of answers, and on pairs of known truth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from data_gen.measure.asking import Judge as Model
from data_gen.side_by_side import RunError
from wizard_jax.evaluate.answering import GIVEN_UP, Asked, Asking, together
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.judging.calibration import (
    AnswerPair,
    Calibration,
    InstructionPair,
    KnownTruth,
    calibrate,
    joined,
)
from wizard_jax.evaluate.judging.judge import Panelist, compare, grade
from wizard_jax.evaluate.judging.rows import Graded, Verdict

Answers: TypeAlias = Mapping[str, Mapping[str, Sequence[Answer]]]
"""By model and item, as many as there are samples."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What all judges said."""

    verdicts: tuple[Verdict, ...]
    grades: tuple[Graded, ...]
    calibrations: Mapping[str, Calibration]
    """By judge; empty where there are no gates."""
    models: Mapping[str, str]
    """What each judge's server calls it."""


@dataclass(frozen=True)
class _Pair:
    item: Item
    candidate: Answer
    baseline: Answer


@dataclass(frozen=True)
class _Single:
    item: Item
    answer: Answer


_Said: TypeAlias = Verdict | tuple[Graded, ...] | Calibration
_Piece: TypeAlias = _Pair | _Single | AnswerPair | InstructionPair


def pairings(config: EvalConfig) -> list[tuple[str, str]]:
    """Who is compared with whom, (candidate, baseline): each with the baseline, or every pair where there is none."""
    if config.baseline:
        return [(name, config.baseline) for name in config.models if name != config.baseline]
    return [(second, first) for first, second in combinations(config.models, 2)]


def _pieces(config: EvalConfig, judge: str, items: Sequence[Item], answers: Answers, known: KnownTruth) -> list[_Piece]:
    """What a judge is asked: pairs of known truth first, so that a bad judge is known early."""
    asks = config.judges[judge].asks
    pieces: list[_Piece] = list(known.pairs)
    for item in items:
        if asks != "graded":
            for candidate, baseline in pairings(config):
                pairs = zip(answers[candidate][item.id], answers[baseline][item.id], strict=True)
                pieces += [_Pair(item, own, other) for own, other in pairs]
        if asks != "pairwise":
            pieces += [_Single(item, answer) for said in answers.values() for answer in said[item.id]]
    return pieces


async def judged(
    items: Sequence[Item], answers: Answers, *, known: KnownTruth, asking: Asking, tell: Callable[[], None]
) -> Judged:
    """Asks every judge; hosted ones side by side.

    Raises as `Asking.each` does, and:
      RunError: every request to a judge was given up, so there is nobody to judge.
    """
    config = asking.config
    found: dict[tuple[str, int], _Said] = {}
    models: dict[str, str] = {}
    for names in together({name: judge.llm for name, judge in config.judges.items()}):
        async with contextlib.AsyncExitStack() as opened:
            asked = {
                name: await opened.enter_async_context(asking.open(config.judges[name].llm, role=f"judges.{name}.llm"))
                for name in names
            }
            models |= {name: one.name for name, one in asked.items()}

            async def one(piece: tuple[str, int, _Piece], asked: Mapping[str, Asked] = asked) -> None:
                name, number, what = piece
                found[name, number] = await _said(what, config, name, asked[name])
                tell()

            pieces = [
                (name, number, piece)
                for name in names
                for number, piece in enumerate(_pieces(config, name, items, answers, known))
            ]
            await asking.each(pieces, one, at_once=max(each.at_once for each in asked.values()))
        for name in names:
            problems = [problem for (judge, _), said in found.items() if judge == name for problem in _problems(said)]
            if problems and all(problem.startswith(GIVEN_UP) for problem in problems):
                raise RunError(
                    f"every request to judges.{name} was {problems[-1]}. What was said so far is saved: mend this and "
                    "start the same command again"
                )
    rows = [(name, found[name, number]) for name, number in sorted(found, key=lambda key: key[1])]
    return Judged(
        verdicts=tuple(row for _, row in rows if isinstance(row, Verdict)),
        grades=tuple(row for _, several in rows if isinstance(several, tuple) for row in several),
        calibrations={
            judge: joined(row for name, row in rows if name == judge and isinstance(row, Calibration))
            for judge in config.judges
        },
        models=models,
    )


def _problems(said: _Said) -> Iterator[str]:
    """Of each request that a judge was sent; '' where it was graded."""
    match said:
        case Verdict():
            yield from said.problems if said.how == "asked" else ()
        case Calibration():
            yield from (problem for row in (*said.answers, *said.instructions) for problem in row.problems)
            yield from (row.problem for row in (*said.grades, *said.difficulties))
        case _:
            yield from (row.problem for row in said)


async def _said(what: _Piece, config: EvalConfig, name: str, asked: Asked) -> _Said:
    told = config.judges[name]
    panelist = Panelist(
        name=name, llm=Model(model=asked.chat, name=asked.name, seed=config.seed, max_tokens=told.max_tokens)
    )
    match what:
        case _Pair():
            return await compare(what.item, what.candidate, what.baseline, judge=panelist)
        case _Single():
            return await grade(what.item, what.answer, judge=panelist)
        case _:
            return await calibrate(what, judge=panelist, asks=told.asks)

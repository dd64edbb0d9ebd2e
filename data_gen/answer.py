"""Answering a data set again, with another model or in another style: instructions stay, answers are new.

An ablation of depth needs it: with the seeds' own answers in round 0 and a model's in the others, or with answers
that grow with the instructions, a sweep would compare teachers and lengths as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import open_stage, read_complete
from configs.interrupt import StopFlag, stop_flag
from data_gen import finish, shards
from data_gen.config import AnswerConfig
from data_gen.evolve import answered, model_name
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import ChatModel
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.stack import Pace, Prepared, open_stack, prepare
from data_gen.operations import answer_prompt
from data_gen.records import Record, Rejected, Turn
from data_gen.run import BudgetReached, Progress, Run, Work, places
from data_gen.settings import check_answer


class AnswerError(UserError):
    """A data set can not be answered as asked."""


def answer(config: AnswerConfig, out: Path, *, progress: Progress) -> dict[str, Any]:
    """Answers the records of a data set anew into `out`/dataset and returns the summary.

    Goes on where it stopped, as `generate` does. Must be called in the main thread, which gets the signals.

    Raises:
      UserError: bad settings, no key, no price, a data set that is damaged or has no record of these rounds.
      BudgetReached: with a data set of what the budget was enough for.
      Interrupted: SIGTERM or Ctrl-C came.
    """
    check_answer(config)
    if (out / "complete.json").exists():
        with open_stage(out, config, stage="answer"):
            return read_complete(out)
    total = sum(1 for _ in _unanswered(config))
    if not total:
        raise AnswerError(f"{config.dataset} has no record of the rounds {config.rounds}: see its report.html")
    prepared = prepare({"answer": config.llm})
    with open_stage(out, config, stage="answer") as folder:
        with stop_flag() as stop:
            summary, unfinished = asyncio.run(_answer(config, out, prepared, total=total, progress=progress, stop=stop))
        if unfinished:
            raise BudgetReached(unfinished)
        folder.complete(summary)
    return summary


async def _answer(
    config: AnswerConfig, out: Path, prepared: Prepared, *, total: int, progress: Progress, stop: StopFlag
) -> tuple[dict[str, Any], str]:
    async with Journal.open(out / JOURNAL) as journal:
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(prepared, journal=journal, ledger=ledger, pace=Pace.of(config)) as stack:
            run = Run(journal=journal, stack=stack, progress=progress, stop=stop, total=total)
            work = Work(
                total=total,
                pieces=lambda: enumerate(_unanswered(config)),
                outcomes=lambda record, model: _outcome(record, model, config=config),
                open_at_once=places(config.concurrency, stack=stack, total=total),
            )
            async with run.going_on():
                await run.through(work)
            made = finish.made_by(run, facts={"answered_from": config.dataset})
            summary = finish.write(config, out, made=made)
            return summary, run.unfinished


def _unanswered(config: AnswerConfig) -> Iterator[Record]:
    """The records of the rounds asked for, without their answers and what was found of them."""
    for record in shards.read_dataset(Path(config.dataset)):
        if not config.rounds or record.round in config.rounds:
            yield replace(record, turns=(*record.context, Turn("user", record.instruction)), flags=(), model="")


async def _outcome(
    record: Record, model: ChatModel, *, config: AnswerConfig
) -> AsyncGenerator[Record | Rejected, None]:
    prompt = answer_prompt(config.style, record.instruction, words=config.words)
    yield await answered(record, prompt, by=model_name(config.llm), model=model, sampling=config)

"""Answering a data set again, with another model or in another style: instructions stay, answers are new.

An ablation of depth needs it: with the seeds' own answers in round 0 and a model's in the others, or with answers
that grow with the instructions, a sweep would compare teachers and lengths as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import open_stage, read_complete
from configs.interrupt import StopFlag, stop_flag
from data_gen import finish, shards
from data_gen.config import AnswerConfig
from data_gen.evolve import answered, model_name
from data_gen.forecast import SAMPLED_SEEDS, expected_answers
from data_gen.llm import journal_file
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import ChatModel
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.stack import Prepared, Sending, open_stack, prepare
from data_gen.operations import answer_prompt
from data_gen.records import Record, Rejected, Turn
from data_gen.report_counts import Distinct
from data_gen.run import Progress, Run, Work, places
from data_gen.settings import check_answer
from data_gen.side_by_side import BudgetReached

ANSWERED = "dataset_sha256"
"""The entry in the journal that says which data set is answered."""


class AnswerError(UserError):
    """A data set can not be answered as asked."""


def answer(
    config: AnswerConfig, out: Path, *, progress: Progress, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Answers the records of a data set anew into `out`/dataset and returns the summary.

    Goes on where it stopped, as `generate` does. `say` is told what to expect before money is spent. Must be called in
    the main thread, which gets the signals.

    Raises:
      UserError: bad settings, no key, no price, a data set that is damaged or has no record of these rounds.
      BudgetReached: with a data set of what the budget was enough for.
      Interrupted: SIGTERM or Ctrl-C came.
    """
    check_answer(config)
    if (out / "complete.json").exists():
        with open_stage(out, config, stage="answer"):
            return read_complete(out)
    asked = _asked(config)
    prepared = prepare({"answer": config.llm})
    sample = islice(_unanswered(config), SAMPLED_SEEDS)
    for line in expected_answers(config, records=sample, total=asked.records, prices=prepared.prices).told():
        say(line)
    with open_stage(out, config, stage="answer") as folder:
        with stop_flag() as stop:
            summary, unfinished = asyncio.run(_answer(config, out, prepared, asked=asked, progress=progress, stop=stop))
        if unfinished:
            raise BudgetReached(unfinished)
        folder.complete(summary)
    return summary


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be answered."""

    sha256: str
    """Of the data set."""
    records: int
    lineages: int


def _asked(config: AnswerConfig) -> _Asked:
    """Counts the records, after the data set was found to be intact."""
    records, lineages = 0, Distinct()
    for record in _unanswered(config):
        records += 1
        lineages.add(record.lineage)
    if not records:
        raise AnswerError(f"{config.dataset} has no record of the rounds {config.rounds}: see its report.html")
    sha256 = shards.read_manifest(Path(config.dataset)).sha256
    return _Asked(sha256=sha256, records=records, lineages=lineages.count())


async def _answer(
    config: AnswerConfig, out: Path, prepared: Prepared, *, asked: _Asked, progress: Progress, stop: StopFlag
) -> tuple[dict[str, Any], str]:
    """The summary, and why the run is not finished, if it is not."""
    total = asked.records
    async with Journal.open(out / JOURNAL) as journal:
        await _check_dataset(config, out, asked, journal)
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:
            run = Run(journal=journal, stack=stack, progress=progress, stop=stop, total=total)
            work = Work(
                total=total,
                pieces=lambda: enumerate(_unanswered(config)),
                outcomes=lambda record, model: _outcome(record, model, config=config),
                open_at_once=places(config.concurrency, stack=stack, total=total),
            )
            async with run.going_on():
                await run.through(work)
            facts = {"seeds": asked.lineages, "answered_from": config.dataset, "answered_from_sha256": asked.sha256}
            made = finish.made_by(run, facts=facts)
            return await finish.write_run(run, config, out, made=made), run.unfinished


async def _check_dataset(config: AnswerConfig, out: Path, asked: _Asked, journal: Journal) -> None:
    """Raises AnswerError when the data set is not the one that the folder was begun with."""
    before = journal.read(partial(journal_file.decision, name=ANSWERED))
    if before is None:
        await journal.commit(partial(journal_file.save_decision, name=ANSWERED, payload=asked.sha256))
    elif before != asked.sha256:
        raise AnswerError(
            f"{config.dataset} is not the data set that {out} was begun with: its records are others; "
            "restore it, or answer the new one into another --out"
        )


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

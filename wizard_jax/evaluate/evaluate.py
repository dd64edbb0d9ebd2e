"""`wizard eval`: what models say to the items of a task, what programs and judges find of it, and results.json.

    out/config.gin  journal.sqlite  answers.jsonl  verdicts.jsonl  grades.jsonl  results.json  complete.json (last)

Every reply is committed to the journal before it is used, so a run that was stopped asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.folder import COMPLETE, open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen.llm import journal_file
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import BudgetSpent
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.pricing import dollars
from data_gen.llm.stack import Prepared, Sending, open_stack, prepare
from data_gen.side_by_side import BudgetReached
from wizard_jax.evaluate.answering import Asked, Asking, answers_of, hosted, together
from wizard_jax.evaluate.checks import check
from wizard_jax.evaluate.config import (
    GSM8K,
    Difficulty,
    EvalConfig,
    Harness,
    HeldOutLoss,
    IFEval,
    MTBench,
    Participant,
    SimulatedWorld,
    Validity,
    VicunaBench,
    WizardLMTestSet,
)
from wizard_jax.evaluate.difficulty import ifd_task, validity
from wizard_jax.evaluate.difficulty.pass_rate import pass_rate_results
from wizard_jax.evaluate.forecast import expected, pieces_in_all
from wizard_jax.evaluate.items import Answer, Item, Items, Score
from wizard_jax.evaluate.judged_results import GRADES, VERDICTS, judged_results
from wizard_jax.evaluate.judging.calibration import KnownTruth, known_truth
from wizard_jax.evaluate.judging.panel import Answers, Judged, judged
from wizard_jax.evaluate.measuring import MeasuredTask, measure_models, of_model
from wizard_jax.evaluate.results import ANSWERS, RESULTS, Page, answer_rows, model_results, score_names
from wizard_jax.evaluate.tasks import gsm8k, harness, held_out_loss, ifeval, mt_bench, simulated_world, vicuna, wizardlm
from wizard_jax.progress import Progress


@dataclass(frozen=True)
class AnsweredTask:
    """How a task's items are read, and how a program scores an answer to one, where one can."""

    read: Callable[[Any], Items]
    score: Callable[[Item, Answer], Score] | None = None
    sum_up: Callable[[Sequence[Item], Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None
    """What results.json says beside scores, of the items and the rows of answers.jsonl."""


TASKS: Mapping[type, AnsweredTask] = {
    SimulatedWorld: AnsweredTask(simulated_world.read, simulated_world.score),
    WizardLMTestSet: AnsweredTask(wizardlm.read),
    VicunaBench: AnsweredTask(vicuna.read),
    MTBench: AnsweredTask(mt_bench.read),
    IFEval: AnsweredTask(ifeval.read, ifeval.score),
    GSM8K: AnsweredTask(gsm8k.read, gsm8k.score),
    Validity: AnsweredTask(validity.read, validity.score, validity.validity_results),
}


MEASURED: Mapping[type, MeasuredTask] = {
    Difficulty: ifd_task.TASK,
    Harness: harness.TASK,
    HeldOutLoss: held_out_loss.TASK,
}


def evaluate(
    config: EvalConfig,
    out: Path,
    *,
    progress: Progress,
    say: Callable[[str], None] = print,
    page: Page | None = None,
) -> dict[str, Any]:
    """Evaluates into `out` and returns what results.json holds; `page` writes about it before it is complete.

    Raises:
      UserError: no model, no chat format, or a run whose own training data is not among `task.held_out_from`.
      BudgetReached: what was answered so far is kept, and a larger budget goes on.
      Interrupted: SIGTERM or Ctrl-C came; the answers so far are kept.
    """
    if (out / COMPLETE).exists():
        with open_stage(out, config, stage="eval"):
            return read_complete(out)
    # What can be wrong, before there is a folder
    check(config)
    if type(config.task) in MEASURED:
        return measure_models(config, MEASURED[type(config.task)], out, progress=progress, say=say, page=page)
    task = TASKS[type(config.task)]
    items = task.read(config.task)
    asked = items.items[: config.limit or None]
    for note in items.notes:
        say(note)
    is_rated = isinstance(config.task, GSM8K | IFEval)  # by a count, and not by a model's label
    known = known_truth(
        config.gates.pairs if config.judges else 0,
        seed=config.gates.seed,
        items=items.items if config.judges and is_rated else (),  # what a judge is tried on does not shrink with limit
        source=type(config.task).__name__,
    )
    prepared = prepare(hosted(_participants(config)))
    if prepared.prices:
        for line in expected(config, asked, known, prices=prepared.prices).told():
            say(line)
    with open_stage(out, config, stage="eval") as folder:
        with stop_flag() as stop:
            work = Work(items=asked, known=known, progress=progress, stop=stop)
            answers = asyncio.run(_ask(config, out, prepared, work))
        rows = answer_rows(asked, answers.answers, score=task.score)
        _write_rows(out / ANSWERS, rows)
        scores = score_names(rows)
        results = {
            "task": {
                "name": type(config.task).__name__,
                "source": items.source,
                "sha256": items.sha256,
                "items": len(asked),
                "notes": list(items.notes),
                **items.facts,
            },
            "models": {
                name: {
                    **answers.told[name],
                    **model_results([row for row in rows if row["model"] == name], scores=scores),
                }
                for name in config.models
            },
            **pass_rate_results(rows, seed=config.seed),
            **(task.sum_up(asked, rows) if task.sum_up is not None else {}),
            "spent": answers.spent,
            "spent_for": answers.spent_for,
        }
        if config.judges:
            _write_rows(out / VERDICTS, [row.to_dict() for row in answers.judged.verdicts])
            _write_rows(out / GRADES, [row.to_dict() for row in answers.judged.grades])
            results |= judged_results(config, answers.judged, asked, families=items.families)
        write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
        if page is not None:
            page(out, results)
        folder.complete(results)
    return results


def _participants(config: EvalConfig) -> dict[str, Participant]:
    """All that are asked, by where they stand in the config."""
    models = {f"models.{name}": model for name, model in config.models.items()}
    return models | {f"judges.{name}.llm": judge.llm for name, judge in config.judges.items()}


def _write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to ask."""

    items: Sequence[Item]
    known: KnownTruth
    progress: Progress
    stop: StopFlag


@dataclass(frozen=True)
class Answered:
    """What models and judges said, and what is to be told of each model."""

    answers: Answers
    told: Mapping[str, dict[str, Any]]
    judged: Judged
    spent: dict[str, float]
    spent_for: dict[str, dict[str, float]]
    """By what was asked for: answers, verdicts."""


async def _ask(config: EvalConfig, out: Path, prepared: Prepared, work: Work) -> Answered:
    items = work.items
    async with Journal.open(out / JOURNAL) as journal:
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:
            asking = Asking(config, journal, stack, work.stop)
            answers: dict[str, dict[str, tuple[Answer, ...]]] = {}
            told: dict[str, dict[str, Any]] = {}
            total, done = pieces_in_all(config, len(items), work.known), 0

            def tell(*_: Answer) -> None:
                nonlocal done
                done += 1
                spent = dollars(journal.spent.usd)
                work.progress(done, total, {"asked": journal.asked, "from the journal": journal.cached, "spent": spent})

            try:
                for names in together(config.models):
                    async with contextlib.AsyncExitStack() as opened:
                        asked = {
                            name: await opened.enter_async_context(
                                asking.open(config.models[name], role=f"models.{name}")
                            )
                            for name in names
                        }
                        told |= {name: _told(name, config.models[name], one) for name, one in asked.items()}
                        answers |= await answers_of(items, asked=asked, asking=asking, tell=tell)
                found = await judged(items, answers, known=work.known, asking=asking, tell=tell)
            except BudgetSpent as error:
                left = f"{total - done:,} of {total:,} answers and verdicts are left"
                raise BudgetReached(f"{error}. What was said so far is kept; {left}") from error
            by_purpose = journal.read(journal_file.spent_by_purpose).items()
            spent_for = {purpose: spent._asdict() for (_, purpose), spent in by_purpose}
            return Answered(answers, told, found, journal.spent._asdict(), spent_for)


def _told(name: str, participant: Any, asked: Asked) -> dict[str, Any]:
    """What results say of a model, whatever it answers."""
    opened = asked.opened
    if opened is None:
        return {"label": name, "model": asked.name, "notes": [], "untraced": ""}
    return of_model(name, participant, opened, weights=asked.name)

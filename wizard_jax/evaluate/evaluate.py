"""`wizard eval`: what models say to the items of a task, what programs and judges find of it, and results.json.

    out/config.gin  journal.sqlite  answers.jsonl  results.json  complete.json (last)

Every reply is committed to the journal before it is used, so a run that was stopped asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import COMPLETE, open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import BudgetSpent
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.pricing import dollars
from data_gen.llm.stack import Prepared, Sending, open_stack, prepare
from data_gen.side_by_side import BudgetReached
from wizard_jax.evaluate.answering import Asked, Asking, answers_of, hosted
from wizard_jax.evaluate.config import (
    GSM8K,
    EvalConfig,
    IFEval,
    Local,
    MTBench,
    Participant,
    SimulatedWorld,
    VicunaBench,
    WizardLMTestSet,
)
from wizard_jax.evaluate.items import Answer, Item, Items, Score
from wizard_jax.evaluate.local_chat import check_local
from wizard_jax.evaluate.results import ANSWERS, RESULTS, answer_rows, model_results
from wizard_jax.evaluate.tasks import gsm8k, ifeval, mt_bench, simulated_world, vicuna, wizardlm
from wizard_jax.progress import Progress
from wizard_jax.runs import find_model


@dataclass(frozen=True)
class AnsweredTask:
    """How a task's items are read, and how a program scores an answer to one, where one can."""

    read: Callable[[Any], Items]
    score: Callable[[Item, Answer], Score] | None = None


TASKS: Mapping[type, AnsweredTask] = {
    SimulatedWorld: AnsweredTask(simulated_world.read, simulated_world.score),
    WizardLMTestSet: AnsweredTask(wizardlm.read),
    VicunaBench: AnsweredTask(vicuna.read),
    MTBench: AnsweredTask(mt_bench.read),
    IFEval: AnsweredTask(ifeval.read, ifeval.score),
    GSM8K: AnsweredTask(gsm8k.read, gsm8k.score),
}


def evaluate(
    config: EvalConfig, out: Path, *, progress: Progress, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Evaluates into `out` and returns what results.json holds.

    Raises:
      UserError: no model, no chat format, or a run whose own training data is not among `task.held_out_from`.
      BudgetReached: what was answered so far is kept, and a larger budget goes on.
      Interrupted: SIGTERM or Ctrl-C came; the answers so far are kept.
    """
    if (out / COMPLETE).exists():
        with open_stage(out, config, stage="eval"):
            return read_complete(out)
    # What can be wrong, before there is a folder
    _check(config)
    task = TASKS[type(config.task)]
    items = task.read(config.task)
    asked = items.items[: config.limit or None]
    for note in items.notes:
        say(note)
    prepared = prepare(hosted({f"models.{name}": model for name, model in config.models.items()}))
    with open_stage(out, config, stage="eval") as folder:
        with stop_flag() as stop:
            answers = asyncio.run(_ask(config, out, prepared, items=asked, progress=progress, stop=stop))
        rows = answer_rows(asked, answers.answers, score=task.score)
        write_atomically(out / ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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
                name: {**answers.told[name], **model_results([row for row in rows if row["model"] == name])}
                for name in config.models
            },
            "spent": answers.spent,
        }
        write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
        folder.complete(results)
    return results


def _check(config: EvalConfig) -> None:
    """Raises UserError: what could not be evaluated."""
    if not config.models:
        raise UserError(
            "models names nobody: say who is evaluated, as in models.mine = @Local and models.mine.path = 'run'"
        )
    if config.baseline and config.baseline not in config.models:
        raise UserError(f"baseline is {config.baseline!r}, which is none of models: {', '.join(config.models)}")
    for name in ("max_tokens", "concurrency", "max_attempts", "samples"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}: must be at least 1")
    if config.samples > 1 and not config.temperature > 0:
        raise UserError(
            f"samples is {config.samples} and temperature {config.temperature}: every answer to an item would be the "
            "same; set temperature above 0, or samples to 1"
        )
    if config.limit < 0:
        raise UserError(f"limit is {config.limit}: a number of items, or 0 for all")
    for name, model in config.models.items():
        if isinstance(model, Local):
            check_local(model, setting=f"models.{name}")
            if isinstance(config.task, SimulatedWorld):
                _check_held_out(model, config.task)


def _check_held_out(model: Local, task: SimulatedWorld) -> None:
    named = {Path(folder).resolve() for folder in task.held_out_from}
    for dataset in find_model(Path(model.path), step=model.step).trained_on:
        if Path(dataset).resolve() not in named:
            raise UserError(
                f"{model.path} was trained on {dataset}, which task.held_out_from does not name: "
                "add it, or the tasks may be ones that it was trained on"
            )


@dataclass(frozen=True)
class Answered:
    """What models said, and what is to be told of each."""

    answers: Mapping[str, Mapping[str, tuple[Answer, ...]]]
    """By model and item, as many as there are samples."""
    told: Mapping[str, dict[str, Any]]
    spent: dict[str, float]


async def _ask(
    config: EvalConfig, out: Path, prepared: Prepared, *, items: Sequence[Item], progress: Progress, stop: StopFlag
) -> Answered:
    total, done = len(items) * len(config.models) * config.samples, 0
    async with Journal.open(out / JOURNAL) as journal:
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:
            asking = Asking(config, journal, stack, stop)
            answers: dict[str, dict[str, tuple[Answer, ...]]] = {}
            told: dict[str, dict[str, Any]] = {}

            def tell(_: Answer) -> None:
                nonlocal done
                done += 1
                spent = dollars(journal.spent.usd)
                progress(done, total, {"asked": journal.asked, "from the journal": journal.cached, "spent": spent})

            try:
                for names in _together(config.models):
                    async with contextlib.AsyncExitStack() as opened:
                        asked = {
                            name: await opened.enter_async_context(
                                asking.open(config.models[name], role=f"models.{name}")
                            )
                            for name in names
                        }
                        told |= {name: _told(name, config.models[name], one) for name, one in asked.items()}
                        answers |= await answers_of(items, asked=asked, asking=asking, tell=tell)
            except BudgetSpent as error:
                left = f"{total - done:,} of {total:,} answers are left"
                raise BudgetReached(f"{error}. What was answered is kept; {left}") from error
            return Answered(answers, told, journal.spent._asdict())


def _together(models: Mapping[str, Participant]) -> list[list[str]]:
    """Hosted models all at once, and then each of this project's alone, for it takes memory."""
    remote = [name for name, model in models.items() if not isinstance(model, Local)]
    return [*([remote] if remote else []), *([name] for name, model in models.items() if isinstance(model, Local))]


def _told(name: str, participant: Any, asked: Asked) -> dict[str, Any]:
    """What results say of a model, whatever it answers."""
    opened = asked.opened
    if opened is None:
        return {"label": name, "model": asked.name, "notes": [], "untraced": ""}
    return {
        "label": participant.label or name,
        "model": participant.path,
        "weights": asked.name,
        "step": opened.step,
        "notes": list(opened.notes),
        "untraced": opened.untraced,
    }

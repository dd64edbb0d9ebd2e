"""Tasks that measure models of this project themselves, such as the loss of an answer: nothing is asked of them.

Models are opened one after the other. A task writes what it finds as it goes, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import open_stage, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen.llm.chat import NOTHING
from wizard_jax.evaluate.config import EvalConfig, Local
from wizard_jax.evaluate.local_chat import fingerprint
from wizard_jax.evaluate.results import RESULTS, Page
from wizard_jax.progress import Progress
from wizard_jax.runs import OpenedModel, open_model

MEASURED = "measured"
"""Holds a file for each model that is measured whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """A model whose turn it is."""

    config: EvalConfig
    name: str
    """In the config."""
    model: OpenedModel
    weights: str
    """What tells its weights from others (`fingerprint`)."""
    out: Path
    progress: Progress
    stop: StopFlag


@dataclass(frozen=True)
class MeasuredTask:
    """`read` says of the task what results.json holds, or raises UserError before there is a folder; `measure` the
    same of a model, with a table of figures under "measures"; `together` of all of them, when each has been measured.
    """

    read: Callable[[EvalConfig], dict[str, Any]]
    measure: Callable[[Measuring], dict[str, Any]]
    together: Callable[[EvalConfig, Path], dict[str, Any]] | None = None


def measure_models(
    config: EvalConfig,
    task: MeasuredTask,
    out: Path,
    *,
    progress: Progress,
    say: Callable[[str], None],
    page: Page | None = None,
) -> dict[str, Any]:
    """Measures every model into `out`, and returns what results.json holds.

    Raises:
      UserError: a model that is not of this project, settings without effect, or as the task does.
      Interrupted: SIGTERM or Ctrl-C came; what was measured so far is kept.
    """
    models = _local(config)
    _refuse_without_effect(config)
    facts = task.read(config)
    for note in facts.get("notes", ()):
        say(note)
    with open_stage(out, config, stage="eval") as folder:
        told: dict[str, dict[str, Any]] = {}
        with stop_flag() as stop:
            for number, (name, local) in enumerate(models.items()):
                stop.raise_if_set()
                opened, weights = open_model(Path(local.path), step=local.step), fingerprint(local)
                measuring = Measuring(
                    config=config,
                    name=name,
                    model=opened,
                    weights=weights,
                    out=out,
                    progress=_one_of(progress, number=number, models=len(models)),
                    stop=stop,
                )
                told[name] = {**of_model(name, local, opened, weights=weights), **task.measure(measuring)}
            results = {
                "task": {"name": type(config.task).__name__, **facts},
                "models": told,
                **(task.together(config, out) if task.together is not None else {}),
                "spent": NOTHING._asdict(),
            }
        write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
        if page is not None:
            page(out, results)
        folder.complete(results)
    return results


def measured_once(measuring: Measuring, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` finds of a model: what `measured/NAME.json` holds, where it was found before.

    Raises UserError: that was of other weights, as of a run that has trained on since.
    """
    file = measuring.out / MEASURED / f"{measuring.name}.json"
    if file.exists():
        told: dict[str, Any] = json.loads(file.read_text())
        if told["weights"] != measuring.weights:
            raise UserError(
                f"models.{measuring.name} is another model than the one that was measured in {measuring.out}: "
                "evaluate it in a new folder"
            )
    else:
        told = {"weights": measuring.weights, "found": measure()}
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(told, indent=1) + "\n")
    found: dict[str, Any] = told["found"]
    return found


def of_model(name: str, local: Local, opened: OpenedModel, *, weights: str) -> dict[str, Any]:
    """What results say of a model of this project, whatever it is evaluated on."""
    return {
        "label": local.label or name,
        "model": local.path,
        "weights": weights,
        "step": opened.step,
        "notes": list(opened.notes),
        "untraced": opened.untraced,
    }


def _one_of(progress: Progress, *, number: int, models: int) -> Progress:
    """What one model's progress is of all models'."""

    def tell(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        progress(number * total + done, models * total, facts)

    return tell


def _local(config: EvalConfig) -> Mapping[str, Local]:
    others = [name for name, model in config.models.items() if not isinstance(model, Local)]
    if others:
        raise UserError(
            f"models.{others[0]} is {type(config.models[others[0]]).__name__}, and {type(config.task).__name__} needs "
            "the weights: give a model of this project (@Local), imported where it is another's"
        )
    return {name: model for name, model in config.models.items() if isinstance(model, Local)}


def _refuse_without_effect(config: EvalConfig) -> None:
    plain = EvalConfig(task=config.task)
    for name in ("judges", "baseline", "samples", "temperature", "top_p", "max_tokens", "limit"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"{name} has no effect on {type(config.task).__name__}, which asks for no answers")

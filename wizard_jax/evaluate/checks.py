"""What is wrong with an evaluation before anything is asked."""

from __future__ import annotations

from pathlib import Path

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_identity
from data_gen.config import AnswerConfig, EvolveConfig, Provider, Simulated
from wizard_jax.evaluate.config import EvalConfig, Local, SimulatedWorld, Validity
from wizard_jax.evaluate.judging.independence import check_independent
from wizard_jax.evaluate.local_chat import check_local
from wizard_jax.runs import find_model


def check(config: EvalConfig) -> None:
    """Before there is a folder. Raises UserError: what could not be evaluated, or would have no effect."""
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
    if isinstance(config.task, Validity) and config.samples < 2:
        raise UserError("samples is 1, and Validity compares several answers: set it to 2 or more, such as 5")
    if config.limit < 0:
        raise UserError(f"limit is {config.limit}: a number of items, or 0 for all")
    _check_judges(config)
    _check_labels(config)
    for name, model in config.models.items():
        if isinstance(model, Local):
            check_local(model, setting=f"models.{name}")
            if isinstance(config.task, SimulatedWorld):
                _check_held_out(model, config.task)


def _check_judges(config: EvalConfig) -> None:
    if not config.judges:
        if config.baseline:
            raise UserError("baseline has no effect without judges: name one, or leave it out")
        return
    if len(config.models) < 2:
        raise UserError("judges compare models, and models names one: name another, or leave judges out")
    if config.gates.pairs < 0:
        raise UserError(f"gates.pairs is {config.gates.pairs}: a number of pairs, or 0 for no gates")
    for name, model in config.models.items():
        if isinstance(model, Simulated) and (model.judges != "well" or model.faults.misjudged):
            raise UserError(f"models.{name}.judges and misjudged have no effect: it answers, and judges nobody")
    for name, judge in config.judges.items():
        if judge.max_tokens < 1:
            raise UserError(f"judges.{name}.max_tokens is {judge.max_tokens}: must be at least 1")
        if judge.asks != "pairwise" and not config.baseline:
            raise UserError(f"judges.{name}.asks is {judge.asks!r}: grades are relative to a baseline; name one")
        if isinstance(judge.llm, Local):
            check_local(judge.llm, setting=f"judges.{name}.llm")
    if not config.self_judging:
        check_independent(config.judges, config.models, _teachers(config))


def _check_labels(config: EvalConfig) -> None:
    called: dict[str, str] = {}
    for name, model in config.models.items():
        label = (isinstance(model, Local) and model.label) or name
        if label in called:
            raise UserError(
                f"models.{called[label]} and models.{name} would both be called {label!r} in what is reported: set "
                "another label"
            )
        called[label] = name


def _teachers(config: EvalConfig) -> dict[str, list[Provider]]:
    """Who rewrote and answered the data that a model of this project was trained on, as far as its folders say."""
    found: dict[str, list[Provider]] = {}
    for name, model in config.models.items():
        if not isinstance(model, Local):
            continue
        found[name] = []
        for dataset in find_model(Path(model.path), step=model.step).trained_on:
            folder = Path(dataset) if (Path(dataset) / IDENTITY).exists() else Path(dataset).parent
            stage = read_identity(folder).stage if (folder / IDENTITY).exists() else ""
            if stage == "evolve":
                made_by = load_config(EvolveConfig, folder)
                found[name] += [one for one in (made_by.llm, made_by.answerer) if one is not None]
            elif stage == "answer":
                found[name].append(load_config(AnswerConfig, folder).llm)
    return found


def _check_held_out(model: Local, task: SimulatedWorld) -> None:
    named = {Path(folder).resolve() for folder in task.held_out_from}
    for dataset in find_model(Path(model.path), step=model.step).trained_on:
        if Path(dataset).resolve() not in named:
            raise UserError(
                f"{model.path} was trained on {dataset}, which task.held_out_from does not name: "
                "add it, or the tasks may be ones that it was trained on"
            )

"""Tasks of lm-evaluation-harness by name, run in this process on our own sampler and scorer, without torch.

    task = @Harness
    task.tasks = ('arc_easy', 'my_task')
    task.include = 'folder/of/my_task.yaml'

lm_eval reads the task and its data (from the Hugging Face Hub, unless the task file names files) and computes the
metrics; its standard errors are of independent examples.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import write_atomically
from wizard_jax.chat import get_format
from wizard_jax.evaluate.config import EvalConfig, Harness, Local
from wizard_jax.evaluate.items import TaskError
from wizard_jax.evaluate.measuring import MeasuredTask, Measuring, measured_once
from wizard_jax.evaluate.statistics.shares import Z_95
from wizard_jax.generate.scheduler import Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.weights import prepared

SAMPLES = "samples"
_LENGTH = 2048  # most tokens of a prompt with its answer, where the config does not say
_QUEUE = 1 << 30
_DRAWS = 1000  # of lm_eval's bootstrap, where a metric has no closed form


def _read(config: EvalConfig) -> dict[str, Any]:
    """Raises TaskError: no lm_eval, or a task that it does not know."""
    task = _task(config)
    if not task.tasks:
        raise TaskError("task.tasks is empty: name tasks of lm_eval, as in ('arc_easy',)")
    for name in ("num_fewshot", "examples"):
        value = getattr(task, name)
        if value is not None and value < (1 if name == "examples" else 0):
            raise TaskError(f"task.{name} is {value}: must be {'above 0' if name == 'examples' else '0 or more'}")
    if task.include and not Path(task.include).is_dir():
        raise TaskError(f"task.include is {task.include}, which is no folder: name one with task files")
    _manager(task)
    return {
        "source": f"lm_eval {version('lm_eval')}",
        "tasks": list(task.tasks),
        "prompts": task.prompts,
        "examples": task.examples,
        "notes": [],
    }


def _task(config: EvalConfig) -> Harness:
    assert isinstance(config.task, Harness)
    return config.task


def _measure(measuring: Measuring) -> dict[str, Any]:
    return measured_once(measuring, lambda: _results(measuring))


def _results(measuring: Measuring) -> dict[str, Any]:
    """Every metric with lm_eval's standard error; the examples of each task are lines of a file in `samples/`.

    Raises TaskError: data that can not be read, code that would have to be run, or settings that the sampler has not.
    """
    config, opened = measuring.config, measuring.model
    task, model = _task(config), config.models[measuring.name]
    assert isinstance(model, Local)
    loaded = _loaded(task, _manager(task), seed=config.seed)
    speaker = Speaker(
        name=model.path,
        params=prepared(opened.params, config=opened.config, source="freed"),
        config=opened.config,
        tokenizer=opened.tokenizer,
        chat_format=get_format(opened.chat_format),
    )
    length = model.length or min(opened.config.max_positions, _LENGTH)
    from wizard_jax.evaluate.tasks.harness_model import HarnessModel, sample_lines

    def tell(done: int, asked: int) -> None:
        measuring.stop.raise_if_set()
        measuring.progress(done, asked, {"model": measuring.name})

    evaluator = importlib.import_module("lm_eval.evaluator")
    samples = measuring.out / SAMPLES / measuring.name
    with Scheduler(speaker, rows=model.rows, length=length, queue=_QUEUE) as scheduler:
        asked = HarnessModel(speaker, scheduler, length=length, seed=config.seed, tell=tell)
        try:
            results = evaluator.evaluate(
                lm=asked,
                task_dict=loaded,
                limit=task.examples,
                bootstrap_iters=_DRAWS,
                apply_chat_template=task.prompts == "chat",
                fewshot_as_multiturn=task.prompts == "chat",
            )
        except UserError:
            raise
        except ValueError as error:  # such as a task that would run the code that a model wrote
            raise TaskError(f"lm_eval refuses {', '.join(task.tasks)}: {error}") from error
    for name, lines in results.pop("samples").items():
        samples.mkdir(parents=True, exist_ok=True)
        write_atomically(samples / f"{name}.jsonl", "".join(sample_lines(lines)))
    short = asked.shortened
    notes = [f"{short.prompts:,} prompts lost their beginning to fit within {length:,} tokens"] * (short.prompts > 0)
    notes += [f"{short.answers:,} answers had less room than their task gives them"] * (short.answers > 0)
    return {
        "notes": [*opened.notes, *notes],
        "trained_on": list(opened.trained_on),
        "length": length,
        "versions": dict(results["versions"]),
        "num_fewshot": dict(results["n-shot"]),
        "measures": _measures(results),
    }


@functools.cache
def _manager(task: Harness) -> Any:
    """lm_eval's, which knows the tasks of `include`, and its own where those are not all that is asked for."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise TaskError(f"Harness needs {error.name}: install the extra: pip install 'wizard-jax[eval]'") from error
    include = task.include or None
    manager = manager_of(include_path=include, include_defaults=False) if include else None
    if manager is None or not set(task.tasks) <= _names(manager):
        manager = manager_of(include_path=include)
    if unknown := sorted(set(task.tasks) - _names(manager)):
        where = f"neither lm_eval nor {include} has" if include else "lm_eval does not have"
        raise TaskError(f"task.tasks names {', '.join(unknown)}, which {where}: lm_eval ls tasks lists what there is")
    return manager


def _names(manager: Any) -> set[str]:
    return {*manager.all_tasks, *manager.all_groups, *manager.all_tags}


def _loaded(task: Harness, manager: Any, *, seed: int) -> Mapping[str, Any]:
    """The tasks with their data, and with as many examples in front as asked for."""
    try:
        loaded: Mapping[str, Any] = manager.load(list(task.tasks))
    except (OSError, ValueError, KeyError, ImportError) as error:  # what `datasets` and a task's own code raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise TaskError(f"lm_eval can not load {', '.join(task.tasks)} with their data: {told[0]}") from error
    for name, one in loaded["tasks"].items():
        own = one.get_config("num_fewshot")
        if task.num_fewshot is not None and own == 0 and task.num_fewshot != 0:
            raise TaskError(f"task.num_fewshot has no effect on {name}, which always has none: leave one of them out")
        if task.num_fewshot is not None or own is None:
            one.set_config(key="num_fewshot", value=task.num_fewshot or 0)
        one.set_fewshot_seed(seed=seed)
    return loaded


def _measures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number that lm_eval reports of a task or a group, with its standard error where it has one."""
    found = []
    for name, told in results["results"].items():
        for key, value in told.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = told.get(f"{metric}_stderr,{chosen}")
            known = isinstance(error, int | float)
            found.append(
                {
                    "name": " ".join([name, metric, *([chosen] if chosen != "none" else [])]),
                    "value": value,
                    "low": value - Z_95 * error if known else None,
                    "high": value + Z_95 * error if known else None,
                    "stderr": error if known else None,
                    "interval": "normal, by lm_eval's standard error" if known else "lm_eval gives no standard error",
                    "n": _examples(results, name),
                    "of": "examples",
                }
            )
    return found


def _examples(results: Mapping[str, Any], name: str) -> int:
    """Of a task, or of all tasks of a group."""
    counts: Mapping[str, Mapping[str, int]] = results["n-samples"]
    if name in counts:
        return counts[name]["effective"]
    members: Sequence[str] = results.get("group_subtasks", {}).get(name, ())
    return sum(_examples(results, member) for member in members)


TASK = MeasuredTask(read=_read, measure=_measure)

"""The page that compares evaluated models: exact match by number of steps, with what each was trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import COMPLETE, load_config, read_complete, write_atomically
from data_gen import plots
from data_gen.llm.simulated import EFFECTS
from data_gen.page import Html, element, figure, page, table
from wizard_jax.evaluate.config import EvalConfig, Local, Participant, SimulatedWorld
from wizard_jax.evaluate.results import ANSWERS
from wizard_jax.evaluate.statistics.shares import Proportion, difference
from wizard_jax.evaluate.tasks.simulated_world import BANDS, STEPS
from wizard_jax.train.watching.metrics import read_metrics

SAMPLES_SHOWN = 2  # of each band, for each model
POINTS = 300  # of a curve; more would only make the file larger

CHECK = (
    "This is a check of the pipeline in a simulated world. The tasks, their answers and the model that evolved them "
    "are made by a program in which difficulty is the number of steps, so an effect is in part there by construction. "
    "It is no evidence about natural instructions."
)


MAIN = "exact match"

LAST_BAND = f"{BANDS[-1]}: a task has {' or '.join(map(str, STEPS[-1]))} steps."


@dataclass(frozen=True)
class Arm:
    """One evaluated model."""

    folder: Path
    name: str
    """In the evaluation's config."""
    label: str
    results: Mapping[str, Any]
    """Of this model."""
    task: Mapping[str, Any]
    run: Mapping[str, Any] | None
    """The summary of the finished run that trained it, where that is known."""
    metrics: Sequence[tuple[float, float]]
    """(step, training loss)."""

    def band(self, name: str) -> Proportion:
        return Proportion(**self.results["bands"][name][MAIN])


def read_arms(folder: Path) -> list[Arm]:
    """Reads a finished evaluation and the runs that it names.

    Raises UserError: it is not finished, or not of the simulated world.
    """
    results = read_complete(folder, stage="eval")
    config = load_config(EvalConfig, folder)
    if not isinstance(config.task, SimulatedWorld):
        raise UserError(
            f"{folder}: is of {type(config.task).__name__}; several evaluations are compared in the simulated world "
            "alone. Evaluate the models in one folder, which has a page of its own"
        )
    return [_read_arm(folder, name, model, results) for name, model in config.models.items()]


def _read_arm(folder: Path, name: str, model: Participant, results: Mapping[str, Any]) -> Arm:
    label = model.label if isinstance(model, Local) and model.label else str(results["models"][name]["label"])
    arm = Arm(folder, name, label, results["models"][name], results["task"], None, ())
    if not isinstance(model, Local):
        return arm
    run = Path(model.path)
    if not (run / "metrics.jsonl").exists() or not (run / COMPLETE).exists():
        return arm
    rows = [row for row in read_metrics(run) if row["loss"] is not None]
    return replace(arm, run=read_complete(run, stage="train"), metrics=[(r["step"], r["loss"]) for r in rows])


def _told_apart(arms: Sequence[Arm]) -> list[Arm]:
    """Arms that share a label get the name of their folder with it."""
    times = Counter(arm.label for arm in arms)
    return [arm if times[arm.label] == 1 else replace(arm, label=f"{arm.label} ({arm.folder})") for arm in arms]


def comparison_rows(arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    """The rows of the table: label, a share with its 95 % interval for each band, and n."""
    rows = []
    for arm in arms:
        cells = [arm.band(band) for band in BANDS]
        sizes = sorted({cell.trials for cell in cells})
        rows.append((arm.label, *map(_interval, cells), " to ".join(map(str, sizes))))
    return rows


HEAD = ("trained on", f"{MAIN}, 1 step", *BANDS[1:], "n each")


def write_report(folders: Sequence[Path], target: Path) -> list[Arm]:
    """Writes the page for finished evaluations of the same tasks, and returns what it compares.

    Raises:
      UserError: an evaluation is not finished, or they did not answer the same tasks.
    """
    arms = _told_apart([arm for folder in folders for arm in read_arms(folder)])
    _check_same_tasks(arms)
    shares = {arm.label: [(b.share, b.low, b.high) for b in map(arm.band, BANDS)] for arm in arms}
    losses = {arm.label: arm.metrics[:: max(1, len(arm.metrics) // POINTS)] for arm in arms if len(arm.metrics) > 1}
    parts = [
        element("p", CHECK, css="note"),
        element("h2", "Held-out tasks"),
        table(HEAD, comparison_rows(arms)),
        element("p", f"Shares of right results with 95 % score intervals (Wilson). {LAST_BAND}"),
        figure(plots.shares(BANDS, shares, y_label=MAIN), "Exact match by number of steps."),
        *_differences(arms),
        *_held_out(arms),
        element("h2", "Training"),
        _training(arms),
    ]
    if losses:
        drawing = plots.curves(losses, x_label="step", y_label="loss per trained token")
        parts.append(figure(drawing, "Training loss. The arms see different data, so compare each with itself."))
    parts += [
        element("h2", "What each operation does to a task of this world"),
        table(("operation", "adds", "how"), [(name, effect.adds, effect.how) for name, effect in EFFECTS.items()]),
        element("h2", "Answers"),
        *(_answers(arm) for arm in arms),
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page("What evolution bought, in a simulated world", *parts))
    return arms


def _interval(cell: Proportion) -> str:
    return f"{cell.share:.2f} [{cell.low:.2f}, {cell.high:.2f}]"


def _check_same_tasks(arms: Sequence[Arm]) -> None:
    first, *others = ([(row["id"], row["turns"]) for row in _rows(arm)] for arm in arms)
    for arm, tasks in zip(arms[1:], others, strict=True):
        if tasks != first:
            raise UserError(
                f"{arm.folder} and {arms[0].folder} did not answer the same tasks: evaluate both with the same task "
                "settings (task.seed, task.per_band, task.held_out_from)"
            )


def _rows(arm: Arm) -> list[dict[str, Any]]:
    with (arm.folder / ANSWERS).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return sorted((row for row in rows if row["model"] == arm.name), key=lambda row: str(row["id"]))


def _differences(arms: Sequence[Arm]) -> list[Html]:
    """Each arm against the one before it."""
    rows = []
    for before, after in pairwise(arms):
        cells = []
        for band in BANDS:
            low, high = difference(after.band(band), before.band(band))
            cells.append(f"{after.band(band).share - before.band(band).share:+.2f} [{low:+.2f}, {high:+.2f}]")
        rows.append((f"{after.label} minus {before.label}", *cells))
    if not rows:
        return []
    return [
        element("h3", "Differences"),
        table(("difference", *BANDS), rows),
        element("p", "95 % intervals (Newcombe). One run of each arm: they speak of these tasks, not of other seeds."),
    ]


def _held_out(arms: Sequence[Arm]) -> list[Html]:
    """What the tasks were held out from: once where that is the same for every arm, else for each."""
    told = {arm.label: held_out_text(arm.task["held_out"]) for arm in arms}
    if len(set(told.values())) == 1:
        told = {"Held out": told[arms[0].label]}
    unknown = [
        f"What {arm.results['untraced']} was trained on is not known, so {arm.label} may have seen these very tasks."
        for arm in arms
        if arm.results["untraced"]
    ]
    return [element("p", text) for text in (*(f"{label}: {text}" for label, text in told.items()), *unknown)]


def held_out_text(held_out: Mapping[str, Any]) -> str:
    """How it was made sure that no model was trained on the tasks."""
    folders = ", ".join(f"{one['folder']} ({one['records']:,} records)" for one in held_out["checked_against"])
    text = (
        f"no task shares its instruction text (case and spaces aside; {held_out['texts']:,} texts) or its "
        f"pair of steps and input ({held_out['pairs']:,} pairs, however worded) with any record of {folders}, whether "
        f"a run selected it or not. {held_out['drawn_and_thrown_away']} drawn tasks were thrown away for that."
    )
    if held_out["unparsed"]:
        text += (
            f" {held_out['unparsed']:,} of the instructions are no tasks of this world: of those only the text is "
            "compared."
        )
    return text


def _training(arms: Sequence[Arm]) -> Html:
    names = ("steps", "trained_tokens", "tokens", "conversations", "rows_per_step", "parameters", "seconds")
    rows = []
    for arm in arms:
        told = arm.run or {}
        values = [told.get(name, told.get("packing", {}).get(name, "")) for name in names]
        rows.append((arm.label, *("" if v == "" else f"{v:,.{0 if v == round(v) else 1}f}" for v in values)))
    trained = [arm.run["trained_tokens"] for arm in arms if arm.run and arm.run["trained_tokens"]]
    said = ""
    if len(trained) > 1:
        said = f"The numbers of trained tokens differ by {max(trained) / min(trained) - 1:.2%}."
    return element("div", table(("trained on", *(n.replace("_", " ") for n in names)), rows), element("p", said))


def _answers(arm: Arm) -> Html:
    shown: list[dict[str, Any]] = []
    for band in BANDS:
        shown += islice((row for row in _rows(arm) if row["band"] == band), SAMPLES_SHOWN)
    rows = [
        (
            row["band"],
            element("pre", row["turns"][0]),
            element("pre", row["answers"][0] if row["answers"] else row["problem"]),
            row["target"],
            "right" if row["scores"].get(MAIN) else "wrong",
        )
        for row in shown
    ]
    return element("div", element("h3", arm.label), table(("", "task", "answer", "right result", ""), rows))

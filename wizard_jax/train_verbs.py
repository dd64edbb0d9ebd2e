"""The verbs that look ahead of training: plan."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wizard_jax.data_verbs import Add
    from wizard_jax.plan.plan import Planner
    from wizard_jax.plan.report import Plan
    from wizard_jax.train.config import TrainConfig

NOT_OPENED = {"tokenizer": "(not opened)", "data.dataset": "(not opened)", "data.chat_format": "(not used)"}
"""Settings that training requires and a plan does not look at."""


def add_train_verbs(add: Add, *, local: Callable[[str], Path]) -> None:
    """Adds the verbs by `add`; `local` reads a place that must be local."""
    plan = add("plan", _plan, "compile the training step for a TPU slice, on a machine without one")
    plan.add_argument("config", help="a .gin file, such as configs/train/wizardlm_7b.gin")
    plan.add_argument("settings", nargs="*", metavar="path=value", help="settings, such as slice=v5e-16 slices=2")
    plan.add_argument("--out", type=local, metavar="FOLDER|FILE", help="write the plan there: plan.json, or FILE.json")
    plan.add_argument("--rows", type=int, metavar="N", help="packed rows of a step, where batch does not say how many")
    plan.add_argument("--search", action="store_const", const="search", default="one", help="find settings that fit")
    plan.add_argument(
        "--compiles",
        type=_number,
        default=8,
        metavar="N",
        help="of a search, or to find a change that fits (default: 8)",
    )
    plan.add_argument("--cache", type=local, metavar="FOLDER", help="of plans (default: ~/.cache/wizard_jax/plans)")


def _plan(arguments: argparse.Namespace) -> None:
    # Before JAX starts, which reads the environment once.
    from wizard_jax.plan.tpu_compiler import use_tpu_compiler

    versions = use_tpu_compiler()
    from configs.folder import write_atomically
    from configs.loader import load
    from wizard_jax.plan.cache import PlanCache, default_folder
    from wizard_jax.plan.plan import Planner
    from wizard_jax.plan.report import COLLECTIVE_HEAD, collective_rows, report_rows, to_json
    from wizard_jax.progress import say, show_table
    from wizard_jax.train.config import TrainConfig

    config = load(TrainConfig, [arguments.config], arguments.settings, otherwise=NOT_OPENED)
    out = _place(arguments.out)
    planner = Planner(PlanCache(arguments.cache or default_folder()), versions, rows=arguments.rows)
    if arguments.search == "search":
        plan = _search(config, planner, compiles=arguments.compiles)
    else:
        plan = _one_plan(config, planner, compiles=arguments.compiles)
        show_table(("", plan.slice), list(report_rows(plan)))
        show_table(COLLECTIVE_HEAD, list(collective_rows(plan)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, to_json(plan))
        say(f"the plan is in {out}")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 0 or more")
    return int(text)


def _place(out: Path | None) -> Path | None:
    """The file to write; raises UserError, before anything is compiled, where there can be none."""
    from configs.errors import UserError

    if out is None:
        return None
    file = out if out.suffix == ".json" and not out.is_dir() else out / "plan.json"
    above = next(one for one in file.parents if one.exists())
    if not above.is_dir() or file.is_dir():
        wrong = f"{file} is a folder" if file.is_dir() else f"{above} is no folder"
        raise UserError(f"--out {out}: {wrong}; give a folder, or the name of a .json file to write")
    return file


def _one_plan(config: TrainConfig, planner: Planner, *, compiles: int) -> Plan:
    """The plan of the config; raises PlanError with the shortfall and what would fit."""
    from wizard_jax.plan.advice import nearest_change
    from wizard_jax.plan.plan import PlanError, known_plan, make_plan, prepare
    from wizard_jax.plan.report import Plan, amount
    from wizard_jax.progress import say
    from wizard_jax.train.fit import TooLarge

    try:
        prepared = prepare(config, planner)
        outcome = known_plan(prepared, planner)
        if outcome is not None:
            say(f"cached: {planner.cache.folder / prepared.key}.json")
        else:
            say(f"compiling the step for {config.slice}; that of a model of 7B takes minutes")
            outcome = make_plan(prepared, planner)
        if isinstance(outcome, Plan):
            return outcome
        problem = (
            f"the step does not fit: it needs {amount(outcome.needed)} on each device and a program has "
            f"{amount(outcome.available)} on {outcome.slice}, so it is short of {amount(outcome.shortfall)}"
        )
    except TooLarge as error:
        problem = str(error)
    raise PlanError(f"{problem}. {nearest_change(config, planner, compiles=compiles, say=say)}")


def _search(config: TrainConfig, planner: Planner, *, compiles: int) -> Plan:
    """Prints what fits, best first, and what was skipped; the plan of the best."""
    from wizard_jax.plan.plan import PlanError
    from wizard_jax.plan.report import amount
    from wizard_jax.plan.search import search
    from wizard_jax.progress import say, show_table

    found = search(config, planner, compiles=compiles, say=say)
    show_table(("not taken", "why"), [(variant.settings, why) for variant, why in found.skipped])
    if not found.fitting:
        more = f"--compiles more than {compiles}, or " if found.compiles == compiles else ""
        raise PlanError(f"nothing that was tried fits {config.slice}; the table says why. Give {more}a larger slice")
    head = ("fits, best first", "rows on a device", "computed again", "moved in a step", "peak", "left")
    rows = []
    for one in found.fitting:
        share, moved, _ = one.merit
        memory = one.plan.memory
        told = (f"{share:.1%}", amount(moved), amount(memory.peak), amount(memory.headroom))
        rows.append((one.variant.settings, str(one.plan.rows_on_a_device), *told))
    show_table(head, rows)
    say("Ordered by what is computed again, then by what is moved, then by what is left; no time is predicted.")
    return found.fitting[0].plan

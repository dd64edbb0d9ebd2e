"""Plans of LLaMA-2 that are checked in, made again by `python tests/golden_plans.py [NAME ...]`.

Each takes one to ten minutes and 2 GB. What is kept is what the compiler decides alike on every machine.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.folder import write_atomically
from configs.loader import load
from wizard_jax.plan.cache import PlanCache, default_folder
from wizard_jax.plan.plan import Planner, make_plan, prepare
from wizard_jax.plan.report import Plan, amount
from wizard_jax.plan.tpu_compiler import use_tpu_compiler
from wizard_jax.train.config import TrainConfig

FOLDER = Path(__file__).parent / "golden/plans"
NOT_OPENED = ("tokenizer=-", "data.chat_format=-", "init=@RandomInit", "epochs=None", "steps=1000")

JOBS: dict[str, tuple[str, str, int, int]] = {
    "7b_v5e-8": ("7b", "v5e-8", 8, 2048),
    "7b_v5e-16": ("7b", "v5e-16", 16, 2048),
    "7b_v5e-16_4_rows": ("7b", "v5e-16", 64, 2048),
    "7b_v5p-8": ("7b", "v5p-8", 16, 2048),
    "7b_v6e-8": ("7b", "v6e-8", 16, 2048),
    "7b_v6e-8_4096": ("7b", "v6e-8", 16, 4096),
    "13b_v5e-32": ("13b", "v5e-32", 32, 2048),
    "13b_v5p-16": ("13b", "v5p-16", 16, 2048),
    "13b_v6e-16": ("13b", "v6e-16", 32, 2048),
    "70b_v5e-256": ("70b", "v5e-256", 256, 2048),
    "70b_v5p-128": ("70b", "v5p-128", 64, 2048),
    "70b_v5p-128_4096": ("70b", "v5p-128", 64, 4096),
    "70b_v6e-64": ("70b", "v6e-64", 64, 2048),
    "70b_v6e-64_4096": ("70b", "v6e-64", 64, 4096),
}
"""Name -> size of LLaMA-2, slice, rows of a step, L; the recipe of WizardLM otherwise (full remat, bfloat16)."""


def config_of(name: str) -> TrainConfig:
    size, slice_name, rows, length = JOBS[name]
    files = [f"configs/models/llama2_{size}.gin", "configs/recipes/wizardlm.gin"]
    asked = (f"slice={slice_name}", "batch=@RowsPerStep", f"batch.rows={rows}", f"data.seq_len={length}")
    return load(TrainConfig, files, [*NOT_OPENED, *asked])


def digest(plan: Plan) -> dict[str, Any]:
    """What two machines with the same versions must agree on."""
    told = asdict(plan)
    collectives = sorted({f"{one.kind} over {' and '.join(one.axes)}" for one in plan.collectives})
    kept = ("slice", "devices", "mesh", "rows", "seq_len", "remat", "parameters", "memory", "kernels", "versions")
    return {**{name: told[name] for name in kept}, "flops": told["flops"]["step"], "collectives": collectives}


def made(name: str, planner: Planner) -> Plan:
    plan = make_plan(prepare(config_of(name), planner), planner)
    assert isinstance(plan, Plan), f"{name} does not fit: {plan}"
    return plan


def main(names: list[str]) -> None:
    planner = Planner(PlanCache(default_folder()), use_tpu_compiler())
    for name in names or JOBS:
        plan = made(name, planner)
        write_atomically(FOLDER / f"{name}.json", json.dumps(digest(plan), indent=1) + "\n")
        took = plan.seconds
        print(
            f"{name}: peak {amount(plan.memory.peak)} of {amount(plan.memory.limit)}, trace and lower "
            f"{took.trace + took.lower:.1f} s, compile {took.compile:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

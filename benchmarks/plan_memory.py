"""Memory on each chip of our training step and of MaxText's, for the same models on the same slices.

    python benchmarks/plan_memory.py [--cache FOLDER] [NUMBER ...]

Ours is compiled here, as `wizard plan` does it: one to ten minutes each, cached. MaxText's figures are of its
`train_compile` (revision e591f30, base.yml, remat_policy=full, synthetic data, jax 0.12.0.1, libtpu 0.0.52), arguments
and temporaries; ours are compiled with what is installed, which the table names. Both have float32 parameters and
moments, bfloat16 computation, full remat, and splash attention.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from configs.loader import load
from wizard_jax.plan.cache import PlanCache, default_folder
from wizard_jax.plan.plan import Planner, make_plan, prepare
from wizard_jax.plan.report import Plan
from wizard_jax.plan.tpu_compiler import use_tpu_compiler
from wizard_jax.progress import say, show_table
from wizard_jax.train.config import TrainConfig

GIB = 2**30


@dataclass(frozen=True)
class Job:
    """A model on a slice, and GiB of MaxText on each chip: arguments, temporaries."""

    size: str
    slice: str
    rows: int
    seq_len: int
    theirs: tuple[float, float]


JOBS = (
    Job("7b", "v5e-16", 16, 2048, (4.71, 3.45)),
    Job("7b", "v5e-16", 64, 2048, (4.71, 6.75)),
    Job("7b", "v5e-8", 8, 2048, (9.41, 5.61)),
    Job("7b", "v6e-8", 16, 4096, (9.41, 8.27)),
    Job("70b", "v5p-128", 64, 4096, (12.05, 13.84)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", type=int, metavar="NUMBER", help="which of the five, from 1 (default: all)")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="of plans")
    arguments = parser.parse_args()
    planner = Planner(PlanCache(arguments.cache), use_tpu_compiler())
    rows = []
    for number in arguments.jobs or range(1, len(JOBS) + 1):
        job = JOBS[number - 1]
        say(f"LLaMA-2 {job.size} on {job.slice}, {job.rows} x {job.seq_len}")
        rows.append(compared(job, plan_of(job, planner)))
    head = (
        "model",
        "slice",
        "rows x L",
        "ours: arguments + temporaries",
        "peak",
        "MaxText",
        "ours / MaxText",
        "compile",
    )
    show_table(head, rows)
    say("GiB on each chip; compiled with " + ", ".join(f"{name} {one}" for name, one in planner.versions.items()))


def plan_of(job: Job, planner: Planner) -> Plan:
    files = [f"configs/models/llama2_{job.size}.gin", "configs/recipes/wizardlm.gin"]
    asked = [f"slice={job.slice}", "batch=@RowsPerStep", f"batch.rows={job.rows}", f"data.seq_len={job.seq_len}"]
    given = ["tokenizer=-", "data.chat_format=-", "init=@RandomInit", "epochs=None", "steps=1000"]
    plan = make_plan(prepare(load(TrainConfig, files, [*asked, *given]), planner), planner)
    if not isinstance(plan, Plan):
        raise SystemExit(f"does not fit: {plan.told}")
    return plan


def compared(job: Job, plan: Plan) -> tuple[str, ...]:
    memory = plan.memory
    ours = memory.arguments + memory.temporaries
    return (
        job.size,
        job.slice,
        f"{job.rows} x {job.seq_len}",
        f"{memory.arguments / GIB:.2f} + {memory.temporaries / GIB:.2f} = {ours / GIB:.2f}",
        f"{memory.peak / GIB:.2f}",
        f"{job.theirs[0]:.2f} + {job.theirs[1]:.2f} = {sum(job.theirs):.2f}",
        f"{ours / GIB / sum(job.theirs):.3f}",
        f"{plan.seconds.trace + plan.seconds.lower:.1f} s + {plan.seconds.compile:.0f} s",
    )


if __name__ == "__main__":
    main()

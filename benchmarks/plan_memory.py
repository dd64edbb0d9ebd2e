"""Memory on each chip of our training step and of MaxText's, for the same models on the same slices.

    pip install --no-deps --target LIBTPU libtpu==0.0.52
    python benchmarks/plan_memory.py --libtpu LIBTPU [NUMBER ...]

MaxText's figures are of its `train_compile` (revision e591f30, base.yml, remat_policy=full, synthetic data, jax
0.12.0.1, libtpu 0.0.52): arguments and temporaries. Ours are compiled here, one to ten minutes each, with the libtpu
that is installed or the one in LIBTPU; two versions of it do not count temporaries alike. Both have float32 parameters
and moments, bfloat16 computation, full remat, and splash attention.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loader import load
from wizard_jax.plan.cache import PlanCache, default_folder
from wizard_jax.plan.plan import Planner, compile_step, prepare
from wizard_jax.plan.report import Seconds
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
    parser.add_argument("--libtpu", type=Path, help="a folder that another libtpu was installed into")
    arguments = parser.parse_args()
    versions = use_tpu_compiler()
    if arguments.libtpu is not None:
        os.environ["TPU_LIBRARY_PATH"] = str(arguments.libtpu / "libtpu/libtpu.so")
        other = next(iter(importlib.metadata.distributions(name="libtpu", path=[str(arguments.libtpu)])))
        versions["libtpu"] = other.version
    planner = Planner(PlanCache(default_folder()), versions)
    rows = []
    for number in arguments.jobs or range(1, len(JOBS) + 1):
        job = JOBS[number - 1]
        say(f"LLaMA-2 {job.size} on {job.slice}, {job.rows} x {job.seq_len}")
        rows.append(compared(job, *compiled(job, planner)))
    show_table(("model", "slice", "rows x L", "ours", "peak", "MaxText", "ours / MaxText", "compile"), rows)
    say("GiB on each chip, arguments + temporaries; by " + ", ".join(f"{name} {one}" for name, one in versions.items()))


def compiled(job: Job, planner: Planner) -> tuple[Any, Seconds]:
    """What the compiler says of memory, and how long it took."""
    files = [f"configs/models/llama2_{job.size}.gin", "configs/recipes/wizardlm.gin"]
    asked = [f"slice={job.slice}", "batch=@RowsPerStep", f"batch.rows={job.rows}", f"data.seq_len={job.seq_len}"]
    given = ["tokenizer=-", "data.chat_format=-", "init=@RandomInit", "epochs=None", "steps=1000"]
    program, seconds = compile_step(prepare(load(TrainConfig, files, [*asked, *given]), planner))
    return program.memory_analysis(), seconds


def compared(job: Job, memory: Any, seconds: Seconds) -> tuple[str, ...]:
    ours = memory.argument_size_in_bytes / GIB, memory.temp_size_in_bytes / GIB
    return (
        f"LLaMA-2 {job.size}",
        job.slice,
        f"{job.rows} x {job.seq_len}",
        f"{ours[0]:.2f} + {ours[1]:.2f} = {sum(ours):.2f}",
        f"{memory.peak_memory_in_bytes / GIB:.2f}",
        f"{job.theirs[0]:.2f} + {job.theirs[1]:.2f} = {sum(job.theirs):.2f}",
        f"{sum(ours) / sum(job.theirs):.3f}",
        f"{seconds.compile:.0f} s",
    )


if __name__ == "__main__":
    main()

"""LLaMA-2 on slices: what was checked in is what the compiler makes of the step today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_plans import FOLDER, JOBS, config_of, digest, made

from launch.slices import find_slice
from wizard_jax.model.decoder import count_params
from wizard_jax.model.flops import token_flops
from wizard_jax.plan.cache import PlanCache
from wizard_jax.plan.plan import Planner, mesh_of
from wizard_jax.plan.tpu_compiler import use_tpu_compiler
from wizard_jax.train.fit import least_memory

TOLERANCE = 0.005
"""Of memory: what a different layout of small arrays may make."""


def golden(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return told


THERE = sorted(file.stem for file in FOLDER.glob("*.json"))


def test_golden_plans_are_of_the_jobs_that_there_are() -> None:
    assert THERE
    assert set(THERE) <= set(JOBS)


@pytest.mark.slow
def test_every_job_has_a_golden_plan() -> None:
    assert set(THERE) == set(JOBS)


@pytest.mark.parametrize("name", THERE)
def test_a_golden_plan_fits_and_agrees_with_arithmetic(name: str) -> None:
    use_tpu_compiler()
    told, config = golden(name), config_of(name)
    row = find_slice(config.slice or "")
    mesh = mesh_of(config)
    assert told["parameters"] == count_params(config.model)
    assert (told["devices"], told["mesh"]) == (row.devices, dict(mesh.shape))
    memory, least = told["memory"], least_memory(config, mesh, rows=told["rows"])
    assert memory["peak"] < memory["limit"] == row.generation.usable_bytes
    assert memory["arguments"] == pytest.approx(least.arguments, rel=0.01)
    assert least.total < memory["arguments"] + memory["temporaries"]
    tokens = told["rows"] * told["seq_len"]
    assert told["flops"] == tokens * token_flops(config.model, seq_len=told["seq_len"]).total
    assert any(kernel.startswith("splash") for kernel in told["kernels"])


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_compiler_makes_the_golden_plan_again(name: str, tmp_path: Path) -> None:
    """One to ten minutes each."""
    told, now = golden(name), digest(made(name, Planner(PlanCache(tmp_path), use_tpu_compiler())))
    assert now["versions"] == told["versions"], "made with other versions: make them all again"
    for figure, size in told["memory"].items():
        assert now["memory"][figure] == pytest.approx(size, rel=TOLERANCE), figure
    for what in ("collectives", "kernels", "mesh", "flops", "parameters"):
        assert now[what] == told[what], what

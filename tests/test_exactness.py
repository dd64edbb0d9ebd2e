"""One step is one step: however it is cut into microbatches, rows, devices and passes, the same numbers come out.

The tolerances, and where they come from, are in exact_steps.py. The mean of means, the fault most to be feared, is off
by 1000 times the tolerance: the last test shows it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from exact_steps import GRADIENT, MODEL, OPTIMIZER, Run, Setup, assert_same, batch_of, initial_weights, run
from hf_tensors import hf_tensors

from configs.schema import fields_of, literal_values
from wizard_jax.model.sharding import MeshConfig
from wizard_jax.train.step import batch_loss

MESHES = {
    "1": (1, MeshConfig()),
    "4x1": (4, MeshConfig()),
    "2x2": (4, MeshConfig(tensor=2)),
    "8x1": (8, MeshConfig()),
    "4x2": (8, MeshConfig(tensor=2)),
    "2x4": (8, MeshConfig(tensor=4)),
    "1x8": (8, MeshConfig(fsdp=1, tensor=8)),
    "2 slices of 4x1": (8, MeshConfig(slice=2)),
    "2 slices of 2x2": (8, MeshConfig(slice=2, tensor=2)),
}
"""By fsdp x tensor."""
ACCUMULATIONS = (1, 2, 4)
REMATS = literal_values(fields_of(type(MODEL))["remat"].annotation)


@dataclasses.dataclass(frozen=True)
class Way:
    """One cell of the product of all ways."""

    mesh: str
    accumulation: int
    packed: bool
    remat: str
    unroll: int

    def __str__(self) -> str:
        rows = "packed" if self.packed else "one a row"
        return f"{self.mesh}, {self.accumulation} microbatches, {rows}, remat {self.remat}, unroll {self.unroll}"

    def setup(self) -> Setup:
        devices, mesh = MESHES[self.mesh]
        change: Any = {"remat": self.remat, "scan_unroll": self.unroll}
        return Setup(
            devices=devices,
            mesh=mesh,
            gradient_accumulation=self.accumulation,
            packed=self.packed,
            model=dataclasses.replace(MODEL, **change),
        )


SOME = [
    Way("1", 4, False, "none", 2),
    Way("4x1", 2, True, "dots", 1),
    Way("1x8", 1, False, "full", 1),
]
"""Every accumulation, packing, number of devices and unrolling; 4x2 is the mesh of test_exactness_torch, and
two slices of 2x2 that of two processes in test_hosts."""

ALL = [
    Way(mesh, accumulation, packed, REMATS[index % len(REMATS)], 1 + index % 2)
    for index, (mesh, accumulation, packed) in enumerate(itertools.product(MESHES, ACCUMULATIONS, (True, False)))
]
"""Every mesh with every accumulation, packed and not, each with some remat policy."""


@functools.cache
def plain() -> Run:
    """One device, one microbatch, packed, nothing computed twice."""
    return run(Setup())


@pytest.mark.parametrize("way", SOME, ids=str)
def test_ten_steps_are_the_same_whichever_way_they_are_taken(way: Way) -> None:
    assert_same(run(way.setup()), plain())


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in ALL if way not in SOME], ids=str)
def test_ten_steps_are_the_same_in_every_way_there_is(way: Way) -> None:
    assert_same(run(way.setup()), plain())


@jax.jit
def summed(params: Any, columns: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
    """The gradient of the summed loss, and the trained tokens."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        found = batch_loss(params, columns, model=MODEL)
        return found.total, found.weight

    return jax.grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one a row"])
@pytest.mark.parametrize("parts", ["2 microbatches", "4 microbatches", "8 devices"])
def test_the_mean_of_the_means_of_parts_would_be_found_out(parts: str, packed: bool) -> None:
    """The faulty rule differs from the right one by far more than the tolerances, in every tensor."""
    batch = batch_of(0, packed=packed)
    rows, count = np.arange(len(batch["halt"])), int(parts[0])
    # a microbatch is every M-th row, a device holds a run of rows
    members = rows.reshape(count, -1) if "devices" in parts else rows.reshape(-1, count).T
    of_part = (np.isin(rows, some)[:, None] for some in members)
    pieces = [{**batch, "loss_weights": batch["loss_weights"] * trained} for trained in of_part]
    parts_of = [summed(initial_weights(), piece) for piece in pieces]
    gradients = [hf_tensors(tree, MODEL) for tree, _ in parts_of]
    weights = [float(weight) for _, weight in parts_of]
    right = {name: sum(part[name] for part in gradients) / sum(weights) for name in gradients[0]}
    means = [{name: g / weight for name, g in part.items()} for part, weight in zip(gradients, weights, strict=True)]
    wrong = {name: sum(mean[name] for mean in means) / count for name in gradients[0]}
    clipping = min(
        1.0, (OPTIMIZER.clip_norm or np.inf) / np.sqrt(sum((gradient**2).sum() for gradient in right.values()))
    )
    for name, expected in plain().gradients.items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(clipping * right[name], expected, rtol=0, atol=GRADIENT * largest, err_msg=name)
        assert np.abs(clipping * wrong[name] - expected).max() > 1000 * GRADIENT * largest, name

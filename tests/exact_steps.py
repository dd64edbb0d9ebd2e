"""One training problem, small enough to run in every way there is: what exactness is measured on.

`Setup` says how a run is carried out; the losses, gradients and weights of `run(setup)` must not depend on it.

Tolerances. Each way adds the same float32 numbers in another order, so results differ by roundings, each 6e-8 of what
was added. Over all ways of test_exactness.py they were, at most: losses of ten steps 6e-7 and gradient norm 3e-7
(relative), gradients 1.1e-6 of the largest in their tensor, weights after ten steps 1.2e-7. The tolerances are some
five to ten times that.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hf_tensors import hf_tensors

from wizard_jax.hosts.joining import joined
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import init_params
from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
from wizard_jax.train.optimizer import AdamW, Optimizer
from wizard_jax.train.step import Steps, make_steps

MODEL = ModelConfig(
    vocab_size=96, d_model=32, n_layers=2, n_heads=8, n_kv_heads=4, head_dim=4, d_ff=64, initializer_range=0.1
)
OPTIMIZER = AdamW(peak_lr=3e-3, warmup_steps=3, b2=0.95, weight_decay=0.1, clip_norm=0.95)
STEPS = 10
ROWS, LENGTH = 32, 24
"""Of a packed batch: two conversations a row. 32 rows are 4 microbatches over 8 devices."""

LOSS = GRAD_NORM = 3e-6  # relative
GRADIENT = 1e-5  # of the largest in the tensor
WEIGHT = 2e-6  # absolute; the weights have moved by 1e-2


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the same ten steps are carried out."""

    devices: int = 1
    mesh: MeshConfig = field(default_factory=MeshConfig)
    gradient_accumulation: int = 1
    packed: bool = True
    """else one conversation a row"""
    model: ModelConfig = MODEL
    optimizer: Optimizer = OPTIMIZER
    steps: int = STEPS


SEVERAL_PROCESSES = Setup(devices=8, mesh=MeshConfig(slice=2, tensor=2), gradient_accumulation=2)
"""What `main` does: with two processes, each has one of the two copies of the weights."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of it, on the host; tensors by their Hugging Face names."""

    losses: list[float]
    grad_norms: list[float]
    """before clipping"""
    gradients: dict[str, np.ndarray]
    """of the first step, after clipping"""
    weights: dict[str, np.ndarray]


def conversations(step: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and which of them are trained on: 64 conversations of 10 to 12 tokens, trained on the last 1 to 9.

    How many is such that any parts differ in them: every second or fourth row, runs of rows, the halves of rows.
    """
    random = np.random.default_rng(step)
    made = []
    for index in range(2 * ROWS):
        length = 10 + (index + step) % 3
        trained = 1 + index // 2 % 4 + index // 8 % 4 + 2 * (index % 2)
        made.append((random.integers(3, MODEL.vocab_size, size=length), np.arange(length) >= length - trained))
    return made


def batch_of(step: int, *, packed: bool = True) -> dict[str, np.ndarray]:
    """The columns of `conversations(step)`, two in each of 32 rows, or each in one of 64."""
    made = conversations(step)
    groups = [made[index : index + 2] for index in range(0, len(made), 2)] if packed else [[one] for one in made]
    names = ("tokens", "targets", "positions", "segment_ids")
    columns = {name: np.zeros((len(groups), LENGTH), np.int32) for name in names}
    columns["loss_weights"] = np.zeros((len(groups), LENGTH), np.float32)
    columns["halt"] = np.zeros(len(groups), np.int32)
    for row, group in enumerate(groups):
        at = 0
        for segment, (tokens, trained) in enumerate(group, start=1):
            here = slice(at, at + len(tokens) - 1)
            columns["tokens"][row, here] = tokens[:-1]
            columns["targets"][row, here] = tokens[1:]
            columns["positions"][row, here] = np.arange(len(tokens) - 1)
            columns["segment_ids"][row, here] = segment
            columns["loss_weights"][row, here] = trained[1:]
            at += len(tokens) - 1
    return columns


@functools.cache
def initial_weights(model: ModelConfig = MODEL) -> Any:
    return jax.device_get(jax.jit(lambda key: init_params(model, key=key))(jax.random.key(0)))


def make(setup: Setup) -> tuple[jax.sharding.Mesh, Steps]:
    mesh = make_mesh(setup.mesh, devices=jax.devices()[: setup.devices])
    steps = make_steps(
        setup.model,
        optimizer=setup.optimizer,
        total_steps=setup.steps,
        gradient_accumulation=setup.gradient_accumulation,
        mesh=mesh,
    )
    return mesh, steps


def run(setup: Setup, weights: Any = None) -> Run:
    """`weights` to start from are the model's initial ones if not given.

    In several processes each must see `setup.devices` devices in all, and gives its own rows of every batch.
    """
    mesh, steps = make(setup)
    with jax.set_mesh(mesh):
        given = initial_weights(setup.model) if weights is None else weights
        placed = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)
        state = steps.start(jax.tree.map(_on_devices, given, placed))
        losses, norms, gradients = [], [], {}
        for step in range(setup.steps):
            batch = batch_of(step, packed=setup.packed)
            state, metrics = steps.train(state, {n: _on_devices(c, batch_sharding(mesh)) for n, c in batch.items()})
            losses.append(float(metrics.loss))
            norms.append(float(metrics.grad_norm))
            if step == 0 and isinstance(setup.optimizer, AdamW):
                # after one step from zero, the first moment is (1 - b1) times the clipped gradient
                share = 1 - setup.optimizer.b1
                moments = _on_host(state.opt_state[1].mu)
                gradients = {name: m / share for name, m in hf_tensors(moments, setup.model).items()}
        return Run(
            losses=losses,
            grad_norms=norms,
            gradients=gradients,
            weights=hf_tensors(_on_host(state.params), setup.model),
        )


def assert_same(found: Run, expected: Run) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=LOSS)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=GRAD_NORM)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        np.testing.assert_allclose(found.gradients[name], gradient, rtol=0, atol=GRADIENT * largest, err_msg=name)
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=WEIGHT, err_msg=name)


def main(arguments: Sequence[str]) -> int:
    """`run` of SEVERAL_PROCESSES in as many as the environment says; each writes what came of it into the folder."""
    with joined() as hosts:
        Path(arguments[0], f"{hosts.index}.pickle").write_bytes(pickle.dumps(run(SEVERAL_PROCESSES)))
    return 0


def _on_devices(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """From the whole array, which every process has."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _on_host(tree: Any) -> Any:
    """Whole arrays, on every process."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)

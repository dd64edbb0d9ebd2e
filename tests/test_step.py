"""One update is the number that it has always been, and its state lies where it is declared to."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import init_params
from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
from wizard_jax.train.optimizer import AdamW
from wizard_jax.train.step import StepMetrics, Steps, abstract_batch, batch_loss, make_steps

MODEL = ModelConfig(
    vocab_size=96, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, initializer_range=0.1
)
OPTIMIZER = AdamW(peak_lr=0.01, warmup_steps=2, weight_decay=0.1)
ROWS, LENGTH = 8, 24
MESHES = {
    "1 device": (MeshConfig(), 1),
    "8 of fsdp": (MeshConfig(), 8),
    "2 slices x 2 of fsdp x 2 of tensor": (MeshConfig(slice=2, tensor=2), 8),
}
# Of the first update of this model on this batch, in float32 on a CPU.
LOSS, GRAD_NORM, WEIGHT = 4.7363987, 2.187824, 59.0


def conversations() -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and which are trained on: 16 conversations of 8 to 12 tokens, trained on more and more."""
    random = np.random.default_rng(7)
    made = []
    for index in range(2 * ROWS):
        length = 8 + index % 5
        trained = np.arange(length) >= length - 1 - index % 7
        made.append((random.integers(3, MODEL.vocab_size, size=length), trained))
    return made


def rows_of(groups: list[list[int]]) -> dict[str, np.ndarray]:
    """The columns of a Batch in which row r holds the conversations `groups[r]`."""
    names = ("tokens", "targets", "positions", "segment_ids")
    columns = {name: np.zeros((len(groups), LENGTH), np.int32) for name in names}
    columns["loss_weights"] = np.zeros((len(groups), LENGTH), np.float32)
    columns["halt"] = np.zeros(len(groups), np.int32)
    made = conversations()
    for row, group in enumerate(groups):
        at = 0
        for segment, index in enumerate(group, start=1):
            tokens, trained = made[index]
            here = slice(at, at + len(tokens) - 1)
            columns["tokens"][row, here] = tokens[:-1]
            columns["targets"][row, here] = tokens[1:]
            columns["positions"][row, here] = np.arange(len(tokens) - 1)
            columns["segment_ids"][row, here] = segment
            columns["loss_weights"][row, here] = trained[1:]
            at += len(tokens) - 1
    return columns


PACKED = [[2 * row, 2 * row + 1] for row in range(ROWS)]


def steps_on(mesh: jax.sharding.Mesh) -> Steps:
    return make_steps(MODEL, optimizer=OPTIMIZER, total_steps=10, gradient_accumulation=1, mesh=mesh)


@functools.cache
def weights() -> Any:
    return jax.device_get(jax.jit(lambda key: init_params(MODEL, key=key))(jax.random.key(0)))


@functools.cache
def run(mesh_name: str = "1 device") -> tuple[StepMetrics, ...]:
    """The figures of eight updates, all on the same batch."""
    config, devices = MESHES[mesh_name]
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        steps = steps_on(mesh)
        state = steps.start(jax.device_put(weights(), jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)))
        batch = jax.device_put(rows_of(PACKED), batch_sharding(mesh))
        seen = []
        for _ in range(8):
            state, metrics = steps.train(state, batch)
            seen.append(jax.device_get(metrics))
        return tuple(seen)


@pytest.mark.parametrize("mesh", MESHES)
def test_first_update_has_the_pinned_loss_and_gradient_norm_on_every_mesh(mesh: str) -> None:
    metrics = run(mesh)[0]
    assert metrics.weight == WEIGHT
    np.testing.assert_allclose(metrics.loss, LOSS, rtol=1e-5)
    np.testing.assert_allclose(metrics.loss_sum, LOSS * WEIGHT, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, GRAD_NORM, rtol=1e-5)
    np.testing.assert_allclose(metrics.learning_rate, 0.005, rtol=1e-6)
    assert metrics.tokens == sum(len(tokens) - 1 for tokens, _ in conversations())


def test_losses_of_positions_add_up_to_the_loss_and_lie_everywhere() -> None:
    mesh = make_mesh(MeshConfig(slice=2, tensor=2))
    columns = rows_of(PACKED)
    with jax.set_mesh(mesh):
        steps = steps_on(mesh)
        state = steps.init(jax.random.key(0))
        found = steps.evaluate(state, jax.device_put(columns, batch_sharding(mesh)))
    assert found.sharding.is_fully_replicated
    assert (found.shape, found.dtype) == ((ROWS, LENGTH), jnp.float32)
    assert not np.asarray(found)[columns["loss_weights"] == 0].any()
    for row in range(ROWS):
        one = {name: jnp.asarray(column[row : row + 1]) for name, column in columns.items()}
        np.testing.assert_allclose(found[row].sum(), batch_loss(weights(), one, model=MODEL).total, rtol=1e-5)


@pytest.mark.parametrize(("code", "updates"), [(0, 1), (1, 1), (2, 0)])
def test_every_process_learns_that_one_halts_and_a_batch_with_missing_rows_changes_nothing(
    code: int, updates: int
) -> None:
    config, _ = MESHES["8 of fsdp"]
    mesh = make_mesh(config)
    columns = rows_of([*PACKED[:-1], []])
    columns["halt"][-1] = code
    if not updates:  # whatever stands in rows that are missing
        columns["loss_weights"][-1] = np.nan
    with jax.set_mesh(mesh):
        steps = steps_on(mesh)
        before = steps.init(jax.random.key(0))
        kept = jax.device_get(before)
        after, metrics = steps.train(before, jax.device_put(columns, batch_sharding(mesh)))
    assert metrics.halt == code
    assert (after.step, bool(metrics.skipped), bool(metrics.stopped)) == (updates, False, False)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), jax.device_get(after), kept)
    assert all(jax.tree.leaves(same)) is (updates == 0)


def test_a_batch_that_trains_on_nothing_has_a_gradient_of_zero_and_moves_no_moment() -> None:
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    columns = rows_of(PACKED)
    columns["loss_weights"][:] = 0
    with jax.set_mesh(mesh):
        steps = steps_on(mesh)
        state, metrics = steps.train(steps.init(jax.random.key(0)), jax.device_put(columns, batch_sharding(mesh)))
    assert (metrics.loss, metrics.weight, metrics.grad_norm, bool(metrics.skipped)) == (0, 0, 0, False)
    assert state.step == 1
    assert not np.asarray(optax.tree_utils.tree_get(state.opt_state, "mu")["embed"]).any()


def test_microbatches_are_made_of_rows_that_stay_on_their_devices() -> None:
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        steps = make_steps(MODEL, optimizer=OPTIMIZER, total_steps=10, gradient_accumulation=2, mesh=mesh)
        inputs = abstract_batch(rows=2 * ROWS, seq_len=LENGTH, mesh=mesh)
        program = steps.train.lower(steps.abstract, inputs).compile().as_text()
    assert not re.findall(rf"= \w+\[[\d,]*{LENGTH}\]\S* (?:all-|collective-)[\w-]+\(", program)


def test_the_abstract_batch_is_what_training_is_fed() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    abstract = abstract_batch(rows=ROWS, seq_len=LENGTH, mesh=mesh)
    fed = jax.device_put(rows_of(PACKED), batch_sharding(mesh))
    assert {name: (c.shape, c.dtype, c.sharding) for name, c in abstract.items()} == {
        name: (c.shape, c.dtype, c.sharding) for name, c in fed.items()
    }


def test_every_leaf_of_the_state_is_declared_with_a_sharding_and_lies_there() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    with jax.set_mesh(mesh):
        steps = steps_on(mesh)
        state = steps.init(jax.random.key(0))
        for declared, leaf in zip(jax.tree.leaves(steps.abstract), jax.tree.leaves(state), strict=True):
            assert (declared.shape, declared.dtype) == (leaf.shape, leaf.dtype)
            assert leaf.sharding.is_equivalent_to(declared.sharding, leaf.ndim)
    moments = optax.tree_utils.tree_get(steps.abstract.opt_state, "nu")
    placed = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, moments) == placed
    assert not state.params["layers"]["q"].sharding.is_fully_replicated
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_initial_weights_do_not_depend_on_the_mesh() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    with jax.set_mesh(mesh):
        state = steps_on(mesh).init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, weights(), jax.device_get(state.params))


def test_loss_falls_when_a_batch_is_seen_again_and_again() -> None:
    losses = [float(metrics.loss) for metrics in run()]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_z_loss_changes_the_gradient_and_not_the_loss_that_is_reported() -> None:
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    batch = jax.device_put(rows_of(PACKED), batch_sharding(mesh))
    found = {}
    with jax.set_mesh(mesh):
        for microbatches in (1, 2):
            steps = make_steps(
                MODEL,
                optimizer=OPTIMIZER,
                total_steps=10,
                gradient_accumulation=microbatches,
                mesh=mesh,
                z_loss=0.1,
            )
            _, found[microbatches] = steps.train(steps.init(jax.random.key(0)), batch)
    plain, (whole, split) = run()[0], jax.device_get(tuple(found.values()))
    np.testing.assert_allclose(whole.loss, plain.loss, rtol=1e-6)
    assert plain.z_loss == 0
    np.testing.assert_allclose(whole.z_loss, 0.1 * np.log(MODEL.vocab_size) ** 2, rtol=0.2)
    assert abs(whole.grad_norm - plain.grad_norm) > 0.01
    np.testing.assert_allclose(split.z_loss, whole.z_loss, rtol=1e-6)
    np.testing.assert_allclose(split.grad_norm, whole.grad_norm, rtol=1e-6)

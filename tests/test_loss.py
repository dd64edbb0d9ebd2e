"""Blockwise cross-entropy equals the formula it stands for, and never holds all logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from wizard_jax.model.sharding import MeshConfig, make_mesh, partition_spec
from wizard_jax.train.loss import Loss, cross_entropy, token_losses

BATCH, LENGTH, D_MODEL = 3, 50, 16


def arrays(vocabulary: int, *, batch: int = BATCH, seed: int = 0, scale: float = 1.0) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {
        "hidden": jnp.asarray(scale * random.normal(size=(batch, LENGTH, D_MODEL)), jnp.float32),
        "unembedding": jnp.asarray(random.normal(size=(D_MODEL, vocabulary)), jnp.float32),
        "targets": jnp.asarray(random.integers(vocabulary, size=(batch, LENGTH)), jnp.int32),
        "weights": jnp.asarray(random.choice([0.0, 0.5, 1.0], size=(batch, LENGTH)), jnp.float32),
    }


def direct(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(jnp.einsum("bld,dv->blv", hidden, unembedding), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return -(weights * picked).sum()


def direct_z(hidden: jax.Array, unembedding: jax.Array, weights: jax.Array) -> jax.Array:
    normalisers = jax.nn.logsumexp(jnp.einsum("bld,dv->blv", hidden, unembedding), axis=-1)
    return (weights * normalisers**2).sum()


def in_blocks(given: dict[str, jax.Array], block_positions: int, *, z_loss: float = 0.0) -> Loss:
    return cross_entropy(
        given["hidden"],
        unembedding_DxV=given["unembedding"],
        targets_BxL=given["targets"],
        weights_BxL=given["weights"],
        z_loss=z_loss,
        block_positions=block_positions,
    )


@pytest.mark.parametrize("block_positions", [1, 16, 25, 512])
def test_losses_of_positions_are_those_of_the_formula(block_positions: int) -> None:
    given = arrays(96)
    found = token_losses(
        given["hidden"],
        unembedding_DxV=given["unembedding"],
        targets_BxL=given["targets"],
        weights_BxL=given["weights"],
        block_positions=block_positions,
    )
    log_probabilities = jax.nn.log_softmax(given["hidden"] @ given["unembedding"])
    picked = jnp.take_along_axis(log_probabilities, given["targets"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, -given["weights"] * picked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize(
    ("vocabulary", "block_positions"), [(7, 1), (512, 25), (1000, 50), (1000, 512), (3001, 16), (32_001, 16)]
)
def test_loss_and_gradients_are_those_of_the_formula(vocabulary: int, block_positions: int, z_loss: float) -> None:
    given = arrays(vocabulary)

    def blockwise(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
        loss = in_blocks({**given, "hidden": hidden, "unembedding": unembedding}, block_positions, z_loss=z_loss)
        return 0.25 * loss.total / loss.weight

    def formula(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
        weights = given["weights"]
        total = direct(hidden, unembedding, given["targets"], weights) + z_loss * direct_z(hidden, unembedding, weights)
        return 0.25 * total / weights.sum()

    at = (given["hidden"], given["unembedding"])
    loss, gradients = jax.jit(jax.value_and_grad(blockwise, argnums=(0, 1)))(*at)
    expected, expected_gradients = jax.jit(jax.value_and_grad(formula, argnums=(0, 1)))(*at)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(blockwise(*at), expected, rtol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-6 * float(jnp.abs(wanted).max()))


def test_z_loss_is_reported_apart_from_the_cross_entropy() -> None:
    given = arrays(96)
    with_z, without = in_blocks(given, 16, z_loss=0.03), in_blocks(given, 16)
    expected = 0.03 * direct_z(given["hidden"], given["unembedding"], given["weights"])
    np.testing.assert_allclose(with_z.z, expected, rtol=1e-6)
    np.testing.assert_allclose(with_z.total - with_z.z, without.total, rtol=1e-6)
    assert float(without.z) == 0


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [(MeshConfig(slice=2, fsdp=2, tensor=2), 96), (MeshConfig(fsdp=4, tensor=2), 33)],
    ids=["vocabulary split", "vocabulary that does not divide"],
)
def test_on_a_mesh_loss_and_gradients_are_the_same(config: MeshConfig, vocabulary: int) -> None:
    given = arrays(vocabulary, batch=4)

    def mean(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
        loss = in_blocks({**given, "hidden": hidden, "unembedding": unembedding}, 16, z_loss=0.03)
        return loss.total / loss.weight

    at = (given["hidden"], given["unembedding"])
    expected = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(*at)
    mesh = make_mesh(config)
    axes = [("batch", None, None), ("embed", "vocab")]
    placed = [
        jax.device_put(array, NamedSharding(mesh, partition_spec(names, mesh.shape, shape=array.shape)))
        for array, names in zip(at, axes, strict=True)
    ]
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(*placed)
        of_hidden = jax.jit(jax.grad(mean))(*placed)  # as where the unembedding is frozen
    assert "fsdp" in str(placed[1].sharding.spec)
    np.testing.assert_array_equal(of_hidden, found[1][0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max())), found, expected
    )


def test_weight_is_the_sum_of_weights_and_not_a_count_of_positions() -> None:
    given = arrays(20)
    assert float(in_blocks(given, 16).weight) == float(given["weights"].sum())


def test_positions_of_weight_zero_change_nothing() -> None:
    given = arrays(20)
    untrained = given["weights"] == 0
    elsewhere = jnp.where(untrained, (given["targets"] + 1) % 20, given["targets"])
    loud = jnp.where(untrained[..., None], 30.0, given["hidden"])
    loss = in_blocks(given, 16).total
    np.testing.assert_allclose(in_blocks({**given, "targets": elsewhere}, 16).total, loss, rtol=1e-6)
    np.testing.assert_allclose(in_blocks({**given, "hidden": loud}, 16).total, loss, rtol=1e-6)


def test_large_logits_stay_finite() -> None:
    given = arrays(40, scale=1e4)
    expected = direct(given["hidden"], given["unembedding"], given["targets"], given["weights"])
    total = in_blocks(given, 16).total
    assert np.isfinite(total)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_bfloat16_hidden_states_accumulate_in_float32() -> None:
    given = arrays(1000)
    rounded = {**given, "hidden": given["hidden"].astype(jnp.bfloat16)}

    def mean(hidden: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
        loss = in_blocks({**given, "hidden": hidden}, 16)
        return loss.total / loss.weight

    loss, gradient = jax.value_and_grad(mean)(rounded["hidden"], rounded)
    expected = mean(given["hidden"], given)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_no_array_of_all_logits_exists_in_the_compiled_gradient() -> None:
    vocabulary, block = 1000, 10
    given = arrays(vocabulary)

    def mean(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
        loss = in_blocks({**given, "hidden": hidden, "unembedding": unembedding}, block)
        return loss.total / loss.weight

    at = (given["hidden"], given["unembedding"])
    compiled = jax.jit(jax.grad(mean, argnums=(0, 1))).lower(*at).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    all_logits = 4 * BATCH * LENGTH * vocabulary
    assert analysis.temp_size_in_bytes < all_logits
    assert (BATCH, LENGTH, vocabulary) not in shapes_in(jax.make_jaxpr(jax.grad(mean, argnums=(0, 1)))(*at).jaxpr)


def test_no_array_of_all_logits_exists_where_every_position_is_asked_for() -> None:
    given = arrays(1000)

    def losses(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
        targets, weights = given["targets"], given["weights"]
        return token_losses(
            hidden, unembedding_DxV=unembedding, targets_BxL=targets, weights_BxL=weights, block_positions=10
        )

    shapes = shapes_in(jax.make_jaxpr(losses)(given["hidden"], given["unembedding"]).jaxpr)
    assert (BATCH, 10, 1000) in shapes
    assert (BATCH, LENGTH, 1000) not in shapes


def shapes_in(jaxpr: Any) -> set[tuple[int, ...]]:
    """Of every array that is computed, in inner programs too."""
    found = {tuple(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars}
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                found |= shapes_in(getattr(value, "jaxpr", value))
    return found

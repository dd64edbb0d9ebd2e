"""The decoder keeps conversations apart, decodes as it trains, and is the same however it is computed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals
from jax.sharding import Mesh

from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh, shardings

TINY = ModelConfig(
    vocab_size=32, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, initializer_range=0.3
)


@pytest.fixture(scope="module")
def params() -> decoder.Params:
    return jax.jit(lambda key: decoder.init_params(TINY, key=key))(jax.random.key(0))


hidden_states = jax.jit(decoder.hidden_states, static_argnames="config")


def packed(*lengths: int, width: int) -> dict[str, jax.Array]:
    """One row of conversations of these lengths, and padding."""
    rng = np.random.default_rng(len(lengths))
    segments = np.zeros((1, width), np.int32)
    positions = np.zeros((1, width), np.int32)
    start = 0
    for segment, length in enumerate(lengths, start=1):
        segments[0, start : start + length] = segment
        positions[0, start : start + length] = np.arange(length)
        start += length
    tokens = rng.integers(0, TINY.vocab_size, (1, width)).astype(np.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "positions": jnp.asarray(positions),
        "segment_ids": jnp.asarray(segments),
    }


@functools.partial(jax.jit, static_argnames="config")
def loss_and_gradients(
    params: decoder.Params, columns: dict[str, jax.Array], *, config: ModelConfig
) -> tuple[jax.Array, decoder.Params]:
    def loss(tree: decoder.Params) -> jax.Array:
        hidden = decoder.hidden_states(tree, **columns, config=config)
        scores = jax.nn.log_softmax(decoder.logits(tree, hidden, config=config))
        return -jnp.mean(jnp.take_along_axis(scores, columns["tokens"][..., None], axis=-1))

    return jax.value_and_grad(loss)(params)


def assert_trees_close(found: Any, expected: Any, *, tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * float(np.abs(b).max()), rtol=0),
        found,
        expected,
    )


def test_packed_conversations_do_not_see_each_other(params: decoder.Params) -> None:
    columns = packed(5, 9, width=16)
    together = hidden_states(params, **columns, config=TINY)
    for part in (slice(0, 5), slice(5, 14)):
        length = part.stop - part.start
        moved = {name: jnp.zeros_like(column) for name, column in columns.items()}
        moved = {name: column.at[:, :length].set(columns[name][:, part]) for name, column in moved.items()}
        alone = hidden_states(params, **moved, config=TINY)
        np.testing.assert_allclose(together[:, part], alone[:, :length], atol=1e-5)
    assert np.isfinite(together).all()


def test_a_token_does_not_see_what_follows(params: decoder.Params) -> None:
    columns = packed(16, width=16)
    before = hidden_states(params, **columns, config=TINY)
    changed = columns | {"tokens": columns["tokens"].at[0, 6].add(1) % TINY.vocab_size}
    after = hidden_states(params, **changed, config=TINY)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(axis=-1) > 1e-3).all()


def test_attention_depends_on_distance_and_not_on_position(params: decoder.Params) -> None:
    columns = packed(16, width=16)
    moved = columns | {"positions": columns["positions"] + 100}
    stretched = columns | {"positions": columns["positions"] * 2}
    expected = hidden_states(params, **columns, config=TINY)
    np.testing.assert_allclose(hidden_states(params, **moved, config=TINY), expected, atol=1e-4)
    assert np.abs(hidden_states(params, **stretched, config=TINY) - expected).max() > 1e-2


def test_decoding_token_by_token_gives_the_hidden_states_of_the_whole(params: decoder.Params) -> None:
    """Two rows, of which the second is behind, and stands in slots that padding was written to."""
    columns = packed(16, width=16)
    expected = hidden_states(params, **columns, config=TINY)[0]
    tokens = columns["tokens"][0]
    step = jax.jit(decoder.decode, static_argnames="config")
    cache = decoder.init_cache(TINY, batch=2, length=16)
    prompts = jnp.stack([tokens[:4], tokens[:4].at[3].add(1) % TINY.vocab_size])
    hidden, cache = step(params, tokens=prompts, start=jnp.array([0, 0]), cache=cache, config=TINY)
    found = [[*hidden[0]], [*hidden[1, :3]]]
    taken_apart = decoder.unstacked(params)
    for slot in range(4, 16):
        pair = jnp.stack([tokens[slot], tokens[slot - 1]])[:, None]
        hidden, cache = step(taken_apart, tokens=pair, start=jnp.array([slot, slot - 1]), cache=cache, config=TINY)
        found[0].append(hidden[0, 0])
        found[1].append(hidden[1, 0])
    np.testing.assert_allclose(jnp.stack(found[0]), expected, atol=1e-5)
    np.testing.assert_allclose(jnp.stack(found[1]), expected[:15], atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"scan_unroll": 3},
        {"remat": "full", "scan_unroll": 2},
        *({"remat": policy} for policy in ("full", "attention", "qkv", "except_mlp", "dots", "offload")),
    ],
    ids=str,
)
def test_how_it_is_computed_changes_neither_loss_nor_gradients(params: decoder.Params, change: dict[str, Any]) -> None:
    columns = packed(5, 9, width=16)
    loss, gradients = loss_and_gradients(params, columns, config=TINY)
    other_loss, other_gradients = loss_and_gradients(params, columns, config=dataclasses.replace(TINY, **change))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    assert_trees_close(other_gradients, gradients, tolerance=1e-5)


def residuals(params: decoder.Params, config: ModelConfig) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters aside."""
    columns = packed(5, 9, width=16)

    def total(tree: decoder.Params) -> jax.Array:
        return decoder.hidden_states(tree, **columns, config=config).sum()

    kept = saved_residuals(total, params)
    return sum(array.size * array.dtype.itemsize for array, source in kept if "argument" not in source)


def test_remat_policies_keep_what_they_say(params: decoder.Params) -> None:
    """Float32 numbers of 16 tokens in 3 layers: in units of the documentation of `remat`."""
    policies = ("full", "attention", "qkv", "except_mlp", "dots", "none")
    kept = {policy: residuals(params, dataclasses.replace(TINY, remat=policy)) for policy in policies}
    model_width, heads, kv_heads = TINY.d_model, TINY.n_heads * TINY.head_dim, TINY.n_kv_heads * TINY.head_dim
    per_number = 4 * 16 * TINY.n_layers
    assert kept["attention"] - kept["full"] == per_number * heads
    assert kept["qkv"] - kept["attention"] == per_number * (heads + 2 * kv_heads)
    assert kept["except_mlp"] - kept["qkv"] == per_number * model_width
    assert kept["dots"] - kept["full"] == per_number * (model_width + heads + 2 * kv_heads + 2 * TINY.d_ff)
    assert kept["none"] > kept["dots"]


def test_bfloat16_compute_keeps_float32_parameters_logits_and_gradients(params: decoder.Params) -> None:
    columns = packed(5, 9, width=16)
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    hidden = hidden_states(params, **columns, config=config)
    assert hidden.dtype == jnp.bfloat16
    assert decoder.logits(params, hidden, config=config).dtype == jnp.float32
    loss, gradients = loss_and_gradients(params, columns, config=config)
    exact, exact_gradients = loss_and_gradients(params, columns, config=TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(loss, exact, rtol=0.02)
    assert_trees_close(gradients, exact_gradients, tolerance=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_declared_shapes_and_axes_are_those_of_the_initial_arrays(tied: bool) -> None:
    config = dataclasses.replace(TINY, tied_embeddings=tied)
    params = decoder.init_params(config, key=jax.random.key(1))
    abstract = decoder.abstract_params(config)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract
    )
    axes = decoder.logical_axes(config)
    jax.tree.map(lambda leaf, names: assert_equal(len(names), leaf.ndim), abstract, axes)
    assert decoder.unembedding(params, config).shape == (TINY.d_model, TINY.vocab_size)


def assert_equal(found: object, expected: object) -> None:
    assert found == expected


def test_initial_matrices_have_the_configured_deviation_and_norms_are_one() -> None:
    config = dataclasses.replace(TINY, d_model=128, d_ff=256, initializer_range=0.05)
    params = decoder.init_params(config, key=jax.random.key(3))
    norms = {"attention_norm", "mlp_norm", "final_norm"}
    matrices = {name: leaf for name, leaf in (params | params["layers"]).items() if name not in norms | {"layers"}}
    assert len(matrices) == 9
    for name, leaf in matrices.items():
        assert abs(float(leaf.std()) - 0.05) < 0.003, name
        assert abs(float(leaf.mean())) < 0.003, name
    assert all((leaf == 1).all() for name, leaf in (params | params["layers"]).items() if name in norms)
    assert not np.array_equal(params["layers"]["gate"], params["layers"]["up"])
    assert not np.array_equal(params["layers"]["gate"][0], params["layers"]["gate"][1])


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(slice=2, fsdp=2, tensor=2)], ids=str)
def test_a_mesh_changes_neither_initial_values_nor_loss_nor_gradients(params: decoder.Params, mesh: MeshConfig) -> None:
    devices: Mesh = make_mesh(mesh)
    placed = shardings(decoder.logical_axes(TINY), devices, shapes=decoder.abstract_params(TINY))
    columns = {name: jnp.tile(column, (8, 1)) for name, column in packed(5, 9, width=16).items()}
    loss, gradients = loss_and_gradients(params, columns, config=TINY)
    with jax.set_mesh(devices):
        sharded = jax.jit(lambda key: decoder.init_params(TINY, key=key), out_shardings=placed)(jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, sharded, params)
        split = {name: jax.device_put(column, batch_sharding(devices)) for name, column in columns.items()}
        found_loss, found_gradients = loss_and_gradients(sharded, split, config=TINY)
    assert not sharded["layers"]["gate"].is_fully_replicated
    np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
    assert_trees_close(found_gradients, gradients, tolerance=1e-5)

"""An adapter is trained beside weights that stay as they are, in whatever they are kept, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from jax._src.ad_checkpoint import saved_residuals
from jax.sharding import NamedSharding, PartitionSpec

from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params, init_params, logical_axes
from wizard_jax.model.flops import token_flops
from wizard_jax.model.lora import (
    INPUT_AXES,
    AdapterError,
    Base,
    LoRA,
    abstract_source,
    freeze_all,
    init_adapter,
    trained_axes,
    with_adapter,
)
from wizard_jax.model.quantise import BLOCK_AXIS, quantise
from wizard_jax.model.sharding import RULES, MeshConfig, batch_sharding, make_mesh
from wizard_jax.model.weights import dense, project
from wizard_jax.train.optimizer import AdamW
from wizard_jax.train.step import Steps, TrainState, abstract_batch, batch_loss, make_steps

MODEL = ModelConfig(
    vocab_size=96, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=80, initializer_range=0.1
)
OPTIMIZER = AdamW(peak_lr=0.01, schedule="constant")
LORA = LoRA(rank=3, alpha=6.0, base="float32")
ROWS, LENGTH = 8, 16


@functools.cache
def batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    tokens = random.integers(3, MODEL.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH)),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "loss_weights": (random.random((ROWS, LENGTH)) < 0.6).astype(np.float32),
        "halt": np.zeros(ROWS, np.int32),
    }


def steps_of(
    adapter: LoRA | None, *, mesh: jax.sharding.Mesh, model: ModelConfig = MODEL, microbatches: int = 1
) -> Steps:
    return make_steps(
        model, optimizer=OPTIMIZER, total_steps=10, gradient_accumulation=microbatches, mesh=mesh, adapter=adapter
    )


@functools.cache
def run(
    adapter: LoRA | None,
    *,
    devices: int = 1,
    tensor: int = 1,
    slices: int = 1,
    microbatches: int = 1,
    model: ModelConfig = MODEL,
    updates: int = 3,
) -> tuple[TrainState, TrainState, tuple[float, ...]]:
    """The state before, the state after, and the losses."""
    mesh = make_mesh(MeshConfig(tensor=tensor, slice=slices), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        steps = steps_of(adapter, mesh=mesh, model=model, microbatches=microbatches)
        state = steps.init(jax.random.key(0))
        before = jax.device_get(state)
        columns = jax.device_put(batch(), batch_sharding(mesh))
        losses = []
        for _ in range(updates):
            state, metrics = steps.train(state, columns)
            losses.append(float(metrics.loss))
        return before, jax.device_get(state), tuple(losses)


def assert_same(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_an_update_of_zero_leaves_the_first_loss_exactly_what_it_is_without_one() -> None:
    _, _, (without, *_) = run(None)
    _, _, (with_one, *_) = run(LORA)
    assert with_one == without


@pytest.mark.parametrize("base", ["float32", "nf4"])  # and bfloat16 below
def test_what_is_frozen_stays_as_it_is_to_the_bit_while_the_adapter_learns(base: Base) -> None:
    before, after, losses = run(dataclasses.replace(LORA, base=base))
    assert_same(after.frozen, before.frozen)
    assert list(losses) == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]
    for name, halves in after.params["layers"].items():
        for half in ("a", "b"):
            assert (halves[half] != before.params["layers"][name][half]).any(), (name, half)


def test_any_mesh_any_microbatches_and_recomputed_layers_train_the_same_adapter() -> None:
    adapter = dataclasses.replace(LORA, base="nf4")
    before, alone, losses = run(adapter)
    model = dataclasses.replace(MODEL, remat="full", scan_unroll=2)
    start, together, same = run(adapter, devices=8, slices=2, tensor=2, microbatches=2, model=model)
    assert_same(before.params, start.params)
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), together.params, alone.params)


def test_only_the_targets_are_trained() -> None:
    adapter = dataclasses.replace(LORA, targets=("v", "q"), base="bfloat16")
    before, after, losses = run(adapter)
    assert_same(after.frozen, before.frozen)
    assert after.params.keys() == {"layers"}
    assert after.params["layers"].keys() == {"q", "v"}
    assert losses[-1] < losses[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(before.params))
    assert count == MODEL.n_layers * 3 * ((32 + 4 * 8) + (32 + 2 * 8))
    moments = sum(leaf.size for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim)
    assert moments == 2 * count


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero() -> None:
    model = dataclasses.replace(MODEL, d_ff=2048)
    halves = init_adapter(model, adapter=dataclasses.replace(LORA, rank=32))["layers"]
    for name, fan_in in {"q": 32, "o": 32, "down": 2048}.items():
        a = np.asarray(halves[name]["a"])
        bound = math.sqrt(1 / fan_in)  # kaiming_uniform_(a=sqrt(5))
        assert 0.98 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / math.sqrt(3), rtol=0.05)
        assert not np.asarray(halves[name]["b"]).any()
    other = init_adapter(model, adapter=dataclasses.replace(LORA, rank=32, seed=1))["layers"]
    assert (np.asarray(other["q"]["a"]) != np.asarray(halves["q"]["a"])).all()
    alone = init_adapter(model, adapter=dataclasses.replace(LORA, rank=32, targets=("q",)))["layers"]
    np.testing.assert_array_equal(alone["q"]["a"], halves["q"]["a"])


def test_the_layer_computes_the_merged_weight_s_product() -> None:
    params = init_params(MODEL, key=jax.random.key(0))
    trained = init_adapter(MODEL, adapter=LORA)
    random = iter(jax.random.split(jax.random.key(3), 20))
    trained = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(random), leaf.shape), trained)
    merged = {**params, "layers": dict(params["layers"])}
    for name, halves in trained["layers"].items():
        n, *shape = params["layers"][name].shape
        product = halves["a"].reshape(n, -1, 3) @ halves["b"].reshape(n, 3, -1)
        merged["layers"][name] = params["layers"][name] + 2.0 * product.reshape(n, *shape)
    columns = {name: jnp.asarray(column) for name, column in batch().items()}
    total = jax.jit(lambda tree: batch_loss(tree, columns, model=MODEL).total)
    expected = total(merged)
    assert abs(float(total(params) - expected)) > 1
    np.testing.assert_allclose(total(with_adapter(params, trained, adapter=LORA)), expected, rtol=1e-5)


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(operations, shape of the result) of every matrix product that a traced function makes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            shape = equation.outvars[0].aval.shape
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
            yield 2 * times * math.prod(shape) * inner, shape
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                if isinstance(one, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                    yield from products(getattr(one, "jaxpr", one), inside)


def made(adapter: LoRA | None) -> list[tuple[int, tuple[int, ...]]]:
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps = steps_of(adapter, mesh=mesh)
        traced = steps.train.trace(steps.abstract, abstract_batch(rows=ROWS, seq_len=LENGTH, mesh=mesh))
        return list(products(traced.jaxpr.jaxpr))


def test_no_gradient_of_a_frozen_weight_is_ever_computed() -> None:
    """A token takes 4 operations for each frozen parameter, not 6, and 6 for each of A and B."""
    weights = {**abstract_params(MODEL)["layers"], "unembed": abstract_params(MODEL)["unembed"]}
    sizes = {name: leaf.size for name, leaf in weights.items() if not name.endswith("norm")}
    # the gradients of a layer: its inputs and outputs, which autodiff may give in either order
    shapes = {weights[name].shape[name != "unembed" :] for name in sizes}
    shapes |= {shape[at:] + shape[:at] for shape in shapes for at in (1, 2)}
    full, adapted = made(None), made(dataclasses.replace(LORA, base="nf4"))
    assert {shape for _, shape in full} & shapes
    assert not {shape for _, shape in adapted} & shapes
    tokens = ROWS * LENGTH
    low_rank = sum(leaf.size for leaf in jax.tree.leaves(init_adapter(MODEL, adapter=LORA)))
    attention = 6 * 2 * MODEL.n_layers * ROWS * LENGTH**2 * MODEL.n_heads * MODEL.head_dim
    assert sum(count for count, _ in full) == 6 * tokens * sum(sizes.values()) + attention
    assert sum(count for count, _ in adapted) == tokens * (4 * sum(sizes.values()) + 6 * low_rank) + attention
    by_formula = token_flops(MODEL, seq_len=LENGTH, adapter=LORA)
    assert by_formula.matrices * tokens == sum(count for count, _ in adapted) - attention


def size_in_bytes(tree: Any) -> float:
    """As a device packs it: JAX counts a whole byte for 4 bits."""

    def bits(dtype: Any) -> int:
        if dtype == jnp.bool_:
            return 8
        return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits

    return sum(math.prod(leaf.shape) * bits(leaf.dtype) / 8 for leaf in jax.tree.leaves(tree))


def test_the_base_is_returned_in_the_memory_that_it_came_in() -> None:
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps = steps_of(dataclasses.replace(LORA, base="bfloat16"), mesh=mesh)
        inputs = abstract_batch(rows=ROWS, seq_len=LENGTH, mesh=mesh)
        memory = steps.train.lower(steps.abstract, inputs).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size_in_bytes(steps.abstract.frozen)
    bytes_in = size_in_bytes((steps.abstract, inputs))
    assert memory.argument_size_in_bytes == pytest.approx(bytes_in, abs=64 * len(jax.tree.leaves(steps.abstract)))


@pytest.mark.parametrize(
    ("base", "per_weight"), [("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.0625), ("nf4", 0.53125)]
)
def test_a_7b_s_base_takes_as_many_bytes_a_weight_as_it_says(base: Base, per_weight: float) -> None:
    model = ModelConfig(
        vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, d_ff=11008
    )
    stored = abstract_source(model, adapter=dataclasses.replace(LORA, base=base))
    layers = {name: stored["layers"][name] for name in INPUT_AXES}
    weights = sum(abstract_params(model)["layers"][name].size for name in INPUT_AXES)
    assert size_in_bytes(layers) == per_weight * weights
    assert stored["embed"].dtype == stored["unembed"].dtype == ("float32" if base == "float32" else "bfloat16")
    assert stored["layers"]["mlp_norm"].dtype == "float32"


@pytest.mark.parametrize("name", ["q", "o", "down"])
def test_four_bits_are_those_of_qwix_and_off_by_less_than_half_a_gap(name: str) -> None:
    shape = {"q": (2, 48, 3, 128), "o": (2, 3, 128, 48), "down": (2, 192, 48)}[name]
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[0, :2] *= 100
    axes = logical_axes(MODEL)["layers"][name][1:]
    axis = axes.index("mlp" if name == "down" else "head_dim") + 1
    stored = jax.jit(quantise, static_argnames=("name", "axes", "bits"))(
        name=name, stacked=jnp.asarray(weight), axes=axes, bits="nf4"
    )
    others = [other for other in range(len(shape)) if other != axis]
    theirs = qwix.quantize(
        jnp.asarray(weight), "nf4", channelwise_axes=others, tiled_axes={axis: 64}, scale_dtype=jnp.bfloat16
    )
    np.testing.assert_array_equal(stored.codes.astype(np.int32), theirs.qvalue.astype(np.int32))
    np.testing.assert_array_equal(stored.scales, theirs.scale)
    found = dense(stored)
    float32_scale = dataclasses.replace(theirs, scale=theirs.scale.astype(jnp.float32))
    np.testing.assert_array_equal(found, qwix.dequantize(float32_scale))
    blocks = np.moveaxis(weight, axis, -1)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, 64)
    off = np.abs(np.moveaxis(np.asarray(found), axis, -1).reshape(blocks.shape) - blocks).max(axis=-1)
    assert (off <= (0.152 + 2**-8) * np.abs(blocks).max(axis=-1)).all()


def test_fewer_bits_are_further_from_the_whole_weights() -> None:
    columns = {name: jnp.asarray(column) for name, column in batch().items()}
    params = init_params(MODEL, key=jax.random.key(0))

    @functools.partial(jax.jit, static_argnames="base")
    def loss(base: Base | None) -> jax.Array:
        adapter = None if base is None else dataclasses.replace(LORA, base=base)
        return batch_loss(freeze_all(params, model=MODEL, adapter=adapter), columns, model=MODEL).total

    def off(base: Base) -> float:
        return abs(float(loss(base)) / float(loss(None)) - 1)

    assert off("float32") == 0
    assert 0 < off("int8") < 2e-3
    assert off("int8") < off("nf4") < 2e-2


def test_every_part_is_split_as_its_weight_is() -> None:
    axes = trained_axes(MODEL, adapter=LORA)["layers"]
    assert axes["q"] == {"a": ("layers", "embed", "rank"), "b": ("layers", "rank", "heads", "head_dim")}
    assert axes["o"] == {"a": ("layers", "heads", "head_dim", "rank"), "b": ("layers", "rank", "embed")}
    mesh = make_mesh(MeshConfig(tensor=2))
    abstract = steps_of(dataclasses.replace(LORA, base="nf4"), mesh=mesh).abstract
    q, down = abstract.frozen["layers"]["q"], abstract.frozen["layers"]["down"]
    assert q.codes.sharding.spec == q.scales.sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert down.codes.sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert abstract.params["layers"]["q"]["a"].sharding.spec == PartitionSpec(None, "fsdp", None)
    assert abstract.params["layers"]["q"]["b"].sharding.spec == PartitionSpec(None, None, "tensor", None)


@pytest.mark.parametrize(("base", "travels"), [("nf4", ("u4", "u8", "s8")), ("int8", ("s8",))])
def test_what_fsdp_gathers_of_a_frozen_weight_is_its_codes(base: Base, travels: tuple[str, ...]) -> None:
    mesh = make_mesh(MeshConfig())
    axes = logical_axes(MODEL)["layers"]["gate"][1:]
    whole = jax.eval_shape(functools.partial(quantise, "gate", axes=axes, bits=base), jnp.ones((1, 64, 128)))
    stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), whole)
    where = NamedSharding(mesh, PartitionSpec("fsdp", None))
    product = functools.partial(project, "bld,df->blf", dtype="bfloat16")
    told = jax.jit(product, in_shardings=(batch_sharding(mesh), where))
    with jax.set_mesh(mesh):
        program = told.lower(jax.ShapeDtypeStruct((8, 4, 64), jnp.bfloat16), stored).compile().as_text()
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", program)
    assert {dtype for dtype, shape in gathered if shape == "64,128"} & set(travels)
    assert not {dtype for dtype, shape in gathered if shape == "64,128"} - set(travels)


def test_no_copy_of_a_quantised_weight_is_kept_for_the_backward_pass() -> None:
    axes = logical_axes(MODEL)["layers"]["gate"][1:]
    whole = quantise("gate", jnp.ones((1, 64, 128)), axes=axes, bits="nf4")

    def kept(weight: Any) -> set[Any]:
        def total(x: jax.Array, weight: Any) -> jax.Array:
            return project("bld,df->blf", x, weight, dtype="bfloat16").sum()

        found = saved_residuals(total, jnp.ones((8, 4, 64), jnp.bfloat16), weight)
        return {array.dtype for array, _ in found if array.shape == (64, 128)}

    assert kept(jnp.ones((64, 128), jnp.bfloat16)) == {jnp.dtype("bfloat16")}
    assert kept(jax.tree.map(lambda leaf: leaf[0], whole)) == {jnp.dtype("uint4")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("q", "gates")}, "no linear layer is named 'gates'; did you mean gate"),
        ({"targets": ("q_proj",)}, "did you mean q"),
        ({"targets": ("q", "q")}, "each layer once"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"alpha": math.inf}, "alpha above 0"),
        ({"seed": 2**63}, "64 bits"),
    ],
)
def test_settings_that_no_adapter_can_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        dataclasses.replace(LORA, **settings)


def test_blocks_are_cut_where_fsdp_never_splits() -> None:
    """So a scale and what it scales are on one chip, however many there are."""
    assert BLOCK_AXIS.keys() == INPUT_AXES.keys()
    for name, axis in BLOCK_AXIS.items():
        assert "fsdp" not in RULES[logical_axes(MODEL)["layers"][name][axis]]
    assert set(itertools.chain(*RULES.values())) == {"slice", "fsdp", "tensor"}

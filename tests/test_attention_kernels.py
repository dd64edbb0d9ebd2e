"""The kernels of TPUs and GPUs equal the reference, on one device and on a mesh, and are in the programs for both."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wizard_jax.model.attention import AttentionError, attend, attend_packed, with_attention_for
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.model.splash import blocks_of

KERNELS = ("splash", "triton")
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
Attention = Callable[..., jax.Array]


def arrays(*, length: int, dtype: Any, batch: int = 2, kv_heads: int = KV_HEADS) -> tuple[jax.Array, ...]:
    """Queries, keys, values, and what the loss weighs the result with."""
    random = np.random.default_rng(length)
    sizes = (HEADS, kv_heads, kv_heads, HEADS)
    return tuple(jnp.asarray(random.normal(size=(batch, length, heads, HEAD_DIM)), dtype) for heads in sizes)


def packed_rows(*, length: int, batch: int = 2) -> jax.Array:
    """Rows of several conversations and padding: one that crosses blocks, one mostly padding, one without any."""
    segments = np.zeros((batch, length), np.int32)
    for row in range(batch):
        bounds = ([0, 5, length - 9], [0, 7], [0, length // 3, length // 2, length])[row % 3]
        for segment, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
            segments[row, start:end] = segment
    return jnp.asarray(segments)


def outcome(attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, weights: jax.Array) -> tuple[Any, ...]:
    """The result and the gradients of queries, keys and values."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        attended = attention(q, k, v)
        return (attended.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), attended

    gradients, attended = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return attended, *gradients


def reference(segments: jax.Array) -> Attention:
    return functools.partial(attend, q_segment_ids=segments, kv_segment_ids=segments)


def interpreted(kernel: str, segments: jax.Array) -> Attention:
    return functools.partial(attend_packed, segment_ids=segments, implementation=kernel, interpret=True)


def assert_close(found: tuple[Any, ...], expected: tuple[Any, ...], *, tolerance: float) -> None:
    for array, wanted in zip(found, expected, strict=True):
        wanted = np.asarray(wanted, np.float32)
        np.testing.assert_allclose(np.asarray(array, np.float32), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 0.01)], ids=["f32", "bf16"])
def test_a_kernel_gives_the_result_and_the_gradients_of_the_reference(
    kernel: str, dtype: Any, tolerance: float
) -> None:
    segments = packed_rows(length=256)
    given = arrays(length=256, dtype=dtype)
    exact = tuple(array.astype(jnp.float32) for array in given)
    found = outcome(interpreted(kernel, segments), *given)
    assert {array.dtype for array in found} == {jnp.dtype(dtype)}
    assert_close(found, outcome(reference(segments), *exact), tolerance=tolerance)


def test_the_kernel_of_tpus_leaves_out_what_is_behind_the_window() -> None:
    segments = packed_rows(length=640)
    given = arrays(length=640, dtype=jnp.float32)
    found = outcome(functools.partial(interpreted("splash", segments), window=150), *given)
    expected = outcome(functools.partial(reference(segments), window=150), *given)
    assert_close(found, expected, tolerance=2e-6)
    assert not np.allclose(found[0], outcome(reference(segments), *given)[0], atol=1e-2)
    in_parts = functools.partial(attend_packed, segment_ids=segments, implementation="reference", window=150)
    assert_close(outcome(in_parts, *given), expected, tolerance=2e-6)


def test_the_kernel_of_gpus_refuses_a_window_that_leaves_something_out() -> None:
    segments = packed_rows(length=256)
    q, k, v, _ = arrays(length=256, dtype=jnp.float32)
    with pytest.raises(AttentionError, match=r"set model.attention to 'reference', or data.seq_len to 255 or less"):
        interpreted("triton", segments)(q, k, v, window=255)
    whole = interpreted("triton", segments)(q, k, v)
    np.testing.assert_array_equal(interpreted("triton", segments)(q, k, v, window=256), whole)


@pytest.mark.parametrize("kernel", KERNELS)
def test_lengths_that_are_no_multiple_of_a_block_are_filled_up(kernel: str) -> None:
    segments = packed_rows(length=200, batch=3)
    given = arrays(length=200, dtype=jnp.float32, batch=3)
    assert_close(outcome(interpreted(kernel, segments), *given), outcome(reference(segments), *given), tolerance=2e-6)


def test_several_blocks_a_row_are_one_softmax() -> None:
    segments = packed_rows(length=700, batch=1)
    given = arrays(length=700, dtype=jnp.float32, batch=1)
    assert blocks_of(700) == (384, 768)
    assert_close(outcome(interpreted("splash", segments), *given), outcome(reference(segments), *given), tolerance=2e-6)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(2048, (512, 2048)), (1, (128, 128)), (300, (384, 384)), (2100, (384, 2304)), (1280, (256, 1280))],
)
def test_blocks_hold_a_row_with_little_filling(length: int, expected: tuple[int, int]) -> None:
    assert blocks_of(length) == expected


@pytest.mark.parametrize(
    ("kernel", "mesh", "kv_heads"),
    [
        ("splash", MeshConfig(slice=2, fsdp=2, tensor=2), 2),
        ("splash", MeshConfig(fsdp=2, tensor=4), 2),
        ("triton", MeshConfig(fsdp=2, tensor=4), 1),
    ],
    ids=["a key head each", "fewer key heads than ways", "one key head"],
)
def test_on_a_mesh_each_device_computes_its_rows_and_heads(kernel: str, mesh: MeshConfig, kv_heads: int) -> None:
    segments = packed_rows(length=128, batch=4)
    given = arrays(length=128, dtype=jnp.float32, batch=4, kv_heads=kv_heads)
    expected = outcome(reference(segments), *given)
    with jax.set_mesh(make_mesh(mesh)):
        found = outcome(interpreted(kernel, segments), *given)
    assert_close(found, expected, tolerance=2e-6)


MODEL = ModelConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_for_other_devices_is_refused(kernel: str) -> None:
    config = ModelConfig(**{**vars(MODEL), "attention": kernel})
    with pytest.raises(AttentionError, match=f"attention = '{kernel}' is not for cpu devices: set it to 'auto'"):
        with_attention_for(make_mesh(MeshConfig()), config=config)


def test_heads_that_the_mesh_does_not_divide_are_refused() -> None:
    with pytest.raises(AttentionError, match=r"mesh\.tensor = 8 does not divide n_heads = 4"):
        with_attention_for(make_mesh(MeshConfig(tensor=8)), config=MODEL)


def test_auto_is_the_reference_on_cpus() -> None:
    assert with_attention_for(make_mesh(MeshConfig()), config=MODEL).attention == "reference"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("kernel", "platform", "call"), [("splash", "tpu", "@tpu_custom_call"), ("triton", "cuda", "@__gpu$xla.gpu.triton")]
)
def test_a_kernel_is_in_the_program_for_its_devices_forwards_and_backwards(
    kernel: str, platform: str, call: str, dtype: Any
) -> None:
    segments = packed_rows(length=256)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        attended = attend_packed(q, k, v, segment_ids=segments, implementation=kernel)
        return attended.astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct((2, 256, heads, 128), dtype) for heads in (4, 2, 2)]
    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert program.count(call) == 3
    assert "256x256x" not in program  # no scores of whole rows

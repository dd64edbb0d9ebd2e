"""Attention is the sum over allowed keys that its definition says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from wizard_jax.model.attention import QUERIES, attend, attend_packed

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]], np.int32)


def random(shape: tuple[int, ...], *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_by_one(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, segments: np.ndarray) -> np.ndarray:
    """Every query head of every token by itself, in float64."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    out = np.zeros_like(q)
    batch, length, heads, head_dim = q.shape
    per_group = heads // k.shape[2]
    for b, i, h in np.ndindex(batch, length, heads):
        seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i]]
        scores = np.array([q[b, i, h] @ k[b, j, h // per_group] for j in seen]) / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[b, i, h] = (weights / weights.sum()) @ v[b, seen, h // per_group]
    return out


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return random((2, 6, 4, 8), seed=0), random((2, 6, 2, 8), seed=1), random((2, 6, 2, 8), seed=2)


def test_equals_the_definition_with_grouped_heads_and_segments() -> None:
    q, k, v = arrays()
    found = attend(*map(jnp.asarray, (q, k, v)), q_segment_ids=SEGMENTS, kv_segment_ids=SEGMENTS)
    np.testing.assert_allclose(found, one_by_one(q, k, v, segments=SEGMENTS), atol=2e-6)


def test_a_query_at_an_offset_sees_what_it_saw_in_the_whole() -> None:
    q, k, v = map(jnp.asarray, arrays())
    whole = attend(q, k, v, q_segment_ids=SEGMENTS, kv_segment_ids=SEGMENTS)
    one = attend(q[:, 4:5], k, v, q_segment_ids=SEGMENTS[:, 4:5], kv_segment_ids=SEGMENTS, q_offset=jnp.int32(4))
    np.testing.assert_allclose(one, whole[:, 4:5], atol=1e-6)


def test_rows_longer_than_the_queries_taken_at_a_time_attend_as_a_whole() -> None:
    length = 2 * QUERIES + 7
    q, k, v = (jnp.asarray(random((1, length, heads, 8), seed=heads)) for heads in (4, 2, 2))
    segments = jnp.asarray(np.searchsorted([40, QUERIES + 9, length - 5], np.arange(length)[None], side="right") + 1)
    segments = jnp.where(segments == 4, 0, segments).astype(jnp.int32)
    found = attend_packed(q, k, v, segment_ids=segments, implementation="reference")
    np.testing.assert_allclose(
        found, attend(q, k, v, q_segment_ids=segments, kv_segment_ids=segments), rtol=1e-5, atol=1e-6
    )


def test_fully_masked_queries_give_finite_values_and_gradients() -> None:
    q, k, v = map(jnp.asarray, arrays())
    elsewhere = jnp.full_like(SEGMENTS, 9)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, q_segment_ids=elsewhere, kv_segment_ids=SEGMENTS).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(array).all() for array in (value, *gradients))


def test_softmax_is_float32_and_the_result_has_the_dtype_of_its_input() -> None:
    q, k, v = (jnp.asarray(array, jnp.bfloat16) for array in arrays())
    jaxpr = str(jax.make_jaxpr(lambda *qkv: attend(*qkv, q_segment_ids=SEGMENTS, kv_segment_ids=SEGMENTS))(q, k, v))
    exponential = next(line for line in jaxpr.splitlines() if "= exp " in line)
    assert "f32" in exponential
    assert attend(q, k, v, q_segment_ids=SEGMENTS, kv_segment_ids=SEGMENTS).dtype == jnp.bfloat16

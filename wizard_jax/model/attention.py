"""Causal attention within segments, and the kernels that compute it on TPUs and GPUs.

Shape legend: see decoder.py; S keys, G = H / K query heads per key head.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs.errors import UserError
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.remat import ATTENDED, named
from wizard_jax.model.sharding import MESH_AXES, partition_spec

KERNELS: Mapping[str, Literal["splash", "triton"]] = {
    "tpu": "splash",
    "gpu": "triton",
}  # the platform of a device: the kernel made for it
QUERIES = 256
"""That the reference takes at a time in training: at L = 2048 it computes 9 of 16 scores."""
MASKED = -1e30  # finite, so that a fully masked row gives numbers and not NaN


def attend(
    q_BxLxHxDh: jax.Array,
    k_BxSxKxDh: jax.Array,
    v_BxSxKxDh: jax.Array,
    *,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    q_offset: jax.Array | int = 0,
    window: int | None = None,
) -> jax.Array:
    """Softmax attention of each query over the keys of its own segment, at or before it: [B, L, H, Dh].

    `q_segment_ids` is [B, L] and `kv_segment_ids` [B, S]; 0 marks padding, which sees only padding. Query i
    stands at index `q_offset + i` of the key axis (0 in training; in decoding its slot, [B] if rows differ). Of a
    sliding `window` (arXiv 2310.06825) it sees so many indices, its own the last of them.
    Scores and softmax are float32 whatever the inputs are. This is the reference that every kernel must equal.
    """
    batch, length, heads, head_dim = q_BxLxHxDh.shape
    slots, kv_heads = k_BxSxKxDh.shape[1:3]
    # Heads before positions: XLA's products on CPU take a fifth longer of a whole step the other way round.
    q_BxKxGxLxDh = jnp.moveaxis(q_BxLxHxDh.reshape(batch, length, kv_heads, heads // kv_heads, head_dim), 1, 3)
    k_BxKxSxDh, v_BxKxSxDh = (jnp.moveaxis(x, 1, 2) for x in (k_BxSxKxDh, v_BxSxKxDh))
    scores_BxKxGxLxS = jnp.einsum("bkgld,bksd->bkgls", q_BxKxGxLxDh, k_BxKxSxDh, preferred_element_type=jnp.float32) * (
        head_dim**-0.5
    )
    index_LxS = jnp.asarray(q_offset, jnp.int32)[..., None, None] + jnp.arange(length)[:, None]
    behind_LxS = index_LxS - jnp.arange(slots)
    seen_LxS = behind_LxS >= 0 if window is None else (behind_LxS >= 0) & (behind_LxS < window)
    mask_BxLxS = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & seen_LxS
    scores_BxKxGxLxS = jnp.where(mask_BxLxS[:, None, None], scores_BxKxGxLxS, MASKED)
    weights_BxKxGxLxS = jax.nn.softmax(scores_BxKxGxLxS, axis=-1).astype(v_BxSxKxDh.dtype)
    mixed_BxKxGxLxDh = jnp.einsum("bkgls,bksd->bkgld", weights_BxKxGxLxS, v_BxKxSxDh)
    return jnp.moveaxis(mixed_BxKxGxLxDh, 3, 1).reshape(batch, length, heads, head_dim)


def _attend_to_itself(
    q_BxLxHxDh: jax.Array,
    k_BxLxKxDh: jax.Array,
    v_BxLxKxDh: jax.Array,
    *,
    segment_ids: jax.Array,
    window: int | None,
) -> jax.Array:
    """`attend` of whole rows, some queries at a time: the keys that none of them sees are left out."""
    length = q_BxLxHxDh.shape[1]
    attended = []
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        first = 0 if window is None else max(0, start + 1 - window)
        part = attend(
            q_BxLxHxDh[:, start:end],
            k_BxLxKxDh[:, first:end],
            v_BxLxKxDh[:, first:end],
            q_segment_ids=segment_ids[:, start:end],
            kv_segment_ids=segment_ids[:, first:end],
            q_offset=start - first,
            window=window,
        )
        attended.append(part)
    return jnp.concatenate(attended, axis=1)


class AttentionError(UserError):
    """An attention that these devices can not compute."""


def with_attention_for(mesh: Mesh, *, config: ModelConfig) -> ModelConfig:
    """The config with `attention` decided: 'auto' becomes the kernel of the mesh's devices, or the reference.

    The devices may be described and not there. Raises AttentionError: a kernel that is not for these devices, or
    heads that the mesh's `tensor` does not divide.
    """
    platform = mesh.devices.flat[0].platform
    own: Literal["reference", "splash", "triton"] = KERNELS.get(platform, "reference")
    if config.attention not in ("auto", "reference", own):
        raise AttentionError(
            f"attention = {config.attention!r} is not for {platform} devices: set it to 'auto' ({own!r} here)"
        )
    if config.n_heads % mesh.shape["tensor"]:
        raise AttentionError(
            f"mesh.tensor = {mesh.shape['tensor']} does not divide n_heads = {config.n_heads}: each device computes "
            "whole heads; set it to a divisor"
        )
    return dataclasses.replace(config, attention=own if config.attention == "auto" else config.attention)


def attend_packed(
    q_BxLxHxDh: jax.Array,
    k_BxLxKxDh: jax.Array,
    v_BxLxKxDh: jax.Array,
    *,
    segment_ids: jax.Array,
    implementation: str,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` of rows to themselves, by one of the implementations of `ModelConfig.attention`: [B, L, H, Dh].

    A kernel sees the rows and heads of one device (`jax.shard_map`), so B must be a multiple of the mesh's
    `slice` x `fsdp` and H of its `tensor`. Key-value heads that are too few for `tensor` are repeated. What a kernel
    gives at padding is as finite and as meaningless as what the reference gives. 'auto', which `with_attention_for`
    has not decided, is the reference.
    """
    if window is not None and window >= q_BxLxHxDh.shape[1]:
        window = None  # it leaves nothing out
    if implementation in ("auto", "reference"):
        attended = _attend_to_itself(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segment_ids=segment_ids, window=window)
        return named(attended, ATTENDED)
    kernel: Callable[..., jax.Array]
    if implementation == "splash":
        from wizard_jax.model.splash import attend_splash

        kernel = functools.partial(attend_splash, window=window, interpret=interpret)
    else:
        from wizard_jax.model.triton import attend_triton

        if window is not None:
            raise AttentionError(
                f"the kernel of GPUs knows no sliding window, and sliding_window = {window} is shorter than rows of "
                f"{q_BxLxHxDh.shape[1]}: set model.attention to 'reference', or data.seq_len to {window} or less"
            )
        kernel = functools.partial(attend_triton, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names):
        return kernel(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segment_ids=segment_ids)
    kv_heads = k_BxLxKxDh.shape[2]
    copies = math.lcm(kv_heads, mesh.shape["tensor"]) // kv_heads
    rows = partition_spec(("batch", None), mesh.shape)
    heads = partition_spec(("batch", None, "heads", None), mesh.shape)

    def per_device(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return kernel(q, k, v, segment_ids=segments)

    k_BxLxKxDh, v_BxLxKxDh = (jnp.repeat(x, copies, axis=2) for x in (k_BxLxKxDh, v_BxLxKxDh))
    attended_BxLxHxDh: jax.Array = jax.shard_map(
        per_device,
        in_specs=(heads, heads, heads, rows),
        out_specs=heads,
        check_vma=False,  # a Pallas kernel does not say over which axes its result varies
    )(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, segment_ids)
    return attended_BxLxHxDh

"""Causal attention within segments. Shape legend: see decoder.py; S keys, G = H / K query heads per key head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a fully masked row gives numbers and not NaN


def attend(
    q_BxLxHxDh: jax.Array,
    k_BxSxKxDh: jax.Array,
    v_BxSxKxDh: jax.Array,
    *,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    q_offset: jax.Array | int = 0,
) -> jax.Array:
    """Softmax attention of each query over the keys of its own segment, at or before it: [B, L, H, Dh].

    `q_segment_ids` is [B, L] and `kv_segment_ids` [B, S]; 0 marks padding, which sees only padding. Query i
    stands at index `q_offset + i` of the key axis (0 in training, the cache slot in decoding).
    Scores and softmax are float32 whatever the inputs are. This is the reference that every kernel must equal.
    """
    batch, length, heads, head_dim = q_BxLxHxDh.shape
    slots, kv_heads = k_BxSxKxDh.shape[1:3]
    q_BxLxKxGxDh = q_BxLxHxDh.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores_BxKxGxLxS = jnp.einsum("blkgd,bskd->bkgls", q_BxLxKxGxDh, k_BxSxKxDh, preferred_element_type=jnp.float32) * (
        head_dim**-0.5
    )
    causal_LxS = jnp.arange(slots) <= q_offset + jnp.arange(length)[:, None]
    mask_BxLxS = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & causal_LxS
    scores_BxKxGxLxS = jnp.where(mask_BxLxS[:, None, None], scores_BxKxGxLxS, MASKED)
    weights_BxKxGxLxS = jax.nn.softmax(scores_BxKxGxLxS, axis=-1).astype(v_BxSxKxDh.dtype)
    mixed_BxLxKxGxDh = jnp.einsum("bkgls,bskd->blkgd", weights_BxKxGxLxS, v_BxSxKxDh)
    return mixed_BxLxKxGxDh.reshape(batch, length, heads, head_dim)

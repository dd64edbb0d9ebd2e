"""Cross-entropy over a large vocabulary in blocks of positions, so that all logits never exist at once.

Shape legend: B batch, L length, D model, V vocabulary, P positions in one block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK_POSITIONS = 512


class Loss(NamedTuple):
    """A sum and its weight, to be added up over microbatches and hosts and divided once."""

    total: jax.Array
    weight: jax.Array


class _Gradients(NamedTuple):
    hidden: jax.Array
    unembedding: jax.Array


def cross_entropy(
    hidden_BxLxD: jax.Array,
    *,
    unembedding_DxV: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    block_positions: int = BLOCK_POSITIONS,
) -> Loss:
    """Sum of `weight * -log softmax(hidden @ unembedding)[target]`, and the sum of the weights, in float32.

    `block_positions` positions of every row are done at a time: the largest array is [B, P, V]. The gradient
    with respect to the logits of a block is known as soon as the block is, so under differentiation it is
    turned into the gradients of `hidden` and `unembedding` at once, and no logits are computed twice. The
    matrix products run in the dtype of `hidden` and accumulate in float32. Weights get no gradient.
    """
    length = hidden_BxLxD.shape[1]
    block = min(block_positions, length)
    padding = -length % block

    def blocks(array: jax.Array) -> jax.Array:
        """[B, L, ...] -> [L / P, B, P, ...], the last block filled with zeros (weight 0)."""
        filled = jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2))
        split = filled.reshape(filled.shape[0], -1, block, *filled.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    weights_BxL = weights_BxL.astype(jnp.float32)
    total = _blockwise(
        blocks(hidden_BxLxD),
        unembedding_DxV.astype(hidden_BxLxD.dtype),
        blocks(targets_BxL),
        blocks(weights_BxL),
    )
    return Loss(total=total, weight=weights_BxL.sum())


@jax.custom_vjp
def _blockwise(
    hidden_NxBxPxD: jax.Array, unembedding_DxV: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    def add(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden_BxPxD, targets_BxP, weights_BxP = block
        loss, _ = _one_block(hidden_BxPxD, unembedding_DxV, targets_BxP, weights_BxP)
        return total + loss, None

    total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), (hidden_NxBxPxD, targets, weights))
    return total


def _blockwise_forward(
    hidden_NxBxPxD: jax.Array, unembedding_DxV: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, _Gradients]:
    def add(
        carry: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, unembedding_gradient = carry
        hidden_BxPxD, targets_BxP, weights_BxP = block
        loss, dlogits_BxPxV = _one_block(hidden_BxPxD, unembedding_DxV, targets_BxP, weights_BxP)
        dlogits_BxPxV = dlogits_BxPxV.astype(hidden_BxPxD.dtype)
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        dhidden_BxPxD = dot("bpv,dv->bpd", dlogits_BxPxV, unembedding_DxV)
        unembedding_gradient += dot("bpd,bpv->dv", hidden_BxPxD, dlogits_BxPxV)
        return (total + loss, unembedding_gradient), dhidden_BxPxD.astype(hidden_BxPxD.dtype)

    nothing = (jnp.zeros((), jnp.float32), jnp.zeros(unembedding_DxV.shape, jnp.float32))
    one_block = hidden_NxBxPxD.shape[0] == 1  # then no loop is left: XLA's CPU loops slow down what is in them
    (total, dunembedding_DxV), dhidden_NxBxPxD = jax.lax.scan(
        add, nothing, (hidden_NxBxPxD, targets, weights), unroll=one_block
    )
    return total, _Gradients(dhidden_NxBxPxD, dunembedding_DxV.astype(unembedding_DxV.dtype))


def _blockwise_backward(gradients: _Gradients, scale: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    hidden, unembedding = (g * scale.astype(g.dtype) for g in gradients)
    return hidden, unembedding, None, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _one_block(
    hidden_BxPxD: jax.Array, unembedding_DxV: jax.Array, targets_BxP: jax.Array, weights_BxP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Loss of a block (scalar) and its gradient with respect to the logits [B, P, V], both float32."""
    logits_BxPxV = jnp.einsum("bpd,dv->bpv", hidden_BxPxD, unembedding_DxV, preferred_element_type=jnp.float32)
    log_normaliser_BxP = jax.nn.logsumexp(logits_BxPxV, axis=-1)
    # A comparison and not a gather: it stays local when V is sharded.
    is_target_BxPxV = targets_BxP[..., None] == jnp.arange(logits_BxPxV.shape[-1], dtype=targets_BxP.dtype)
    target_logit_BxP = jnp.where(is_target_BxPxV, logits_BxPxV, 0.0).sum(axis=-1)
    loss = (weights_BxP * (log_normaliser_BxP - target_logit_BxP)).sum()
    probabilities_BxPxV = jnp.exp(logits_BxPxV - log_normaliser_BxP[..., None])
    return loss, weights_BxP[..., None] * (probabilities_BxPxV - is_target_BxPxV.astype(jnp.float32))


def token_losses(
    hidden_BxLxD: jax.Array,
    *,
    unembedding_DxV: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    block_positions: int = BLOCK_POSITIONS,
) -> jax.Array:
    """`weight * -log softmax(hidden @ unembedding)[target]` of every position: float32 [B, L].

    In blocks as `cross_entropy`, whose total is the sum of these; not meant to be differentiated.
    """
    batch, length = targets_BxL.shape
    block = min(block_positions, length)
    unembedding_DxV = unembedding_DxV.astype(hidden_BxLxD.dtype)

    def blocks(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, ((0, 0), (0, -length % block)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(filled.reshape(batch, -1, block, *array.shape[2:]), 1, 0)

    def losses(part: tuple[jax.Array, ...]) -> jax.Array:
        hidden_BxPxD, targets_BxP, weights_BxP = part
        logits_BxPxV = jnp.einsum("bpd,dv->bpv", hidden_BxPxD, unembedding_DxV, preferred_element_type=jnp.float32)
        is_target_BxPxV = targets_BxP[..., None] == jnp.arange(logits_BxPxV.shape[-1], dtype=targets_BxP.dtype)
        target_logit_BxP = jnp.where(is_target_BxPxV, logits_BxPxV, 0.0).sum(axis=-1)
        return weights_BxP * (jax.nn.logsumexp(logits_BxPxV, axis=-1) - target_logit_BxP)

    weights_BxL = weights_BxL.astype(jnp.float32)
    found_NxBxP = jax.lax.map(losses, (blocks(hidden_BxLxD), blocks(targets_BxL), blocks(weights_BxL)))
    return jnp.moveaxis(found_NxBxP, 0, 1).reshape(batch, -1)[:, :length]

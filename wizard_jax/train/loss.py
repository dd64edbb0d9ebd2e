"""Cross-entropy over a large vocabulary in blocks of positions, so that all logits never exist at once.

Shape legend: B batch, L length, D model, V vocabulary, P positions in one block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wizard_jax.model.sharding import MESH_AXES, RULES, constrain, partition_spec

BLOCK_POSITIONS = 512
WHOLE_BUT_VOCAB = (None, "vocab")  # how the unembedding lies while blocks are computed with it


Sums = tuple[jax.Array, jax.Array]  # the loss, and the part of it that is z-loss


class Loss(NamedTuple):
    """Sums, to be added up over microbatches and hosts and divided by `weight` once.

    `total` is what is minimised. `z` is the part of it that is not cross-entropy; it is for reporting: no gradient.
    """

    total: jax.Array
    weight: jax.Array
    z: jax.Array


class _Gradients(NamedTuple):
    hidden: jax.Array
    unembedding: jax.Array | None
    """None where nobody asks for it: it takes as many operations as the logits do"""


def cross_entropy(
    hidden_BxLxD: jax.Array,
    *,
    unembedding_DxV: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    z_loss: float = 0.0,
    block_positions: int = BLOCK_POSITIONS,
) -> Loss:
    """Sum of `weight * -log softmax(hidden @ unembedding)[target]`, and the sum of the weights, in float32.

    With `z_loss`, `z_loss * weight * log(Z)^2` is added, Z being the normaliser of the softmax: it keeps logits from
    drifting (PaLM, arXiv 2204.02311, section 5, with 1e-4).

    `block_positions` positions of every row are done at a time: the largest array is [B, P, V]. The gradient
    with respect to the logits of a block is known as soon as the block is, so under differentiation it is
    turned into the gradients of `hidden` and `unembedding` at once, and no logits are computed twice. The
    matrix products run in the dtype of `hidden` and accumulate in float32. Weights get no gradient.

    On a mesh the unembedding is gathered once, and not in every block; its gradient is summed over the devices once.
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
    total, z = _blockwise(
        z_loss,
        blocks(hidden_BxLxD),
        unembedding_DxV.astype(hidden_BxLxD.dtype),
        blocks(targets_BxL),
        blocks(weights_BxL),
    )
    return Loss(total=total, weight=weights_BxL.sum(), z=jax.lax.stop_gradient(z))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(
    z_loss: float, hidden_NxBxPxD: jax.Array, unembedding_DxV: jax.Array, targets: jax.Array, weights: jax.Array
) -> Sums:
    unembedding_DxV = constrain(unembedding_DxV, WHOLE_BUT_VOCAB)

    def add(sums: Sums, block: tuple[jax.Array, ...]) -> tuple[Sums, None]:
        hidden_BxPxD, targets_BxP, weights_BxP = block
        of_block, _ = _one_block(hidden_BxPxD, unembedding_DxV, targets_BxP, weights_BxP, z_loss=z_loss)
        return _added(sums, of_block), None

    sums, _ = jax.lax.scan(add, _zeros(), (hidden_NxBxPxD, targets, weights))
    return sums


def _zeros() -> Sums:
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)


def _added(left: Sums, right: Sums) -> Sums:
    return left[0] + right[0], left[1] + right[1]


def _blockwise_forward(
    z_loss: float, hidden: Any, unembedding: Any, targets: Any, weights: Any
) -> tuple[Sums, _Gradients]:
    """Each array comes as its `value` and whether it is `perturbed`, that is differentiated with respect to."""
    of_rows = functools.partial(_of_rows, z_loss=z_loss, wanted=unembedding.perturbed)
    whole = constrain(unembedding.value, WHOLE_BUT_VOCAB)
    sums, dhidden, dunembedding = _on_every_device(of_rows, hidden.value, whole, targets.value, weights.value)
    if dunembedding is None:
        return sums, _Gradients(dhidden, None)
    # Before the layers' turn: XLA would keep the float32 matrix until they are done.
    dunembedding = dunembedding.astype(whole.dtype)
    both = jax.lax.optimization_barrier((dhidden, dunembedding))  # type: ignore[no-untyped-call]
    return sums, _Gradients(*both)


OfRows = Callable[..., tuple[Sums, jax.Array, jax.Array | None]]


def _on_every_device(
    of_rows: OfRows, hidden_NxBxPxD: jax.Array, unembedding_DxV: jax.Array, *columns: jax.Array
) -> Any:
    """`of_rows` of all rows. On a mesh each device adds up its own rows, and then once over the devices.

    Left to itself XLA may add up the gradient of the unembedding over the devices in every block.
    """
    mesh = jax.sharding.get_abstract_mesh()
    over = RULES["batch"] if set(MESH_AXES) <= set(mesh.axis_names) else ()
    ways = math.prod(mesh.shape[axis] for axis in over)
    if ways == 1 or hidden_NxBxPxD.shape[1] % ways:
        return of_rows(hidden_NxBxPxD, unembedding_DxV, *columns)
    fsdp, others = "fsdp", tuple(axis for axis in over if axis != "fsdp")
    scattered = unembedding_DxV.shape[0] % mesh.shape[fsdp] == 0
    psum: Any = jax.lax.psum  # jax leaves it untyped
    psum_scatter: Any = jax.lax.psum_scatter

    def per_device(*arrays: jax.Array) -> tuple[Sums, jax.Array, jax.Array | None]:
        sums, dhidden, dunembedding = of_rows(*arrays)
        if dunembedding is not None and scattered:
            dunembedding = psum(psum_scatter(dunembedding, fsdp, scatter_dimension=0, tiled=True), others)
        elif dunembedding is not None:
            dunembedding = psum(dunembedding, over)
        return psum(sums, over), dhidden, dunembedding

    rows, everywhere = (partition_spec(axes, mesh.shape) for axes in ((None, "batch"), ()))
    parts = partition_spec(("embed",), mesh.shape) if scattered else everywhere
    return jax.shard_map(
        per_device,
        in_specs=(rows, everywhere, *(rows for _ in columns)),
        out_specs=(everywhere, rows, parts),
        axis_names=set(over),
        check_vma=False,  # what a scan starts from is the same on all devices, and what it adds up is not
    )(hidden_NxBxPxD, unembedding_DxV, *columns)


def _of_rows(
    hidden_NxBxPxD: jax.Array,
    unembedding_DxV: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float,
    wanted: bool,
) -> tuple[Sums, jax.Array, jax.Array | None]:
    """The loss of these rows, and its gradient: of `hidden` in its dtype, of the unembedding in float32 if wanted."""

    def add(
        carry: tuple[Sums, jax.Array | None], block: tuple[jax.Array, ...]
    ) -> tuple[tuple[Sums, jax.Array | None], jax.Array]:
        sums, unembedding_gradient = carry
        hidden_BxPxD, targets_BxP, weights_BxP = block
        of_block, dlogits_BxPxV = _one_block(hidden_BxPxD, unembedding_DxV, targets_BxP, weights_BxP, z_loss=z_loss)
        dlogits_BxPxV = dlogits_BxPxV.astype(hidden_BxPxD.dtype)
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        dhidden_BxPxD = dot("bpv,dv->bpd", dlogits_BxPxV, unembedding_DxV)
        if unembedding_gradient is not None:
            unembedding_gradient += dot("bpd,bpv->dv", hidden_BxPxD, dlogits_BxPxV)
        return (_added(sums, of_block), unembedding_gradient), dhidden_BxPxD.astype(hidden_BxPxD.dtype)

    nothing = (_zeros(), jnp.zeros(unembedding_DxV.shape, jnp.float32) if wanted else None)
    one_block = hidden_NxBxPxD.shape[0] == 1  # then no loop is left: XLA's CPU loops slow down what is in them
    (sums, dunembedding_DxV), dhidden_NxBxPxD = jax.lax.scan(
        add, nothing, (hidden_NxBxPxD, targets, weights), unroll=one_block
    )
    return sums, dhidden_NxBxPxD, dunembedding_DxV


def _blockwise_backward(
    z_loss: float, gradients: _Gradients, cotangents: Sums
) -> tuple[jax.Array, jax.Array | None, None, None]:
    del z_loss  # the gradients have it
    scale, _ = cotangents
    hidden, unembedding = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
    return hidden, unembedding, None, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward, symbolic_zeros=True)


def _one_block(
    hidden_BxPxD: jax.Array,
    unembedding_DxV: jax.Array,
    targets_BxP: jax.Array,
    weights_BxP: jax.Array,
    *,
    z_loss: float,
) -> tuple[Sums, jax.Array]:
    """Loss of a block (scalars) and its gradient with respect to the logits [B, P, V], all float32."""
    logits_BxPxV, is_target_BxPxV = _logits(hidden_BxPxD, unembedding_DxV, targets_BxP)
    log_normaliser_BxP, target_logit_BxP = _of_logits(logits_BxPxV, is_target_BxPxV)
    z = z_loss * (weights_BxP * jnp.square(log_normaliser_BxP)).sum()
    loss = (weights_BxP * (log_normaliser_BxP - target_logit_BxP)).sum() + z
    probabilities_BxPxV = jnp.exp(logits_BxPxV - log_normaliser_BxP[..., None])
    if z_loss:
        probabilities_BxPxV *= 1.0 + 2.0 * z_loss * log_normaliser_BxP[..., None]
    return (loss, z), weights_BxP[..., None] * (probabilities_BxPxV - is_target_BxPxV.astype(jnp.float32))


def _logits(hidden_BxPxD: jax.Array, unembedding_DxV: jax.Array, targets_BxP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits and which of them are the targets', [B, P, V] each."""
    logits_BxPxV = jnp.einsum("bpd,dv->bpv", hidden_BxPxD, unembedding_DxV, preferred_element_type=jnp.float32)
    # A comparison and not a gather: it stays local when V is sharded.
    return logits_BxPxV, targets_BxP[..., None] == jnp.arange(logits_BxPxV.shape[-1], dtype=targets_BxP.dtype)


def _of_logits(logits_BxPxV: jax.Array, is_target_BxPxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(Z) and the target's logit, [B, P] each: their difference is the cross-entropy."""
    return jax.nn.logsumexp(logits_BxPxV, axis=-1), jnp.where(is_target_BxPxV, logits_BxPxV, 0.0).sum(axis=-1)


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
    unembedding_DxV = constrain(unembedding_DxV.astype(hidden_BxLxD.dtype), WHOLE_BUT_VOCAB)

    def blocks(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, ((0, 0), (0, -length % block)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(filled.reshape(batch, -1, block, *array.shape[2:]), 1, 0)

    def losses(part: tuple[jax.Array, ...]) -> jax.Array:
        hidden_BxPxD, targets_BxP, weights_BxP = part
        log_normaliser_BxP, target_logit_BxP = _of_logits(*_logits(hidden_BxPxD, unembedding_DxV, targets_BxP))
        return weights_BxP * (log_normaliser_BxP - target_logit_BxP)

    weights_BxL = weights_BxL.astype(jnp.float32)
    found_NxBxP = jax.lax.map(losses, (blocks(hidden_BxLxD), blocks(targets_BxL), blocks(weights_BxL)))
    return jnp.moveaxis(found_NxBxP, 0, 1).reshape(batch, -1)[:, :length]

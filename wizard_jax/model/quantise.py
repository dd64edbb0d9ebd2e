"""Frozen weights in 4 or 8 bits, by qwix's `quantize` (the extra `qlora`).

Qwix can also rewrite a whole model as it runs, by intercepting the operations of its modules; the layers here are
functions inside a scan, whose weights are sharded pytrees, so only its arithmetic is used, and `weights.dense` undoes
it inside the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from wizard_jax.doctor import check_extra
from wizard_jax.model.weights import Quantised

BLOCK = 64
"""Weights that share a scale, as in arXiv 2305.14314; fewer where 64 does not divide the axis."""

BLOCK_AXIS: Mapping[str, int] = MappingProxyType({"q": -1, "k": -1, "v": -1, "o": -2, "gate": -1, "up": -1, "down": -2})
"""Linear layer -> the axis along which it is cut into blocks: head_dim or mlp, which `fsdp` never splits, so that a
block is always on one chip."""


def quantise(name: str, stacked: jax.Array, *, axes: tuple[str, ...], bits: str) -> Quantised:
    """The float32 weights [N, ...] of all layers of one kind; `axes` are the logical ones of a single layer.

    NF4 keeps 4 bits and a bfloat16 scale per block, 0.53 bytes in blocks of 64; int8 8 bits and a float32 scale, 1.06
    bytes. A value is off by at most 0.152 (NF4: half its widest gap) or 1/255 (int8) of the largest of its block,
    and by the rounding of the scale.
    """
    check_extra("qlora", asks=f"a base in {bits}")
    import qwix

    shape = stacked.shape[1:]
    axis = BLOCK_AXIS[name] % len(shape)
    block = math.gcd(BLOCK, shape[axis])
    qtype: Any = {"nf4": "nf4", "int8": jnp.int8}[bits]
    scale_dtype = {"nf4": jnp.bfloat16, "int8": jnp.float32}[bits]

    def of_vector(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = qwix.quantize(vector, qtype, tiled_axes={0: block}, scale_dtype=scale_dtype)
        return made.qvalue, made.scale

    of_layer = of_vector  # mapped over every other axis: qwix flattens its array, which undoes a sharding
    for _ in shape[axis + 1 :]:
        of_layer = jax.vmap(of_layer, in_axes=-1, out_axes=-1)
    for _ in shape[:axis]:
        of_layer = jax.vmap(of_layer)
    codes, scales = jax.lax.map(of_layer, stacked)  # layer by layer: NF4 compares each value with 16 others
    return Quantised(codes=codes, scales=scales, axes=axes)

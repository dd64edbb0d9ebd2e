"""A model's parameters as decoding reads them."""

from __future__ import annotations

import functools
from typing import Literal

import jax

from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

_OTHER_SIDES = {"heads", "kv_heads", "mlp", "vocab"}


def prepared(
    params: decoder.Params, *, config: ModelConfig, source: Literal["kept", "freed"] = "kept"
) -> decoder.Params:
    """The parameters layer by layer, and matrices in the compute dtype, in which every product takes them anyway.

    This goes array by array: with `source='freed'` the given ones are deleted on the way, and the model is in memory
    once. Parameters that are prepared already come back as they are.
    """
    if isinstance(params["layers"], tuple):
        return params

    def one(array: jax.Array, names: tuple[str, ...]) -> jax.Array | tuple[jax.Array, ...]:
        is_matrix = "embed" in names and not _OTHER_SIDES.isdisjoint(names)
        dtype = config.compute_dtype if is_matrix else str(array.dtype)
        made = _apart(array, dtype=dtype) if names[0] == "layers" else array.astype(dtype)
        if source == "freed" and made is not array:
            jax.block_until_ready(made)  # type: ignore[no-untyped-call]  # jax leaves it untyped
            array.delete()
        return made

    split = jax.tree.map(one, params, decoder.logical_axes(config))
    layers = tuple(
        jax.tree.map(lambda arrays, n=n: arrays[n], split["layers"], is_leaf=lambda node: isinstance(node, tuple))
        for n in range(config.n_layers)
    )
    return {**split, "layers": layers}


@functools.partial(jax.jit, static_argnames="dtype")
def _apart(stacked: jax.Array, *, dtype: str) -> tuple[jax.Array, ...]:
    return tuple(stacked[n].astype(dtype) for n in range(stacked.shape[0]))

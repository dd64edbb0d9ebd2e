"""A model's parameters as decoding reads them."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.weights import Turned

_OTHER_SIDES = {"heads", "kv_heads", "mlp", "vocab"}


def prepared(
    params: decoder.Params, *, config: ModelConfig, source: Literal["kept", "freed"] = "kept"
) -> decoder.Params:
    """The parameters layer by layer, and matrices turned, in the compute dtype that every product takes them in anyway.

    This goes array by array: with `source='freed'` the given ones are deleted on the way, and the model is in memory
    once. Parameters that are prepared already come back as they are.
    """
    if isinstance(params["layers"], tuple):
        return params

    def one(array: jax.Array, names: tuple[str, ...]) -> Any:
        is_matrix = "embed" in names and not _OTHER_SIDES.isdisjoint(names)
        dtype = config.compute_dtype if is_matrix else str(array.dtype)
        if names[0] == "layers":
            made = _apart(array, dtype=dtype, inputs=_inputs(names[1:]) if is_matrix else 0)
        elif names == ("embed", "vocab"):
            made = Turned(_turned(array.astype(dtype), inputs=1))
        else:
            made = array.astype(dtype)
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


def _inputs(names: tuple[str, ...]) -> int:
    """How many axes of a layer's matrix go in; the layer's own width is the whole of one side."""
    return 1 if names[0] == "embed" else len(names) - 1


def _turned(matrix: jax.Array, *, inputs: int) -> jax.Array:
    """Axes of what goes in after those of what comes out."""
    return jnp.moveaxis(matrix, range(inputs), range(-inputs, 0))


@functools.partial(jax.jit, static_argnames=("dtype", "inputs"))
def _apart(stacked: jax.Array, *, dtype: str, inputs: int) -> tuple[jax.Array | Turned, ...]:
    """Each layer's, turned if it is a matrix: one of which `inputs` axes go in."""
    if not inputs:
        return tuple(stacked[n].astype(dtype) for n in range(stacked.shape[0]))
    return tuple(Turned(_turned(stacked[n].astype(dtype), inputs=inputs)) for n in range(stacked.shape[0]))

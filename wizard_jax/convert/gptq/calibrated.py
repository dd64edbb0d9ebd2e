"""Rounding a model layer by layer, each with the inputs that the rounded layers before it give.

Shape legend: see model/decoder.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.gptq.layout import PER_WORD, half
from wizard_jax.convert.gptq.rounding import Codes
from wizard_jax.convert.tensors import Array, ConversionError, Place, Read, stored_shape, to_stored
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

Columns = Mapping[str, Array]
"""tokens, positions and segment_ids of packed rows: int32 [B, L] each."""
Round = Callable[[Array, Array], Codes]
"""A matrix [out, in] and the Gram matrix [in, in] of its inputs -> its codes."""

_INPUT = {"q": "attention", "k": "attention", "v": "attention", "o": "o", "gate": "mlp", "up": "mlp", "down": "down"}
_USUAL = 128  # inputs in a group
_EMBEDDING = ("embed", "positions", "project_in")


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """One layer as its files have it: `codes` by the stems of its linear layers, and all arrays of ours, float32, that
    a reader computes with."""

    codes: dict[str, Codes]
    arrays: decoder.Params


def check_groups(model: ModelConfig, *, group: int) -> None:
    """Before anything is read. Raises ConversionError: a group does not divide the inputs of a linear layer."""
    wrong, fitting = [], _USUAL
    for name, rows in architectures.places(model).items():
        if _is_linear(rows) and rows[0].layer == 0:
            outputs, inputs = stored_shape(rows)
            fitting = math.gcd(fitting, inputs)
            if group < 1 or inputs % group or inputs % PER_WORD or outputs % PER_WORD:
                wrong.append(f"{name} has {inputs} inputs and {outputs} outputs")
    if wrong:
        raise ConversionError(
            f"groups of {group} do not fit: {'; '.join(wrong)}; inputs must be a multiple of --group-size, and both of "
            f"{PER_WORD} (of {fitting} would fit the inputs)"
        )


def rounded_layers(
    read: Read, model: ModelConfig, calibration: Sequence[Columns], *, round_: Round
) -> Iterator[RoundedLayer]:
    """The layers in order, each read when it is its turn: beside it only the calibration's residual streams, float32,
    are in memory. All is computed in float32.

    Raises ConversionError, with the tensor: values that are not finite, or too large for float16; inputs that are not.
    """
    exact = dataclasses.replace(model, compute_dtype="float32", attention="reference", remat="none")
    batches = [{name: jnp.asarray(column) for name, column in columns.items()} for columns in calibration]
    streams = _embedded_all(read, exact, batches)
    for number in range(model.n_layers):
        arrays = _read_layer(read, number, model=exact)
        grams: dict[str, Array] = {}
        for stream, columns in zip(streams, batches, strict=True):
            for name, gram in _grams(arrays, jnp.asarray(stream), columns, model=exact).items():
                grams[name] = grams.get(name, np.float64(0.0)) + np.asarray(gram, np.float64)
        found = _rounded(arrays, grams, number, model=exact, round_=round_)
        del arrays, grams
        for index, columns in enumerate(batches):
            streams[index] = np.asarray(_block(found.arrays, jnp.asarray(streams[index]), columns, model=exact)[0])
        yield found


def _embedded_all(read: Read, model: ModelConfig, batches: Sequence[Mapping[str, jax.Array]]) -> list[Array]:
    """The residual streams before the first layer, of what is around the layers as its file has it."""
    around = {
        rows[0].path[0]: half(name, read(rows[0])).astype(np.float32)
        for name, rows in architectures.places(model).items()
        if rows[0].path[0] in _EMBEDDING
    }
    return [np.asarray(_embedded(around, columns, model=model)) for columns in batches]


def _read_layer(read: Read, number: int, *, model: ModelConfig) -> decoder.Params:
    """The arrays of one layer, float32, those that get no codes as float16 has them."""
    arrays = {}
    for name, rows in architectures.places(model).items():
        for place in rows if rows[0].layer == number else ():
            array = read(place)
            if not np.isfinite(array).all():
                raise ConversionError(f"{name}: holds values that are not finite")
            array = array if _is_linear(rows) else half(name, array)
            arrays[place.path[-1]] = array.astype(np.float32)
    return arrays


def _rounded(
    arrays: Mapping[str, Array], grams: Mapping[str, Array], number: int, *, model: ModelConfig, round_: Round
) -> RoundedLayer:
    changed, codes = dict(arrays), {}
    for name, rows in architectures.places(model).items():
        if rows[0].layer != number or not _is_linear(rows):
            continue
        gram = grams[_INPUT[rows[0].path[-1]]]
        if not np.isfinite(gram).all():
            raise ConversionError(f"{name}: what it is given is not finite on the texts of the calibration")
        matrix = to_stored(rows, [arrays[place.path[-1]] for place in rows])
        with np.errstate(over="ignore", invalid="ignore"):  # a scale that overflows is found by its infinity
            found = round_(np.ascontiguousarray(matrix), gram)
        if not np.isfinite(found.scales).all():
            raise ConversionError(f"{name}: holds values that are too large for the scales, which are float16")
        codes[name.removesuffix(".weight")] = found
        values = found.values()
        for place in rows:
            changed[place.path[-1]] = place.read(values, tuple(slice(0, size) for size in place.shape))
    return RoundedLayer(codes=codes, arrays=changed)


def _is_linear(rows: Sequence[Place]) -> bool:
    return rows[0].layer is not None and rows[0].form.kind == "matrix"


@functools.partial(jax.jit, static_argnames="model")
def _embedded(params: decoder.Params, columns: Any, *, model: ModelConfig) -> jax.Array:
    return decoder.embedded(params, columns["tokens"], columns["positions"], config=model)


@functools.partial(jax.jit, static_argnames="model")
def _grams(arrays: Any, stream_BxLxD: jax.Array, columns: Any, *, model: ModelConfig) -> dict[str, jax.Array]:
    """Sums of x x^T over all inputs x of the linear layers that are no padding."""
    real_BxL = columns["segment_ids"] > 0
    inputs = _block(arrays, stream_BxLxD, columns, model=model)[1]

    def gram(x: jax.Array) -> jax.Array:
        flat_NxI = jnp.where(real_BxL[..., None], x.reshape(*real_BxL.shape, -1), 0.0).reshape(real_BxL.size, -1)
        return jnp.einsum("ni,nj->ij", flat_NxI, flat_NxI, precision="highest")

    return {name: gram(x) for name, x in inputs.items()}


@functools.partial(jax.jit, static_argnames="model")
def _block(
    arrays: Any, stream_BxLxD: jax.Array, columns: Any, *, model: ModelConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The residual stream after a layer, and what each of its linear layers is given."""
    return decoder.block(
        arrays, stream_BxLxD, positions=columns["positions"], segment_ids=columns["segment_ids"], config=model
    )

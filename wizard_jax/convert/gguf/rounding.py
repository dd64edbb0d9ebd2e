"""What the values of a GGUF file are: the parameters of a model, each rounded to its type and back."""

from __future__ import annotations

from typing import Any

import gguf
import jax
import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.gguf.network import Quantisation, Read, type_of
from wizard_jax.convert.tensors import Array, at, stored_shape, to_stored
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params, abstract_params


def rounded(model: ModelConfig, read: Read, *, quantisation: Quantisation) -> Params:
    """The tree of parameters, float32, that a reader of the file computes with."""
    params: Params = jax.tree.map(lambda array: np.empty(array.shape, np.float32), abstract_params(model))
    for rows in architectures.places(model).values():
        kind = type_of(rows, stored_shape(rows), quantisation=quantisation)
        stored = np.ascontiguousarray(to_stored(rows, [read(place) for place in rows]), np.float32)
        values: Array = gguf.dequantize(gguf.quantize(stored, kind), kind).reshape(stored.shape)
        for place in rows:
            whole: Any = at(params, place.path)
            target = whole if place.layer is None else whole[place.layer]
            target[...] = place.read(values, tuple(slice(0, size) for size in place.shape))
    return params

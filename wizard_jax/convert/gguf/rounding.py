"""What the values of a GGUF file are: the parameters of a model, each rounded to its type and back."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.gguf.network import Quantisation, type_of
from wizard_jax.convert.tensors import Array, Read, stored_shape, to_stored
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params


def rounded(model: ModelConfig, read: Read, *, quantisation: Quantisation) -> Params:
    """The tree of parameters, float32, that a reader of the file computes with."""

    def tensors() -> Iterator[tuple[str, Array]]:
        for name, rows in architectures.places(model).items():
            kind = type_of(rows, stored_shape(rows), quantisation=quantisation)
            stored = np.ascontiguousarray(to_stored(rows, [read(place) for place in rows]), np.float32)
            yield name, gguf.dequantize(gguf.quantize(stored, kind), kind).reshape(stored.shape)

    return architectures.tree_of(model, tensors())

"""Trees of parameters (or of their gradients) as the tensors that `transformers` knows, by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from wizard_jax.convert.architectures import places
from wizard_jax.convert.tensors import at, to_stored
from wizard_jax.model.config import ModelConfig


def hf_tensors(tree: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    found = {}
    for name, rows in places(config).items():
        arrays = [np.asarray(at(tree, place.path)) for place in rows]
        of_layer = [
            array if place.layer is None else array[place.layer] for array, place in zip(arrays, rows, strict=True)
        ]
        found[name] = to_stored(rows, of_layer)
    return found

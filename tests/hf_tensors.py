"""Trees of parameters (or of their gradients) as the tensors that `transformers` knows, by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from wizard_jax.convert.llama import at, places
from wizard_jax.model.config import ModelConfig


def hf_tensors(tree: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    found = {}
    for name, place in places(config).items():
        array = np.asarray(at(tree, place.path))
        found[name] = place.to_stored(array if place.layer is None else array[place.layer])
    return found

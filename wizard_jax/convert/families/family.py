"""What a family of models is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.tensors import Path, Table
from wizard_jax.model.config import LINEAR_LAYERS, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one class of `transformers`; `write` undoes `read`."""

    name: str
    """Its `model_type` there, and `ModelConfig.family` here."""
    architecture: str
    read: Callable[[RawConfig], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    table: Table
    buffers: tuple[str, ...] = ()
    """Endings of names that old checkpoints hold besides parameters, and that are computed here."""

    def tensor_of(self, *path: str) -> str:
        """The name of the tensor that is an array of ours, and nothing else."""
        return next(name for name, slots in self.table.items() if [where for where, _ in slots] == [path])

    @property
    def linear_layers(self) -> dict[str, str]:
        """The linear layers of a block that have a tensor of their own: our name -> its stem there."""
        alone: dict[str, Path] = {name: slots[0][0] for name, slots in self.table.items() if len(slots) == 1}
        return {path[1]: name.removesuffix(".weight") for name, path in alone.items() if path[-1] in LINEAR_LAYERS}

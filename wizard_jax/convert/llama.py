"""LLaMA's tensors under their Hugging Face names: one table, read in both directions.

Hugging Face stores a linear layer as [out, in]; here it is [*in, *out] with heads as axes of their own. Both rotate
the same pairs of dimensions, so queries and keys need no permutation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from configs.errors import UserError
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

Array = npt.NDArray[Any]
Path = tuple[str, ...]


class ConversionError(UserError):
    """A folder or a tree of parameters that can not be converted."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an array (of one layer) is stored: as it is, or as a transposed matrix."""

    inputs: int = 0
    """How many of our leading axes the matrix maps from; 0: stored as it is."""


AS_IT_IS = Form()
LINEAR = Form(inputs=1)
FROM_HEADS = Form(inputs=2)

TABLE: Mapping[str, tuple[Path, Form]] = MappingProxyType(
    {
        "model.embed_tokens.weight": (("embed",), AS_IT_IS),
        "model.layers.{}.input_layernorm.weight": (("layers", "attention_norm"), AS_IT_IS),
        "model.layers.{}.self_attn.q_proj.weight": (("layers", "q"), LINEAR),
        "model.layers.{}.self_attn.k_proj.weight": (("layers", "k"), LINEAR),
        "model.layers.{}.self_attn.v_proj.weight": (("layers", "v"), LINEAR),
        "model.layers.{}.self_attn.o_proj.weight": (("layers", "o"), FROM_HEADS),
        "model.layers.{}.post_attention_layernorm.weight": (("layers", "mlp_norm"), AS_IT_IS),
        "model.layers.{}.mlp.gate_proj.weight": (("layers", "gate"), LINEAR),
        "model.layers.{}.mlp.up_proj.weight": (("layers", "up"), LINEAR),
        "model.layers.{}.mlp.down_proj.weight": (("layers", "down"), LINEAR),
        "model.norm.weight": (("final_norm",), AS_IT_IS),
        "lm_head.weight": (("unembed",), LINEAR),
    }
)

BUFFERS = (".self_attn.rotary_emb.inv_freq",)
"""Endings of names that old checkpoints hold besides parameters: RoPE's frequencies, computed here."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a Hugging Face tensor lives: an array of our tree, or one layer of a stacked one."""

    path: Path
    layer: int | None
    form: Form
    shape: tuple[int, ...]
    """Ours, of one layer."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Hugging Face's."""
        if self.form.inputs == 0:
            return self.shape
        return math.prod(self.shape[self.form.inputs :]), math.prod(self.shape[: self.form.inputs])

    def to_stored(self, array: Array) -> Array:
        """Ours as Hugging Face stores it."""
        return array if self.form.inputs == 0 else array.reshape(self.stored_shape[::-1]).T

    def read(self, stored: Any, index: tuple[slice, ...]) -> Array:
        """The part `index` of ours from a stored tensor that can be sliced; no more than needed is read.

        `index` has a slice with bounds per axis. Of a group of axes only the first is sliced when reading.
        """
        if self.form.inputs == 0:
            part: Array = stored[index]
            return part
        inputs, outputs = slice(None, self.form.inputs), slice(self.form.inputs, None)
        matrix: Array = stored[
            self._merged(self.shape[outputs], index[outputs]), self._merged(self.shape[inputs], index[inputs])
        ]
        lengths = list(self.shape)
        cut = [slice(None)] * len(lengths)
        for axis in range(len(lengths)):
            if axis in (0, self.form.inputs):
                lengths[axis] = index[axis].stop - index[axis].start
            else:
                cut[axis] = index[axis]
        return matrix.T.reshape(lengths)[tuple(cut)]

    @staticmethod
    def _merged(shape: tuple[int, ...], index: tuple[slice, ...]) -> slice:
        """The rows (or columns) that the first of some merged axes selects."""
        inner = math.prod(shape[1:])
        return slice(index[0].start * inner, index[0].stop * inner)


def places(config: ModelConfig) -> dict[str, Place]:
    """Every Hugging Face tensor of this model, and its place in our tree."""
    tree = decoder.abstract_params(config)
    tied = ("unembed",) if config.tied_embeddings else None
    rows = [(name, path, form, at(tree, path).shape) for name, (path, form) in TABLE.items() if path != tied]
    once = {
        name: Place(path=path, layer=None, form=form, shape=shape)
        for name, path, form, shape in rows
        if path[0] != "layers"
    }
    stacked = {
        name.format(layer): Place(path=path, layer=layer, form=form, shape=shape[1:])
        for layer in range(config.n_layers)
        for name, path, form, shape in rows
        if path[0] == "layers"
    }
    return once | stacked


def at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree

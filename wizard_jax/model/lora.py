"""LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314): a frozen base, and a small update of each linear layer.

R stands for the rank. Shapes, axes and names follow from those that decoder.py declares, so they can not disagree.
"""

from __future__ import annotations

import difflib
import functools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from configs.errors import UserError
from configs.loader import setting
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params, abstract_params, logical_axes
from wizard_jax.model.quantise import quantise
from wizard_jax.model.weights import LowRank, Quantised, dense

Base: TypeAlias = Literal["float32", "bfloat16", "int8", "nf4"]

INPUT_AXES: Mapping[str, int] = MappingProxyType({"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1})
"""Linear layer -> how many of its leading axes (of one layer's weight) are summed over."""


class AdapterError(UserError):
    """Settings that no adapter can have."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Train W + alpha / rank * A @ B with W frozen; A and B as `peft` makes them: A random, B zero."""

    rank: int = setting(doc="R, columns of A and rows of B")
    alpha: float = setting(doc="the update is scaled by alpha / rank")
    targets: tuple[str, ...] = setting(
        (), doc="linear layers with an update: some of q, k, v, o, gate, up, down; (): all that the model has"
    )
    base: Base = setting("bfloat16", doc="what the frozen weights are kept in; nf4 and int8 (QLoRA) need qwix")
    seed: int = setting(0, doc="of A's initial values")

    def __post_init__(self) -> None:
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise AdapterError(
                f"adapter.rank must be at least 1 and alpha above 0; they are {self.rank} and {self.alpha}"
            )
        for name in self.targets:
            if name not in INPUT_AXES:
                near = difflib.get_close_matches(name.removesuffix("_proj"), INPUT_AXES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise AdapterError(
                    f"adapter.targets: no linear layer is named {name!r}{hint} ({', '.join(INPUT_AXES)})"
                )
        if len(set(self.targets)) < len(self.targets):
            raise AdapterError(f"adapter.targets is {self.targets}: name each layer once")
        if not -(2**63) <= self.seed < 2**63:
            raise AdapterError(f"adapter.seed is {self.seed}: it must fit into 64 bits")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def needs_qwix(adapter: LoRA) -> bool:
    return adapter.base in ("int8", "nf4")


def targets_of(model: ModelConfig, *, adapter: LoRA) -> tuple[str, ...]:
    """The linear layers with an update, by name. Raises AdapterError: the model has no such layer."""
    absent = [name for name in adapter.targets if name not in model.linear_layers]
    if absent:
        raise AdapterError(
            f"adapter.targets: the model has no {' and no '.join(absent)} (mlp = {model.mlp!r}): name some of "
            f"{', '.join(model.linear_layers)}, or leave it out for all"
        )
    return tuple(sorted(adapter.targets or model.linear_layers))


def trained_axes(model: ModelConfig, *, adapter: LoRA | None) -> Params:
    """The tree of what is trained, as logical axes: the model's, or {"layers": {"q": {"a": ..., "b": ...}}}.

    A lies as the inputs of its weight do, B as its outputs; the rank is whole everywhere.
    """
    if adapter is None:
        return logical_axes(model)

    def halves(name: str) -> Params:
        layers, *axes = logical_axes(model)["layers"][name]
        inputs = INPUT_AXES[name]
        return {"a": (layers, *axes[:inputs], "rank"), "b": (layers, "rank", *axes[inputs:])}

    return {"layers": {name: halves(name) for name in targets_of(model, adapter=adapter)}}


def init_adapter(model: ModelConfig, *, adapter: LoRA) -> Params:
    """A uniform in +-1 / sqrt(inputs), which is `peft`'s Kaiming initialiser, B zero: float32, the same on any mesh."""
    key = jax.random.key(adapter.seed)

    def halves(name: str) -> Params:
        n, *shape = abstract_params(model)["layers"][name].shape
        inputs, outputs = shape[: INPUT_AXES[name]], shape[INPUT_AXES[name] :]
        bound = math.prod(inputs) ** -0.5
        drawn_from = jax.random.fold_in(key, zlib.crc32(f"layers/{name}/a".encode()))
        a = jax.random.uniform(drawn_from, (n, *inputs, adapter.rank), jnp.float32, -bound, bound)
        return {"a": a, "b": jnp.zeros((n, adapter.rank, *outputs), jnp.float32)}

    return {"layers": {name: halves(name) for name in targets_of(model, adapter=adapter)}}


def count_adapter(model: ModelConfig, *, adapter: LoRA) -> int:
    """The parameters of A and B."""
    abstract = jax.eval_shape(functools.partial(init_adapter, model, adapter=adapter))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract))


def freeze(path: tuple[str, ...], array: jax.Array, *, model: ModelConfig, base: Base) -> jax.Array | Quantised:
    """A float32 array of the model as the base keeps it.

    Norms and biases stay float32; of a quantised base, what is not a linear layer of a block is bfloat16.
    """
    *_, name = path
    if name.endswith(("norm", "bias")):
        return array
    if base in ("float32", "bfloat16"):
        return array.astype(base)
    if name not in INPUT_AXES:
        return array.astype(jnp.bfloat16)
    return quantise(name, array, axes=logical_axes(model)["layers"][name][1:], bits=base)


def freeze_all(params: Params, *, model: ModelConfig, adapter: LoRA | None) -> Params:
    """What a run starts from: the parameters themselves, or with an adapter the frozen ones."""
    if adapter is None:
        return params
    return each_array(params, functools.partial(freeze, model=model, base=adapter.base))


def abstract_source(model: ModelConfig, *, adapter: LoRA | None) -> Params:
    """The same tree as `jax.ShapeDtypeStruct`."""
    shapes: Params = jax.eval_shape(functools.partial(freeze_all, model=model, adapter=adapter), abstract_params(model))
    return shapes


def source_axes(model: ModelConfig, *, adapter: LoRA | None) -> Params:
    """The same tree as logical axes; the scales of blocks have those of what they are blocks of."""
    stored = abstract_source(model, adapter=adapter)

    def of(axes: tuple[str, ...], parts: Any) -> Any:
        return jax.tree.map(lambda _: axes, parts)

    axes: Params = jax.tree.map(of, logical_axes(model), stored, is_leaf=lambda node: isinstance(node, tuple))
    return axes


def with_adapter(frozen: Params, trained: Params, *, adapter: LoRA) -> Params:
    """The parameters that decoder.py computes with: the base, with a `LowRank` in place of every target."""
    layers = dict(frozen["layers"])
    for name, halves in trained["layers"].items():
        layers[name] = LowRank(frozen=layers[name], **halves, scale=adapter.scale)
    return {**frozen, "layers": layers}


def merge(path: tuple[str, ...], frozen: jax.Array | Quantised, *, trained: Params, adapter: LoRA) -> jax.Array:
    """W + alpha / rank * A @ B in float32, of the base as it was trained on: rounded, or taken back from 4 bits."""
    full = dense(frozen).astype(jnp.float32)
    *_, name = path
    if path[0] != "layers" or name not in trained["layers"]:
        return full
    halves = trained["layers"][name]
    n, rank = halves["a"].shape[0], adapter.rank
    product = jnp.einsum(
        "nir,nro->nio",
        halves["a"].reshape(n, -1, rank),
        halves["b"].reshape(n, rank, -1),
        precision=jax.lax.Precision.HIGHEST,
    )
    return full + adapter.scale * product.reshape(full.shape)


def each_array(params: Params, convert: Any, *, path: tuple[str, ...] = ()) -> Params:
    """The tree with `convert(path, array)` for every array, one after another."""
    return {
        name: each_array(node, convert, path=(*path, name)) if isinstance(node, dict) else convert((*path, name), node)
        for name, node in params.items()
    }

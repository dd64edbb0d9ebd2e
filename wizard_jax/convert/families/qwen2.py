"""Qwen 2 and 2.5 (arXiv 2412.15115): LLaMA with biases of queries, keys and values."""

from __future__ import annotations

from typing import Any

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.families.llama import TABLE, read_sizes, write_sizes
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.model.config import ModelConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_window(raw: RawConfig) -> int | None:
    """The window of all layers. Raises ConversionError: some have one, and others none."""
    if not raw.flag("use_sliding_window", False) or raw.values.get("sliding_window", 4096) is None:
        return None
    layers, above = raw.integer("num_hidden_layers"), raw.integer("max_window_layers", 28)
    kinds = raw.values.get("layer_types")
    if kinds is None:
        windows = layers - min(above, layers)
    elif isinstance(kinds, list) and kinds.count(_FULL) + kinds.count(_SLIDING) == len(kinds) == layers:
        windows = kinds.count(_SLIDING)
    else:
        raise ConversionError(
            f"{raw.path}: not supported: layer_types = {kinds!r}: {_FULL!r} or {_SLIDING!r} for each of {layers} layers"
        )
    if 0 < windows < layers:
        raise ConversionError(
            f"{raw.path}: not supported: {windows} of {layers} layers have a sliding window and the "
            "others none (max_window_layers, layer_types); set use_sliding_window to false where the window is longer "
            "than what you will use"
        )
    return raw.integer("sliding_window", 4096) if windows else None


def write_window(model: ModelConfig) -> dict[str, Any]:
    """What `read_window` reads."""
    window = model.sliding_window
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0 if window is not None else model.n_layers,
        "layer_types": [_FULL if window is None else _SLIDING] * model.n_layers,
    }


def _read(raw: RawConfig) -> ModelConfig:
    return ModelConfig(family="qwen2", biases=("q", "k", "v"), sliding_window=read_window(raw), **read_sizes(raw))


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_sizes(model), **write_window(model)}


QWEN2 = Family(name="qwen2", architecture="Qwen2ForCausalLM", read=_read, write=_write, table=TABLE)

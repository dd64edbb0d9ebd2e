"""Mistral 7B and Nemo (arXiv 2310.06825): LLaMA with a sliding window, which later versions leave out."""

from __future__ import annotations

from typing import Any

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.families.llama import TABLE, read_sizes, write_sizes
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.model.config import ModelConfig


def _read(raw: RawConfig) -> ModelConfig:
    window = None if raw.values.get("sliding_window", 4096) is None else raw.integer("sliding_window", 4096)
    sizes = read_sizes(raw, kv_heads=8, longest=131_072)
    return ModelConfig(family="mistral", sliding_window=window, **sizes)


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_sizes(model), "sliding_window": model.sliding_window}


MISTRAL = Family(name="mistral", architecture="MistralForCausalLM", read=_read, write=_write, table=TABLE)

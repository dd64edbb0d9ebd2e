"""Qwen 3 (arXiv 2505.09388), dense: LLaMA with norms of query and key heads."""

from __future__ import annotations

from typing import Any

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.families.llama import TABLE, read_sizes, write_sizes
from wizard_jax.convert.families.qwen2 import read_window, write_window
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.model.config import ModelConfig


def _read(raw: RawConfig) -> ModelConfig:
    sizes = {**read_sizes(raw), "head_dim": raw.integer("head_dim", 128)}
    biases = ("q", "k", "v", "o") if raw.flag("attention_bias", False) else ()
    return ModelConfig(family="qwen3", qk_norm=True, biases=biases, sliding_window=read_window(raw), **sizes)


def _write(model: ModelConfig) -> dict[str, Any]:
    return {**write_sizes(model), **write_window(model), "attention_bias": "q" in model.biases}


QWEN3 = Family(name="qwen3", architecture="Qwen3ForCausalLM", read=_read, write=_write, table=TABLE)

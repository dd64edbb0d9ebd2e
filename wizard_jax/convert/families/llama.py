"""LLaMA 1, 2, 3, 3.1, 3.2 (text) and CodeLlama, and the table of all that are built like it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.raw_config import RawConfig, rope_settings
from wizard_jax.convert.tensors import AS_IT_IS, FROM_HEADS, LINEAR, Table, linear, norm
from wizard_jax.model.config import ModelConfig

_BLOCK = "model.layers.{}"

TABLE: Table = MappingProxyType(
    {
        "model.embed_tokens.weight": [(("embed",), AS_IT_IS)],
        **norm(f"{_BLOCK}.input_layernorm", "layers", "attention_norm"),
        **linear(f"{_BLOCK}.self_attn.q_proj", "q"),
        **linear(f"{_BLOCK}.self_attn.k_proj", "k"),
        **linear(f"{_BLOCK}.self_attn.v_proj", "v"),
        **linear(f"{_BLOCK}.self_attn.o_proj", "o", form=FROM_HEADS),
        **norm(f"{_BLOCK}.self_attn.q_norm", "layers", "q_norm"),
        **norm(f"{_BLOCK}.self_attn.k_norm", "layers", "k_norm"),
        **norm(f"{_BLOCK}.post_attention_layernorm", "layers", "mlp_norm"),
        **linear(f"{_BLOCK}.mlp.gate_proj", "gate"),
        **linear(f"{_BLOCK}.mlp.up_proj", "up"),
        **linear(f"{_BLOCK}.mlp.down_proj", "down"),
        **norm("model.norm", "final_norm"),
        "lm_head.weight": [(("unembed",), LINEAR)],
    }
)


def read_sizes(raw: RawConfig, *, kv_heads: int | None = None, longest: int = 2048) -> dict[str, Any]:
    """What all that are built like LLaMA say in the same words; `kv_heads` and `longest` where they do not say it."""
    raw.only(hidden_act=("silu",), partial_rotary_factor=(None, 1.0))
    heads = raw.integer("num_attention_heads")
    theta, scaling = raw.rope()
    unsaid = heads if kv_heads is None or "num_key_value_heads" in raw.values else kv_heads
    return {
        "vocab_size": raw.integer("vocab_size"),
        "d_model": raw.integer("hidden_size"),
        "n_layers": raw.integer("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": raw.integer("num_key_value_heads", unsaid),
        "head_dim": raw.integer("head_dim", raw.integer("hidden_size") // max(heads, 1)),
        "d_ff": raw.integer("intermediate_size"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": raw.number("rms_norm_eps", 1e-6),
        "max_positions": raw.integer("max_position_embeddings", longest),
        "tied_embeddings": raw.flag("tie_word_embeddings", False),
        "initializer_range": raw.number("initializer_range", 0.02),
    }


def write_sizes(model: ModelConfig) -> dict[str, Any]:
    """What `read_sizes` reads."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_positions,
        "initializer_range": model.initializer_range,
        "rms_norm_eps": model.norm_eps,
        **rope_settings(model.rope_theta, model.rope_scaling),
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tied_embeddings,
        "use_cache": True,
    }


def _read(raw: RawConfig) -> ModelConfig:
    raw.only(sliding_window=(None,))
    attention = ("q", "k", "v", "o") if raw.flag("attention_bias", False) else ()
    mlp = ("gate", "up", "down") if raw.flag("mlp_bias", False) else ()
    return ModelConfig(family="llama", biases=(*attention, *mlp), **read_sizes(raw))


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        **write_sizes(model),
        "attention_bias": "q" in model.biases,
        "mlp_bias": "up" in model.biases,
        "pretraining_tp": 1,
    }


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read=_read,
    write=_write,
    table=TABLE,
    buffers=(".self_attn.rotary_emb.inv_freq",),
)

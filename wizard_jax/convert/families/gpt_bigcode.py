"""GPT-BigCode: SantaCoder (arXiv 2301.03988), StarCoder (arXiv 2305.06161) and WizardCoder 15B (arXiv 2306.08568).

All query heads share one key-value head, and queries, keys and values are one stored tensor.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.raw_config import ACTIVATIONS, RawConfig
from wizard_jax.convert.tensors import AS_IT_IS, FROM_HEADS, LINEAR, VECTOR, Table, linear, norm
from wizard_jax.model.config import ModelConfig

_BLOCK = "transformer.h.{}"

TABLE: Table = MappingProxyType(
    {
        "transformer.wte.weight": [(("embed",), AS_IT_IS)],
        "transformer.wpe.weight": [(("positions",), AS_IT_IS)],
        **norm(f"{_BLOCK}.ln_1", "layers", "attention_norm"),
        f"{_BLOCK}.attn.c_attn.weight": [(("layers", name), LINEAR) for name in "qkv"],
        f"{_BLOCK}.attn.c_attn.bias": [(("layers", f"{name}_bias"), VECTOR) for name in "qkv"],
        **linear(f"{_BLOCK}.attn.c_proj", "o", form=FROM_HEADS),
        **norm(f"{_BLOCK}.ln_2", "layers", "mlp_norm"),
        **linear(f"{_BLOCK}.mlp.c_fc", "up"),
        **linear(f"{_BLOCK}.mlp.c_proj", "down"),
        **norm("transformer.ln_f", "final_norm"),
        "lm_head.weight": [(("unembed",), LINEAR)],
    }
)


def _read(raw: RawConfig) -> ModelConfig:
    raw.only(multi_query=(True,), scale_attn_weights=(True,), add_cross_attention=(False,))
    heads, width = raw.integer("n_head"), raw.integer("n_embd")
    return ModelConfig(
        family="gpt_bigcode",
        vocab_size=raw.integer("vocab_size"),
        d_model=width,
        n_layers=raw.integer("n_layer"),
        n_heads=heads,
        n_kv_heads=1,
        head_dim=width // max(heads, 1),
        d_ff=raw.integer("n_inner", 4 * width),
        mlp=raw.activation("gelu_pytorch_tanh"),
        biases=("q", "k", "v", "o", "up", "down"),
        norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        positions="learned",
        max_positions=raw.integer("n_positions", 1024),
        tied_embeddings=raw.flag("tie_word_embeddings", True),
        initializer_range=raw.number("initializer_range", 0.02),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_ff,
        "n_positions": model.max_positions,
        "activation_function": next(name for name, ours in ACTIVATIONS.items() if ours == model.mlp),
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tied_embeddings,
        "multi_query": True,
        "scale_attn_weights": True,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": True,
    }


GPT_BIGCODE = Family(
    name="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    read=_read,
    write=_write,
    table=TABLE,
    buffers=(".attn.bias", ".attn.masked_bias"),
)

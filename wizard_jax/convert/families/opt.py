"""OPT (arXiv 2205.01068) and Galactica (arXiv 2211.09085): learned positions, LayerNorm, no gate.

OPT 350M norms after the sum, and projects an embedding of half the width; Galactica has no biases, nor anything
learned in its norms.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

from wizard_jax.convert.families.family import Family
from wizard_jax.convert.raw_config import ACTIVATIONS, RawConfig
from wizard_jax.convert.tensors import AS_IT_IS, FROM_HEADS, LINEAR, Table, linear, norm
from wizard_jax.model.config import ModelConfig

_BLOCK = "model.decoder.layers.{}"
_BIASES = ("q", "k", "v", "o", "up", "down")

TABLE: Table = MappingProxyType(
    {
        "model.decoder.embed_tokens.weight": [(("embed",), AS_IT_IS)],
        "model.decoder.embed_positions.weight": [(("positions",), AS_IT_IS)],
        "model.decoder.project_in.weight": [(("project_in",), LINEAR)],
        "model.decoder.project_out.weight": [(("project_out",), LINEAR)],
        **norm("model.decoder.final_layer_norm", "final_norm"),
        **linear(f"{_BLOCK}.self_attn.q_proj", "q"),
        **linear(f"{_BLOCK}.self_attn.k_proj", "k"),
        **linear(f"{_BLOCK}.self_attn.v_proj", "v"),
        **linear(f"{_BLOCK}.self_attn.out_proj", "o", form=FROM_HEADS),
        **norm(f"{_BLOCK}.self_attn_layer_norm", "layers", "attention_norm"),
        **linear(f"{_BLOCK}.fc1", "up"),
        **linear(f"{_BLOCK}.fc2", "down"),
        **norm(f"{_BLOCK}.final_layer_norm", "layers", "mlp_norm"),
        "lm_head.weight": [(("unembed",), LINEAR)],
    }
)


def _read(raw: RawConfig) -> ModelConfig:
    raw.only(_remove_final_layer_norm=(False,))
    heads, width = raw.integer("num_attention_heads"), raw.integer("hidden_size")
    d_embed = raw.integer("word_embed_proj_dim", width)
    kind: Literal["layer", "layer_plain"] = (
        "layer" if raw.flag("layer_norm_elementwise_affine", True) else "layer_plain"
    )
    return ModelConfig(
        family="opt",
        vocab_size=raw.integer("vocab_size"),
        d_model=width,
        n_layers=raw.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // max(heads, 1),
        d_ff=raw.integer("ffn_dim"),
        d_embed=None if d_embed == width else d_embed,
        mlp=raw.activation("relu"),
        biases=_BIASES if raw.flag("enable_bias", True) else (),
        norm=kind,
        norm_place="before" if raw.flag("do_layer_norm_before", True) else "after",
        positions="learned",
        position_offset=2,
        max_positions=raw.integer("max_position_embeddings", 2048),
        tied_embeddings=raw.flag("tie_word_embeddings", True),
        initializer_range=raw.number("init_std", 0.02),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "ffn_dim": model.d_ff,
        "word_embed_proj_dim": model.d_model if model.d_embed is None else model.d_embed,
        "activation_function": next(name for name, ours in ACTIVATIONS.items() if ours == model.mlp),
        "enable_bias": bool(model.biases),
        "layer_norm_elementwise_affine": model.norm == "layer",
        "do_layer_norm_before": model.norm_place == "before",
        "_remove_final_layer_norm": False,
        "max_position_embeddings": model.max_positions,
        "tie_word_embeddings": model.tied_embeddings,
        "init_std": model.initializer_range,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "use_cache": True,
    }


OPT = Family(name="opt", architecture="OPTForCausalLM", read=_read, write=_write, table=TABLE)

"""A tiny random model of `transformers` for every family, in the shapes that published ones have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch_steps import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

VOCABULARY, LONGEST = 96, 64
ORIGINAL = 16  # the length that scaled models are said to be trained with
_LIKE_LLAMA: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
_OPT: Mapping[str, Any] = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": LONGEST,
    "init_std": 0.2,
    "dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
_BIGCODE: Mapping[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 8,
    "n_inner": 48,
    "n_positions": LONGEST,
    "initializer_range": 0.2,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def _rope(kind: str, **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **numbers}}


_LLAMA3 = _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL)


def _made(model: str, config: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    def make(*, vocabulary: int = VOCABULARY, longest: int = LONGEST, **changes: Any) -> Any:
        torch.manual_seed(0)
        positions = "n_positions" if "n_positions" in settings else "max_position_embeddings"
        told = {**settings, **changes, "vocab_size": vocabulary, positions: longest}
        made = getattr(transformers, model)(getattr(transformers, config)(**told)).eval()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0.0, 0.2)
                elif "norm" in name or ".ln_" in name:
                    weight.normal_(1.0, 0.2)
        return made

    return make


def _llama(**settings: Any) -> Callable[..., Any]:
    return _made("LlamaForCausalLM", "LlamaConfig", {**_LIKE_LLAMA, **settings})


def _opt(**settings: Any) -> Callable[..., Any]:
    return _made("OPTForCausalLM", "OPTConfig", {**_OPT, **settings})


FAMILIES: Mapping[str, Callable[..., Any]] = {
    "llama 2": _llama(),
    "llama 3.2": _llama(tie_word_embeddings=True, rope_theta=5e5, **_LLAMA3),
    "mistral": _made("MistralForCausalLM", "MistralConfig", {**_LIKE_LLAMA, "sliding_window": 7}),
    "qwen 2.5": _made("Qwen2ForCausalLM", "Qwen2Config", _LIKE_LLAMA),
    "qwen 3": _made("Qwen3ForCausalLM", "Qwen3Config", {**_LIKE_LLAMA, "head_dim": 6}),
    "opt": _opt(),
    "opt 350m": _opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "galactica": _opt(enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
    "starcoder": _made("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _BIGCODE),
}
"""One for every family, and for what differs within it."""

VARIANTS: Mapping[str, Callable[..., Any]] = {
    "vicuna 16k": _llama(**_rope("linear")),
    "codellama": _llama(rope_theta=1e6),
    "llama with biases": _llama(attention_bias=True, mlp_bias=True),
    "mistral 0.3": _made("MistralForCausalLM", "MistralConfig", {**_LIKE_LLAMA, "sliding_window": None}),
    "qwen 2.5 by yarn": _made(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_LIKE_LLAMA, **_rope("yarn", original_max_position_embeddings=ORIGINAL)},
    ),
    "qwen 2 with a window": _made(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_LIKE_LLAMA, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
    ),
    "qwen 3 with biases": _made("Qwen3ForCausalLM", "Qwen3Config", {**_LIKE_LLAMA, "attention_bias": True}),
    "opt with its own head": _opt(tie_word_embeddings=False),
    "starcoder by gelu": _made(
        "GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**_BIGCODE, "activation_function": "gelu", "n_inner": None}
    ),
}
"""More of what their configs may say."""

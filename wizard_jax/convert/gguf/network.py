"""A network as llama.cpp knows it: its architecture's name, its sizes, and its tensors.

What llama.cpp would compute otherwise is refused before anything is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import gguf
import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.tensors import Array, ConversionError, Place, Read, stored_shape, to_stored
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.rope import LinearScaling, Llama3Scaling, YarnScaling

Quantisation = Literal["F16", "BF16", "Q8_0"]

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = MappingProxyType(
    {
        "llama": gguf.MODEL_ARCH.LLAMA,
        "mistral": gguf.MODEL_ARCH.LLAMA,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
        "gpt_bigcode": gguf.MODEL_ARCH.STARCODER,
    }
)
"""Family -> what llama.cpp calls a network of this kind."""

_ROTATED = ("q", "k")


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor of the file, and where its values come from."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    type: gguf.GGMLQuantizationType
    values: Callable[[], Array]


def check_known(model: ModelConfig) -> None:
    """Raises ConversionError: llama.cpp has no such network, or computes another than this one."""
    architectures.write_config(model)
    if model.family not in ARCHITECTURES:
        raise ConversionError(
            f"llama.cpp has no network of the family {model.family!r}: it can be written as GGUF from "
            f"{', '.join(ARCHITECTURES)}; leave --format out for a Hugging Face folder"
        )
    architecture = ARCHITECTURES[model.family]
    wrong = []
    if isinstance(model.rope_scaling, Llama3Scaling) and architecture != gguf.MODEL_ARCH.LLAMA:
        wrong.append("rope_scaling of Llama 3 (its llama architecture alone reads those frequencies)")
    if model.family in ("qwen2", "gpt_bigcode") and model.n_heads * model.head_dim != model.d_model:
        wrong.append(f"heads of {model.head_dim}, where d_model / n_heads = {model.d_model / model.n_heads:g}")
    if model.family == "qwen3" and model.biases:
        wrong.append(f"biases of {', '.join(model.biases)}")
    if model.family == "gpt_bigcode" and model.mlp != "gelu_tanh":
        wrong.append(f"mlp = {model.mlp!r} (its GELU is the one of tanh)")
    if wrong:
        name = gguf.MODEL_ARCH_NAMES[architecture]
        raise ConversionError(f"llama.cpp's {name} architecture does not compute {'; '.join(wrong)}")


def context_length(model: ModelConfig) -> int:
    """The positions that a reader is told of. llama.cpp has no sliding window for these networks: within one window
    every token sees all before it, as there, and beyond it would see more than it was trained with."""
    return min(model.max_positions, model.sliding_window or model.max_positions)


def write_sizes(writer: gguf.GGUFWriter, model: ModelConfig) -> None:
    """The settings of the network."""
    writer.add_context_length(context_length(model))
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.d_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_vocab_size(model.vocab_size)
    if model.norm == "rms":
        writer.add_layer_norm_rms_eps(model.norm_eps)
    else:
        writer.add_layer_norm_eps(model.norm_eps)
    if model.positions == "rotary":
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
        writer.add_rope_dimension_count(model.head_dim)
        writer.add_rope_freq_base(model.rope_theta)
        _write_scaling(writer, model)


def _write_scaling(writer: gguf.GGUFWriter, model: ModelConfig) -> None:
    """Llama 3's is a tensor: see `_rope_factors`."""
    match model.rope_scaling:
        case LinearScaling(factor=factor):
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(factor)
        case YarnScaling() as yarn:
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(yarn.factor)
            writer.add_rope_scaling_orig_ctx_len(yarn.original_positions)
            writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
            if yarn.attention_factor is not None:  # there it multiplies what follows from the factor
                writer.add_rope_scaling_attn_factors(yarn.attention_factor / (0.1 * math.log(yarn.factor) + 1.0))


def tensors(model: ModelConfig, read: Read, *, quantisation: Quantisation) -> list[GgufTensor]:
    """Every tensor of the file, in the order of the layers."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[model.family], model.n_layers)
    found = []
    for stored_name, rows in architectures.places(model).items():
        name = names.get_name(stored_name, try_suffixes=(".weight", ".bias"))
        assert name is not None, stored_name
        shape = stored_shape(rows)
        found.append(
            GgufTensor(
                name=name,
                shape=shape,
                type=type_of(rows, shape, quantisation=quantisation),
                values=functools.partial(_values, rows, read, model=model),
            )
        )
    if isinstance(model.rope_scaling, Llama3Scaling):
        factors = _rope_factors(model.rope_scaling, head_dim=model.head_dim, theta=model.rope_theta)
        kind = gguf.GGMLQuantizationType.F32
        found.append(GgufTensor(name="rope_freqs.weight", shape=factors.shape, type=kind, values=lambda: factors))
    return found


def unblocked(model: ModelConfig) -> list[str]:
    """The matrices whose rows are no whole blocks of Q8_0, and which stay in F16."""

    def unread(place: Place) -> Array:
        raise AssertionError(place)

    planned = tensors(model, unread, quantisation="Q8_0")
    return [tensor.name for tensor in planned if tensor.type == gguf.GGMLQuantizationType.F16]


def type_of(rows: Sequence[Place], shape: tuple[int, ...], *, quantisation: Quantisation) -> gguf.GGMLQuantizationType:
    """Norms, biases and the table of positions, which are small, stay float32; Q8_0 has blocks of 32 along a row."""
    if len(shape) == 1 or rows[0].path == ("positions",):
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[quantisation]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _values(rows: Sequence[Place], read: Read, *, model: ModelConfig) -> Array:
    stored = to_stored(rows, [read(place) for place in rows])
    name = rows[0].path[-1].removesuffix("_bias")
    if ARCHITECTURES[model.family] != gguf.MODEL_ARCH.LLAMA or name not in _ROTATED:
        return stored
    return paired(stored, heads=model.n_heads if name == "q" else model.n_kv_heads)


def paired(stored: Array, *, heads: int) -> Array:
    """The rows of queries or keys as the llama architecture rotates them: dimension 2i with 2i + 1, as Meta's own
    checkpoints, where Hugging Face's have i with i + Dh / 2."""
    halves = stored.reshape(heads, 2, -1, *stored.shape[1:])
    return halves.swapaxes(1, 2).reshape(stored.shape)


def _rope_factors(scaling: Llama3Scaling, *, head_dim: int, theta: float) -> Array:
    """What llama.cpp divides each frequency by: float32 [Dh / 2]."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / scaling.factor)).astype(np.float32)

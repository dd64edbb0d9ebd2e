"""What a decoder is told about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from configs.errors import UserError
from configs.loader import setting
from wizard_jax.model.rope import RopeScaling

LINEAR_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "q": ("heads", "head_dim"),
        "k": ("kv_heads", "head_dim"),
        "v": ("kv_heads", "head_dim"),
        "o": ("embed",),
        "gate": ("mlp",),
        "up": ("mlp",),
        "down": ("embed",),
    }
)
"""The linear layers of a block, and the logical axes of what each gives."""


class ModelConfigError(UserError):
    """Sizes that no decoder can have."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: what it computes, and how that is carried out. The defaults are LLaMA's."""

    family: str = setting("llama", doc="whose layout it has as a Hugging Face folder")

    vocab_size: int = setting(doc="V")
    d_model: int = setting(doc="D, the width of the residual stream")
    n_layers: int = setting(doc="N")
    n_heads: int = setting(doc="H")
    n_kv_heads: int = setting(doc="K, each shared by H / K query heads")
    head_dim: int = setting(doc="Dh; even, because RoPE turns it in pairs")
    d_ff: int = setting(doc="F, the width of the feed-forward layer")
    mlp: Literal["swiglu", "relu", "gelu", "gelu_tanh"] = setting(
        "swiglu", doc="of the feed-forward layer; swiglu has a gate beside it, the others have none"
    )
    biases: tuple[str, ...] = setting((), doc="linear layers with a bias: some of q, k, v, o, gate, up, down")
    norm: Literal["rms", "layer", "layer_plain"] = setting(
        "rms", doc="root mean square and a scale, LayerNorm with scale and bias, or LayerNorm with neither"
    )
    norm_place: Literal["before", "after"] = setting(
        "before", doc="of attention and feed-forward; after: of the sum with the residual, with no norm at the end"
    )
    norm_eps: float = setting(1e-5, doc="added to the mean square (or variance) before its root is taken")
    qk_norm: bool = setting(False, doc="a root-mean-square norm of every query and key head before rotation")
    positions: Literal["rotary", "learned"] = setting("rotary", doc="RoPE, or a learned vector added to the embedding")
    rope_theta: float = setting(10_000.0, doc="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = setting(None, doc="how rotary frequencies are stretched to a longer context")
    position_offset: int = setting(0, doc="rows of the table of learned positions before that of position 0")
    max_positions: int = setting(2048, doc="the longest sequence that it is meant for")
    sliding_window: int | None = setting(None, doc="a token sees so many positions, its own among them; None: all")
    tied_embeddings: bool = setting(False, doc="unembed with the transposed embedding")
    d_embed: int | None = setting(None, doc="width of the embedding, projected to D and back; None: D")
    initializer_range: float = setting(0.02, doc="standard deviation of every initial matrix")
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", operational=True, doc="of matrix products and activations; parameters stay float32"
    )
    attention: Literal["auto", "reference", "splash", "triton"] = setting(
        "auto",
        operational=True,
        doc="what computes it in training: the kernel of TPUs (splash) or of GPUs (triton), or the einsum that both "
        "must equal and that CPUs take; auto goes by the devices",
    )
    remat: Literal["none", "dots", "except_mlp", "qkv", "attention", "full", "offload"] = setting(
        "none",
        operational=True,
        doc="what a layer keeps of each token for its backward pass, the rest being computed again. full: its input, D "
        "numbers; attention: also what attention gave, H Dh (on TPUs the kernel then runs once); qkv: also queries, "
        "keys and values, (H + 2 K) Dh; except_mlp: also the input of the feed-forward layer, D; dots: the input and "
        "every matrix product of a weight, 2 D + (H + 2 K) Dh + 2 F; none: all; offload: as full, with the input in "
        "the memory of the host",
    )
    scan_unroll: int = setting(1, operational=True, doc="layers per step of the scan; N unrolls it whole")

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_positions")
        for name in (*sizes, "rope_theta", "norm_eps", "initializer_range", "scan_unroll", "sliding_window", "d_embed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ModelConfigError(f"{name} = {value}: must be above 0, and finite")
        if self.n_heads % self.n_kv_heads:
            raise ModelConfigError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}: "
                "each key-value head serves the same number of query heads"
            )
        if self.scan_unroll > self.n_layers:
            raise ModelConfigError(
                f"scan_unroll = {self.scan_unroll} is more than n_layers = {self.n_layers}: set it to "
                f"{self.n_layers} to unroll the whole scan"
            )
        self._check_positions()
        unknown = [name for name in self.biases if name not in self.linear_layers]
        if unknown or len(set(self.biases)) < len(self.biases):
            raise ModelConfigError(
                f"biases = {self.biases}: name each of its linear layers once at most ({', '.join(self.linear_layers)})"
            )

    def _check_positions(self) -> None:
        if self.positions == "rotary" and self.head_dim % 2:
            raise ModelConfigError(f"head_dim = {self.head_dim}: must be even, RoPE turns it in pairs")
        if self.positions == "rotary" and self.position_offset:
            raise ModelConfigError(
                f"position_offset = {self.position_offset}: rotary positions have no table; leave it"
            )
        if self.positions == "learned" and self.rope_scaling is not None:
            raise ModelConfigError("rope_scaling is set, and positions = 'learned' has no rotary frequencies: leave it")
        if self.position_offset < 0:
            raise ModelConfigError(f"position_offset = {self.position_offset}: must be 0 or above")

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Those of a block that this model has."""
        return tuple(name for name in LINEAR_LAYERS if name != "gate" or self.mlp == "swiglu")

"""What a decoder is told about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.errors import UserError
from configs.loader import setting


class ModelConfigError(UserError):
    """Sizes that no decoder can have."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LLaMA: its sizes, which decide what it computes, and how its computation is carried out."""

    vocab_size: int = setting(doc="V")
    d_model: int = setting(doc="D, the width of the residual stream")
    n_layers: int = setting(doc="N")
    n_heads: int = setting(doc="H")
    n_kv_heads: int = setting(doc="K, each shared by H / K query heads")
    head_dim: int = setting(doc="Dh; even, because RoPE turns it in pairs")
    d_ff: int = setting(doc="F, the width of the gated feed-forward layer")
    rope_theta: float = setting(10_000.0, doc="base of the rotary frequencies")
    norm_eps: float = setting(1e-5, doc="added to the mean square before its root is taken")
    max_positions: int = setting(2048, doc="the longest sequence that it is meant for")
    tied_embeddings: bool = setting(False, doc="unembed with the transposed embedding")
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
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
        for name in (*sizes, "max_positions", "rope_theta", "norm_eps", "initializer_range", "scan_unroll"):
            if not 0 < getattr(self, name) < math.inf:
                raise ModelConfigError(f"{name} = {getattr(self, name)}: must be above 0, and finite")
        if self.n_heads % self.n_kv_heads:
            raise ModelConfigError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}: "
                "each key-value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim = {self.head_dim}: must be even, RoPE turns it in pairs")
        if self.scan_unroll > self.n_layers:
            raise ModelConfigError(
                f"scan_unroll = {self.scan_unroll} is more than n_layers = {self.n_layers}: set it to "
                f"{self.n_layers} to unroll the whole scan"
            )

"""How many floating-point operations a training step asks for: by formula, so the same on every machine.

A multiplication and an addition are two operations. Counted for each token of a row of L, padding too:

    forward, matrices    2 P, where P is the number of parameters in matrix products: all but the embedding (it is
                         looked up; where it also unembeds, that product counts), learned positions, biases and
                         the scales of norms
    forward, attention   4 N H Dh C: scores and their use, over the mean number C = (L + 1) / 2 of positions that a
                         token sees in a causal row of one conversation; with a sliding window of W < L positions
                         C = W - W (W - 1) / 2 L
    backward             twice the forward: a product is differentiated by both of its factors

With an adapter of R parameters (LoRA's A and B) the P are frozen: they are differentiated by one factor only, and a
token takes 4 P + 6 R for matrices.

So a token takes 6 P + 12 N H Dh C, the count of PaLM (arXiv 2204.02311, appendix B) but for its attention, which is
counted there as if every token saw L. Norms, softmax, rotary angles and the optimizer are left out: below 1 % from
1B parameters up. A packed row's attention is counted as that of one conversation of L tokens, which is the most that
it can be: kernels that skip other segments do less. What remat computes a second time is no part of the count, so that
a share of the peak made of it is model-FLOPs utilisation; `recomputed` says how much it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from wizard_jax.model.config import ModelConfig
from wizard_jax.model.lora import LoRA, count_adapter


@dataclass(frozen=True, kw_only=True)
class TokenFlops:
    """Operations for one token of a training step, forward and backward."""

    matrices: float
    attention: float
    recomputed: float
    """Of the forward pass, a second time, by `model.remat`; not in `total`."""

    @property
    def total(self) -> float:
        return self.matrices + self.attention

    @property
    def recomputed_share(self) -> float:
        return self.recomputed / self.total


FORMULA = "6 P + 12 N H Dh (L + 1) / 2 a token; P: parameters in matrix products"
ADAPTER_FORMULA = "4 P + 6 R + 12 N H Dh (L + 1) / 2 a token; P: frozen parameters in matrix products, R: adapter's"


def formula(model: ModelConfig, *, seq_len: int, adapter: LoRA | None) -> str:
    """Of `token_flops`, in words."""
    words = FORMULA if adapter is None else ADAPTER_FORMULA
    window = model.sliding_window
    if window is None or window >= seq_len:
        return words
    return words.replace("(L + 1) / 2", "C") + ", C: W - W (W - 1) / 2 L of a window of W"


def matrix_params(model: ModelConfig) -> int:
    """P: the parameters that a token is multiplied with."""
    width = model.d_model if model.d_embed is None else model.d_embed
    projections = 0 if model.d_embed is None else 2 * model.d_model * model.d_embed
    return model.n_layers * _layer_params(model) + width * model.vocab_size + projections


def token_flops(model: ModelConfig, *, seq_len: int, adapter: LoRA | None = None) -> TokenFlops:
    """What each token of a row of `seq_len` takes in a training step."""
    window = min(model.sliding_window or seq_len, seq_len)
    seen = window - window * (window - 1) / (2 * seq_len)
    attention = 4 * model.n_layers * model.n_heads * model.head_dim * seen
    again = 2 * model.n_layers * _params_again(model) + attention * (model.remat in ("dots", "full", "offload"))
    matrices = 6 * matrix_params(model)
    if adapter is not None:
        matrices = 4 * matrix_params(model) + 6 * count_adapter(model, adapter=adapter)
    return TokenFlops(matrices=matrices, attention=3 * attention, recomputed=again)


def _layer_params(model: ModelConfig) -> int:
    attention = 2 * model.d_model * model.head_dim * (model.n_heads + model.n_kv_heads)
    return attention + _mlp_layers(model) * model.d_model * model.d_ff


def _mlp_layers(model: ModelConfig) -> int:
    return sum(name in ("gate", "up", "down") for name in model.linear_layers)


def _params_again(model: ModelConfig) -> int:
    """Parameters of a layer that its input is multiplied with a second time.

    Not `down`, whose product is the layer's last and no factor of a gradient, unless a norm comes after it. A remat
    policy that keeps what attention gave keeps what a kernel's backward pass needs, so that scores are not computed
    again; the reference, which is no kernel, computes them again.
    """
    qkv = model.d_model * model.head_dim * (model.n_heads + 2 * model.n_kv_heads)
    output = model.d_model * model.head_dim * model.n_heads
    of_mlp = _mlp_layers(model) - (model.norm_place == "before")
    mlp = of_mlp * model.d_model * model.d_ff
    match model.remat:
        case "none" | "dots":
            return 0
        case "except_mlp":
            return mlp if model.norm_place == "before" else output + mlp  # the norm of its sum is what is kept
        case "qkv":
            return output + mlp
        case "attention" | "full" | "offload":
            return qkv + output + mlp

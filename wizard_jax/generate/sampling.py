"""How the next token is chosen: settings, and the choice itself, each row of a batch by its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from configs.loader import setting

_LEAST = float(np.finfo(np.float32).tiny)


class SamplingError(UserError):
    """A prompt that can not be continued, or a way of sampling that makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int = setting(256, doc="the answer is cut here if the model does not end it")
    temperature: float = setting(0.0, doc="0 takes the likeliest token")
    top_p: float = setting(1.0, doc="sample from the likeliest tokens that hold this much probability")
    top_k: int = setting(0, doc="sample from so many of the likeliest tokens; 0: from all")
    seed: int = setting(0, doc="of every draw (its lower 32 bits); each prompt draws by its own place in the list")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SamplingError(f"max_new_tokens = {self.max_new_tokens}: must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise SamplingError(f"temperature = {self.temperature}: must be 0 (greedy) or above, and finite")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p = {self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise SamplingError(f"top_k = {self.top_k}: must be 0 (all tokens) or above")


class Choosing(NamedTuple):
    """Settings of R rows. A row's draw is made from its seed, its place and how many it has made, and nothing else."""

    temperature_R: jax.Array  # float32; 0: the likeliest
    top_p_R: jax.Array  # float32
    top_k_R: jax.Array  # int32; 0: all
    seed_R: jax.Array  # uint32
    place_R: jax.Array  # int32


def choose(scores_RxV: jax.Array, drawn_R: jax.Array, choosing: Choosing) -> jax.Array:
    """The next token of each row: [R] int32. `drawn_R` int32 counts the tokens that it has drawn so far.

    Top-k first, then the nucleus (arXiv 1904.09751) of what that leaves. What no row asks for is not computed, which
    changes no row: a sort of the whole vocabulary takes longer than a small model's step.
    """
    likeliest_R = jnp.argmax(scores_RxV, axis=-1).astype(jnp.int32)
    is_warm_R = choosing.temperature_R > 0

    def draw() -> jax.Array:
        divisor_Rx1 = jnp.where(is_warm_R, choosing.temperature_R, 1.0)[:, None]
        warmed_RxV = scores_RxV / divisor_Rx1
        is_cut = jnp.any(is_warm_R & ((choosing.top_p_R < 1) | (choosing.top_k_R > 0)))
        kept_RxV = jax.lax.cond(is_cut, lambda: _cut(warmed_RxV, choosing), lambda: warmed_RxV)
        drawn_token_R = jax.vmap(_draw)(kept_RxV, choosing.seed_R, choosing.place_R, drawn_R)
        return jnp.where(is_warm_R, drawn_token_R, likeliest_R)

    token_R: jax.Array = jax.lax.cond(jnp.any(is_warm_R), draw, lambda: likeliest_R)
    return token_R


def _draw(scores_V: jax.Array, seed: jax.Array, place: jax.Array, drawn: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), place), drawn)
    return jax.random.categorical(key, scores_V).astype(jnp.int32)


def _cut(scores_RxV: jax.Array, choosing: Choosing) -> jax.Array:
    """-inf for what top-k and top-p leave out; tokens as likely as the last that is kept are kept too."""
    vocabulary = scores_RxV.shape[-1]
    ranked_RxV = jnp.sort(scores_RxV, axis=-1, descending=True)
    most_R = jnp.where(choosing.top_k_R > 0, jnp.minimum(choosing.top_k_R, vocabulary), vocabulary)
    last_Rx1 = jnp.take_along_axis(ranked_RxV, most_R[:, None] - 1, axis=-1)
    ranked_RxV = jnp.where(ranked_RxV < last_Rx1, -jnp.inf, ranked_RxV)
    chances_RxV = jax.nn.softmax(ranked_RxV, axis=-1)
    before_RxV = jnp.cumsum(chances_RxV, axis=-1) - chances_RxV
    top_p_Rx1 = jnp.maximum(choosing.top_p_R, _LEAST)[:, None]  # one is always inside
    is_inside_RxV = (before_RxV < top_p_Rx1) | (top_p_Rx1 >= 1)
    smallest_Rx1 = jnp.where(is_inside_RxV, ranked_RxV, jnp.inf).min(axis=-1, keepdims=True)
    threshold_Rx1 = jnp.maximum(smallest_Rx1, last_Rx1)
    return jnp.where(scores_RxV < threshold_Rx1, -jnp.inf, scores_RxV)

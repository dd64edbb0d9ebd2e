"""Batched generation with a key-value cache.

Prompts of a batch stand at the left of a grid of P slots, padded on the right; every row writes its t-th new token to
the slot behind its own prompt, over the padding, so slots are positions and a row gives the same text alone and in any
batch:

    slot         0  1  2  3  4  5          P = 4
    row 0        a  b  c  d  x  y
    row 1        e  f  z  .  .  .
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from configs.errors import UserError
from configs.loader import setting
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

Tokens = npt.NDArray[np.int32]

SMALLEST_PROMPT_BUCKET = 16


class SamplingError(UserError):
    """A prompt that can not be continued, or a way of sampling that makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int = setting(256, doc="the answer is cut here if the model does not end it")
    temperature: float = setting(0.0, doc="0 takes the likeliest token")
    top_p: float = setting(1.0, doc="sample from the likeliest tokens that hold this much probability")
    seed: int = setting(0, doc="of every draw; each prompt draws by its own place in the list")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SamplingError(f"max_new_tokens = {self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise SamplingError(f"temperature = {self.temperature}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p = {self.top_p}: must be above 0 and at most 1")


class _State(NamedTuple):
    """What one step hands to the next; `emitted` [B, T] is filled up to column `step`."""

    step: jax.Array
    token_B: jax.Array
    done_B: jax.Array
    emitted_BxT: jax.Array
    cache: decoder.Cache


def generate(
    params: decoder.Params,
    prompts: Sequence[Tokens],
    *,
    config: ModelConfig,
    sampling: Sampling,
    eos_id: int,
    pad_id: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tokens]:
    """The continuation of each prompt, in the order of the prompts, without `eos_id`.

    Prompts of like length share a batch; batches have one of few shapes, each compiled once.
    `progress(done, total)` is called after every batch. Raises SamplingError.
    """
    _check(prompts, config=config, sampling=sampling, batch_size=batch_size)
    answers: list[Tokens] = [np.zeros(0, np.int32)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(prompts), batch_size):
        members = by_length[start : start + batch_size]
        rows = min(batch_size, _power_of_two(len(members)))
        longest = _power_of_two(max(len(prompts[index]) for index in members))
        columns = min(max(longest, SMALLEST_PROMPT_BUCKET), config.max_positions)
        tokens, lengths = _pad([prompts[index] for index in members], rows=rows, columns=columns, pad_id=pad_id)
        indices = np.zeros(rows, np.int32)
        indices[: len(members)] = members
        emitted = np.asarray(
            _continue(params, tokens, lengths, indices, config=config, sampling=sampling, eos_id=eos_id, pad_id=pad_id)
        )
        for index, row in zip(members, emitted, strict=False):
            ends = np.flatnonzero(row == eos_id)
            answers[index] = row[: ends[0]] if len(ends) else row
        if progress is not None:
            progress(start + len(members), len(prompts))
    return answers


def _check(prompts: Sequence[Tokens], *, config: ModelConfig, sampling: Sampling, batch_size: int) -> None:
    if batch_size < 1:
        raise SamplingError(f"batch_size = {batch_size}: must be at least 1")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise SamplingError(f"prompt {index} has no tokens: begin it with the beginning-of-text token")
        if len(prompt) + sampling.max_new_tokens > config.max_positions:
            raise SamplingError(
                f"prompt {index} has {len(prompt)} tokens; with max_new_tokens = {sampling.max_new_tokens} it "
                f"would pass the model's max_positions = {config.max_positions}: shorten one of them"
            )


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _pad(prompts: list[Tokens], *, rows: int, columns: int, pad_id: int) -> tuple[Tokens, Tokens]:
    """Prompts at the left of a [rows, columns] grid, and their lengths; 0 where there are more rows than prompts."""
    grid = np.full((rows, columns), pad_id, np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        grid[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return grid, lengths


@functools.partial(jax.jit, static_argnames=("config", "sampling", "eos_id", "pad_id"))
def _continue(
    params: decoder.Params,
    tokens_BxP: jax.Array,
    lengths_B: jax.Array,
    indices_B: jax.Array,
    *,
    config: ModelConfig,
    sampling: Sampling,
    eos_id: int,
    pad_id: int,
) -> jax.Array:
    """New tokens [B, T], from each row's first token after its prompt; pads follow its `eos_id`."""
    rows, width = tokens_BxP.shape
    keys_B = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(sampling.seed), index))(indices_B)

    def choose(hidden_Bx1xD: jax.Array, step: jax.Array) -> jax.Array:
        scores_BxV = decoder.logits(params, hidden_Bx1xD, config=config)[:, 0]
        return _choose(scores_BxV, keys_B, step, sampling=sampling)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < sampling.max_new_tokens) & ~jnp.all(state.done_B)

    def advance(state: _State) -> _State:
        hidden_Bx1xD, cache = decoder.decode(
            params,
            tokens=state.token_B[:, None],
            start=lengths_B + state.step - 1,
            cache=state.cache,
            config=config,
        )
        token_B = jnp.where(state.done_B, pad_id, choose(hidden_Bx1xD, state.step))
        emitted_BxT = state.emitted_BxT.at[:, state.step].set(token_B)
        return _State(state.step + 1, token_B, state.done_B | (token_B == eos_id), emitted_BxT, cache)

    with jax.named_scope("prefill"):
        hidden_BxPxD, cache = decoder.decode(
            params,
            tokens=tokens_BxP,
            start=jnp.zeros(rows, jnp.int32),
            cache=decoder.init_cache(config, batch=rows, length=width),
            config=config,
        )
        last_Bx1xD = jnp.take_along_axis(hidden_BxPxD, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)
        token_B = choose(last_Bx1xD, jnp.int32(0))
    done_B = (token_B == eos_id) | (lengths_B == 0)
    emitted_BxT = jnp.full((rows, sampling.max_new_tokens), pad_id, jnp.int32).at[:, 0].set(token_B)
    first = _State(jnp.int32(1), token_B, done_B, emitted_BxT, _grow(cache, by=sampling.max_new_tokens))
    with jax.named_scope("decode"):
        return jax.lax.while_loop(unfinished, advance, first).emitted_BxT


def _grow(cache: decoder.Cache, *, by: int) -> decoder.Cache:
    """The cache with empty slots behind its own: prefill need not look at slots that only decoding will fill."""
    grown: decoder.Cache = jax.tree.map(lambda slots: jnp.pad(slots, ((0, 0), (0, 0), (0, by), (0, 0))), cache)
    return grown


def _choose(scores_BxV: jax.Array, keys_B: jax.Array, step: jax.Array, *, sampling: Sampling) -> jax.Array:
    """The next token of each row: [B] int32. Nucleus sampling as in arXiv 1904.09751."""
    if sampling.temperature == 0.0:
        return jnp.argmax(scores_BxV, axis=-1).astype(jnp.int32)
    scores_BxV = scores_BxV / sampling.temperature
    if sampling.top_p < 1.0:
        ranked_BxV = jnp.sort(scores_BxV, axis=-1, descending=True)
        chances_BxV = jax.nn.softmax(ranked_BxV, axis=-1)
        before_BxV = jnp.cumsum(chances_BxV, axis=-1) - chances_BxV
        inside_BxV = jnp.where(before_BxV < sampling.top_p, ranked_BxV, jnp.inf)
        scores_BxV = jnp.where(scores_BxV < inside_BxV.min(axis=-1, keepdims=True), -jnp.inf, scores_BxV)

    def draw(key: Any, scores_V: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, step), scores_V)

    return jax.vmap(draw)(keys_B, scores_BxV).astype(jnp.int32)

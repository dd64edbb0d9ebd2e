"""A batch of rows, each of which continues a prompt of its own, and may be given another at any time.

The shapes are few and fixed: R rows of S cache slots, prompts in buckets of powers of two. What a row says depends on
its prompt and its settings, and not on what the other rows say, nor on when it came; in the same R and S it is
the same to the bit.

    engine = Engine(params, config=config, rows=8, length=1024)
    row = engine.admit(Ask(prompt=ids, sampling=Sampling(), ends=(eos_id,)))
    said = engine.advance()[row]          # tokens, and whether that was all
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from wizard_jax.generate.sampling import Choosing, Sampling, SamplingError, choose
from wizard_jax.generate.weights import prepared
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import constrain

Tokens = npt.NDArray[np.int32]

SMALLEST_BUCKET = 16
MOST_STEPS = 32
"""Of one call of `advance`."""
MOST_ENDS = 8
MOST_ALTERNATIVES = 20
"""Likeliest tokens whose probabilities can be had, as many as OpenAI gives."""
_NOTHING = -1
_SCORED_AT_ONCE = 128  # positions whose logits exist at the same time


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A prompt and how it is to be continued."""

    prompt: Tokens
    sampling: Sampling
    place: int = 0
    """Draws of the same seed differ from place to place."""
    ends: tuple[int, ...]
    """The ids that end an answer; they are no part of it."""
    chances: bool = False
    """Whether log probabilities are wanted."""


class Chances(NamedTuple):
    """Natural log probabilities, before temperature: of the tokens [n], and of the likeliest [n, MOST_ALTERNATIVES]."""

    chosen: npt.NDArray[np.float32]
    likeliest: Tokens
    of_likeliest: npt.NDArray[np.float32]

    def first(self, count: int) -> Chances:
        return Chances(self.chosen[:count], self.likeliest[:count], self.of_likeliest[:count])


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a row said since it was last heard; `ended` is "" while it goes on."""

    tokens: Tokens
    ended: str = ""
    """"stop": by one of its `ends`; "length": by its `max_new_tokens`."""
    chances: Chances | None = None


class _Rows(NamedTuple):
    """Each row's state, on the host; `left` is how many tokens it may yet say, 0 where nobody waits for it."""

    token: Tokens
    position: Tokens
    left: Tokens
    drawn: Tokens
    ends: Tokens
    chances: npt.NDArray[np.bool_]
    choosing: Choosing


class _Emitted(NamedTuple):
    """Of one `_advance`: [R, MOST_STEPS] tokens, or `_NOTHING`, and their chances where a row wants them."""

    tokens: jax.Array
    chosen: jax.Array
    likeliest: jax.Array
    of_likeliest: jax.Array


def bucket(size: int, *, most: int) -> int:
    """The power of two, or `most`, that holds `size`."""
    return min(max(SMALLEST_BUCKET, 1 << (size - 1).bit_length()), most)


class Engine:
    """R rows on the devices that hold the parameters; call it from one thread, under the mesh if there is one."""

    def __init__(self, params: decoder.Params, *, config: ModelConfig, rows: int, length: int) -> None:
        """`length` is S: the most tokens of a prompt and its answer together. Raises SamplingError."""
        if rows < 1:
            raise SamplingError(f"rows = {rows}: must be at least 1")
        if not 1 < length <= config.max_positions:
            raise SamplingError(
                f"length = {length}: must be above 1, and at most the model's max_positions = {config.max_positions}"
            )
        self.params = prepared(params, config=config)
        self.config, self.rows, self.length = config, rows, length
        self._cache = _empty(config, rows=rows, length=length)
        self._free = list(range(rows))[::-1]
        self._state = _blank(rows)

    @property
    def free(self) -> int:
        """How many more prompts can be admitted."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        return bool(self._state.left.any())

    def check(self, ask: Ask) -> None:
        """Raises SamplingError: nothing to continue, or not within `length`."""
        if not len(ask.prompt):
            raise SamplingError("the prompt has no tokens: begin it with the beginning-of-text token")
        if len(ask.prompt) + ask.sampling.max_new_tokens > self.length:
            raise SamplingError(
                f"the prompt has {len(ask.prompt)} tokens; with max_new_tokens = {ask.sampling.max_new_tokens} it "
                f"would pass {self.length}: shorten one of them"
            )
        if len(ask.ends) > MOST_ENDS:
            raise SamplingError(f"{len(ask.ends)} tokens end an answer: at most {MOST_ENDS} may")

    def admit(self, ask: Ask) -> int:
        """Gives the prompt to a free row, whose number is returned. Raises SamplingError as `check` does."""
        self.check(ask)
        row = self._free.pop()
        known, last = ask.prompt[:-1], ask.prompt[-1]
        if len(known):
            padded = np.zeros((1, bucket(len(known), most=self.length)), np.int32)
            padded[0, : len(known)] = known
            _, alone = _read(self.params, padded, config=self.config)
            self._cache = _put(self._cache, alone, np.int32(row))
        # The last token is the first step's, so that every token that is said comes out of the same program.
        state, sampling = self._state, ask.sampling
        state.token[row], state.position[row] = last, len(known)
        state.left[row], state.drawn[row] = sampling.max_new_tokens, 0
        state.ends[row] = _NOTHING
        state.ends[row, : len(ask.ends)] = ask.ends
        state.chances[row] = ask.chances
        values = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed % 2**32, ask.place)
        for column, value in zip(state.choosing, values, strict=True):
            column[row] = value
        return row

    def release(self, row: int) -> None:
        """Frees a row, whether it has ended or not."""
        assert row not in self._free, row
        self._state.left[row] = 0
        self._free.append(row)

    def advance(self, steps: int = MOST_STEPS) -> dict[int, Said]:
        """Up to so many tokens of every row that has not ended, by row. One that ends now is to be released."""
        asked = np.flatnonzero(self._state.left)
        self._cache, emitted, state = _advance(
            self.params, self._cache, self._state, np.int32(min(steps, MOST_STEPS)), config=self.config
        )
        found, moved = jax.device_get((emitted, state))
        for mine, new in zip(self._state[:4], moved, strict=True):
            mine[:] = new
        return {int(row): self._said(int(row), found) for row in asked}

    def _said(self, row: int, emitted: _Emitted) -> Said:
        tokens = np.asarray(emitted.tokens[row])
        tokens = tokens[tokens != _NOTHING]
        is_stop = len(tokens) > 0 and bool(np.isin(tokens[-1], self._state.ends[row]))
        tokens = tokens[:-1] if is_stop else tokens
        chances = None
        if self._state.chances[row]:
            chances = Chances(*(np.asarray(array[row, : len(tokens)]) for array in emitted[1:]))
        ended = "stop" if is_stop else "" if self._state.left[row] else "length"
        return Said(tokens=tokens, ended=ended, chances=chances)

    def score(self, prompt: Tokens) -> Chances:
        """Log probabilities of a text's own tokens, each after those before it; the first has none (NaN).

        Raises SamplingError: no tokens, or more than `length`.
        """
        if not 0 < len(prompt) <= self.length:
            raise SamplingError(f"the text has {len(prompt)} tokens: give 1 to {self.length}")
        padded = np.zeros((1, bucket(len(prompt), most=self.length)), np.int32)
        padded[0, : len(prompt)] = prompt
        hidden, _ = _read(self.params, padded, config=self.config)
        chosen, likeliest, of_likeliest = jax.device_get(_score(self.params, hidden, padded, config=self.config))
        count, best = len(prompt) - 1, likeliest.shape[1]
        return Chances(
            chosen=np.concatenate([np.full(1, np.nan, np.float32), chosen[:count]]),
            likeliest=np.concatenate([np.full((1, best), _NOTHING, np.int32), likeliest[:count]]),
            of_likeliest=np.concatenate([np.full((1, best), np.nan, np.float32), of_likeliest[:count]]),
        )

    def compiling(self) -> Iterator[None]:
        """Compiles all that any prompt, answer and score will need, a program at each `next`; nothing is computed."""
        _advance.lower(self.params, self._cache, self._state, np.int32(1), config=self.config).compile()
        yield
        for size in self.buckets:
            padded = np.zeros((1, size), np.int32)
            lowered = _read.lower(self.params, padded, config=self.config)
            placed = lowered.compile().output_shardings
            hidden, alone = jax.tree.map(_like, lowered.out_info, placed)
            _put.lower(self._cache, alone, np.int32(0)).compile()
            _score.lower(self.params, hidden, padded, config=self.config).compile()
            yield

    @property
    def buckets(self) -> list[int]:
        """Sizes that prompts are padded to."""
        sizes = [bucket(1, most=self.length)]
        while sizes[-1] < self.length:
            sizes.append(bucket(sizes[-1] + 1, most=self.length))
        return sizes


def _like(array: jax.ShapeDtypeStruct, placed: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """What a program is told of an array that another gives it, so that the call itself finds it compiled."""
    sharding = None if isinstance(placed, jax.sharding.SingleDeviceSharding) else placed
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)  # type: ignore[no-untyped-call]  # jax leaves it so


def _blank(rows: int) -> _Rows:
    def zeros(dtype: type) -> npt.NDArray[np.generic]:
        return np.zeros(rows, dtype)

    return _Rows(
        token=np.zeros(rows, np.int32),
        position=np.zeros(rows, np.int32),
        left=np.zeros(rows, np.int32),
        drawn=np.zeros(rows, np.int32),
        ends=np.full((rows, MOST_ENDS), _NOTHING, np.int32),
        chances=np.zeros(rows, np.bool_),
        choosing=Choosing(*map(zeros, (np.float32, np.float32, np.int32, np.uint32, np.int32))),  # type: ignore[arg-type]
    )


def _pinned(cache: decoder.Cache) -> decoder.Cache:
    """Rows and heads over the mesh, so that every program finds the cache as the last one left it."""
    pinned: decoder.Cache = jax.tree.map(lambda slots: constrain(slots, ("batch", "kv_heads", None, None)), cache)
    return pinned


@functools.partial(jax.jit, static_argnames=("config", "rows", "length"))
def _empty(config: ModelConfig, *, rows: int, length: int) -> decoder.Cache:
    return _pinned(decoder.init_cache(config, batch=rows, length=length))


@functools.partial(jax.jit, static_argnames="config")
def _read(params: decoder.Params, tokens_1xP: jax.Array, *, config: ModelConfig) -> tuple[jax.Array, decoder.Cache]:
    """The hidden states [1, P, D] of a text that is padded on the right, and a cache of it alone."""
    alone = decoder.init_cache(config, batch=1, length=tokens_1xP.shape[1])
    return decoder.decode(params, tokens=tokens_1xP, start=jnp.zeros(1, jnp.int32), cache=alone, config=config)


@functools.partial(jax.jit, donate_argnames="cache")
def _put(cache: decoder.Cache, alone: decoder.Cache, row: jax.Array) -> decoder.Cache:
    """The cache with a text at the front of a row."""

    def put(slots: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(slots, new, (row, *(jnp.int32(0),) * 3))

    return _pinned(jax.tree.map(put, cache, alone))


class _Loop(NamedTuple):
    step: jax.Array
    token: jax.Array
    position: jax.Array
    left: jax.Array
    drawn: jax.Array
    cache: decoder.Cache
    emitted: _Emitted


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _advance(
    params: decoder.Params, cache: decoder.Cache, rows: _Rows, steps: jax.Array, *, config: ModelConfig
) -> tuple[decoder.Cache, _Emitted, tuple[jax.Array, ...]]:
    """At most `steps` steps, fewer where every row ends before: the cache, what was said, and token to drawn."""

    def goes_on(loop: _Loop) -> jax.Array:
        return (loop.step < steps) & jnp.any(loop.left > 0)

    def step(loop: _Loop) -> _Loop:
        is_asked = loop.left > 0
        hidden_Rx1xD, cache = decoder.decode(
            params, tokens=loop.token[:, None], start=loop.position, cache=loop.cache, config=config
        )
        scores_RxV = decoder.logits(params, hidden_Rx1xD, config=config)[:, 0]
        token = choose(scores_RxV, loop.drawn, rows.choosing)
        is_end = jnp.any(token[:, None] == rows.ends, axis=-1)
        one = is_asked.astype(jnp.int32)
        return _Loop(
            step=loop.step + 1,
            token=jnp.where(is_asked, token, loop.token),
            position=loop.position + one,
            left=jnp.where(is_end, 0, loop.left - one),
            drawn=loop.drawn + one,
            cache=_pinned(cache),
            emitted=_kept(loop, jnp.where(is_asked, token, _NOTHING), scores_RxV, jnp.any(is_asked & rows.chances)),
        )

    count = rows.token.shape[0]
    wide = (count, MOST_STEPS, MOST_ALTERNATIVES)
    nothing = _Emitted(
        tokens=jnp.full(wide[:2], _NOTHING, jnp.int32),
        chosen=jnp.zeros(wide[:2], jnp.float32),
        likeliest=jnp.zeros(wide, jnp.int32),
        of_likeliest=jnp.zeros(wide, jnp.float32),
    )
    token, position, left, drawn = map(jnp.asarray, rows[:4])
    first = _Loop(jnp.int32(0), token, position, left, drawn, cache, nothing)
    last = jax.lax.while_loop(goes_on, step, first)
    return last.cache, last.emitted, (last.token, last.position, last.left, last.drawn)


def _kept(loop: _Loop, token_R: jax.Array, scores_RxV: jax.Array, is_wanted: jax.Array) -> _Emitted:
    """What was said, with what this step says."""

    def with_chances() -> tuple[jax.Array, ...]:
        found = _chances(scores_RxV, jnp.maximum(token_R, 0))
        return tuple(kept.at[:, loop.step].set(new) for kept, new in zip(loop.emitted[1:], found, strict=True))

    chances = jax.lax.cond(is_wanted, with_chances, lambda: tuple(loop.emitted[1:]))
    return _Emitted(loop.emitted.tokens.at[:, loop.step].set(token_R), *chances)


def _chances(scores_RxV: jax.Array, token_R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log probabilities of the tokens [R], and the likeliest with theirs [R, MOST_ALTERNATIVES]."""
    log_chances_RxV = jax.nn.log_softmax(scores_RxV, axis=-1)
    chosen_R = jnp.take_along_axis(log_chances_RxV, token_R[:, None], axis=-1)[:, 0]
    missing = max(0, MOST_ALTERNATIVES - scores_RxV.shape[-1])  # a vocabulary of fewer tokens
    best, which = jax.lax.top_k(log_chances_RxV, MOST_ALTERNATIVES - missing)
    best = jnp.pad(best, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    return chosen_R, jnp.pad(which, ((0, 0), (0, missing)), constant_values=_NOTHING).astype(jnp.int32), best


@functools.partial(jax.jit, static_argnames="config")
def _score(
    params: decoder.Params, hidden_1xPxD: jax.Array, tokens_1xP: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_chances` of the token behind each position: [P], [P, n], [P, n]; what stands behind the last is token 0."""
    width = tokens_1xP.shape[1]
    behind_P = jnp.roll(tokens_1xP[0], -1)
    size = min(_SCORED_AT_ONCE, width)
    missing = -width % size
    hidden_PxD = jnp.pad(hidden_1xPxD[0], ((0, missing), (0, 0)))
    behind_P = jnp.pad(behind_P, (0, missing))

    def some(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden_CxD, token_C = block
        return _chances(decoder.logits(params, hidden_CxD[None], config=config)[0], token_C)

    blocks = (hidden_PxD.reshape(-1, size, hidden_PxD.shape[-1]), behind_P.reshape(-1, size))
    found = jax.lax.map(some, blocks)
    return tuple(array.reshape(-1, *array.shape[2:])[:width] for array in found)

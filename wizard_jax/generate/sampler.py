"""Continuing a list of prompts, as many at a time as a batch holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from wizard_jax.generate.engine import Ask, Engine, Tokens, bucket
from wizard_jax.generate.sampling import Sampling, SamplingError
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

__all__ = ["Sampling", "SamplingError", "generate"]


def generate(
    params: decoder.Params,
    prompts: Sequence[Tokens],
    *,
    config: ModelConfig,
    sampling: Sampling,
    eos_id: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tokens]:
    """The continuation of each prompt, in the order of the prompts, without `eos_id`.

    As soon as one is done the next takes its place. `progress(done, total)` is called whenever some are done.
    Raises SamplingError.
    """
    _check(prompts, config=config, sampling=sampling, batch_size=batch_size)
    answers: list[Tokens] = [np.zeros(0, np.int32)] * len(prompts)
    if not prompts:
        return answers
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
    engine = Engine(params, config=config, rows=rows, length=bucket(longest, most=config.max_positions))
    asks = (Ask(prompt=prompt, sampling=sampling, place=place, ends=(eos_id,)) for place, prompt in enumerate(prompts))
    done = 0
    for ended in continued(engine, asks):
        for place, tokens, _ in ended:
            answers[place] = tokens
        done += len(ended)
        if progress is not None:
            progress(done, len(prompts))
    return answers


def continued(engine: Engine, asks: Iterator[Ask]) -> Iterator[list[tuple[int, Tokens, str]]]:
    """(number in `asks`, tokens, what ended them) of those that end, as they end; some at each time."""
    numbered = enumerate(asks)
    said: dict[int, tuple[int, list[Tokens]]] = {}
    while True:
        for number, ask in itertools.islice(numbered, engine.free):
            said[engine.admit(ask)] = (number, [])
        if not said:
            return
        ended = []
        for row, new in engine.advance().items():
            said[row][1].append(new.tokens)
            if new.ended:
                number, parts = said.pop(row)
                ended.append((number, np.concatenate(parts), new.ended))
                engine.release(row)
        if ended:
            yield ended


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

"""Conversations of made-up words for benchmarks: their lengths log-normal, their words as unequal as those of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_gen.records import Record, Turn
from data_gen.shards import write_dataset
from wizard_jax.tokenizer import Tokenizer, train_tokenizer


def made_up(folder: Path, *, count: int) -> tuple[Path, Tokenizer]:
    """A data set of so many conversations in `folder`, and a tokenizer of 8,000 pieces at most beside it."""
    draw = np.random.default_rng(0)
    syllables = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "nrst"]
    words = ["".join(syllables[at] for at in draw.integers(0, len(syllables), 2)) for _ in range(5_000)]
    tokenizer = train_tokenizer([" ".join(words)] * 2, folder / "tokenizer.model", vocab_size=8_000)
    sizes = np.clip(draw.lognormal(mean=5.2, sigma=0.8, size=count), 4, 1_000).astype(int)

    def record(number: int) -> Record:
        # Words of natural text are as unequal as 1 / rank.
        text = [words[rank % len(words)] for rank in draw.zipf(1.3, sizes[number]).tolist()]
        half = len(text) // 2
        turns = (Turn("user", " ".join(text[:half])), Turn("assistant", " ".join(text[half:])))
        return Record(id=f"{number}/0", lineage=str(number), turns=turns)

    dataset = folder / "data"
    write_dataset(
        map(record, range(count)),
        dataset,
        name="made_up",
        count=count,
        records_per_shard=count,
        description="for a benchmark",
    )
    return dataset, tokenizer

"""How full packed rows are, and how fast they are planned.

    python benchmarks/packing.py seed_tasks.jsonl evolved

Lengths are those of real conversations, from instruction files (any that `wizard evolve` reads) and data sets (folders
of `wizard evolve`), in the chat format vicuna and tokenised with a tokenizer trained on them; and 22,000, 200,000 and
1,000,000 log-normal ones with a mean of 568 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_gen.config import SeedFile
from data_gen.shards import read_dataset
from data_gen.sources import load_seeds
from wizard_jax.chat import encode_conversation, get_format, segments
from wizard_jax.data.planning import plan_packing
from wizard_jax.progress import show_table
from wizard_jax.tokenizer import train_tokenizer

VOCAB = 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*", help="instruction files and data sets")
    rows = [measured(*case) for case in cases(parser.parse_args().sources)]
    show_table(("lengths", "conversations", "mean", "L", "rows", "filled", "at best", "conversations/s"), rows)


def cases(sources: Sequence[Path]) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, lengths, L)"""
    for source in sources:
        lengths = lengths_of(source)
        for seq_len in (512, 2048):
            yield source.name, lengths[lengths <= seq_len], seq_len
    for count in (22_000, 200_000, 1_000_000):
        draws = np.random.default_rng(0).lognormal(mean=6.06, sigma=0.8, size=count)
        yield "log-normal", np.clip(draws.round(), 2, 2048).astype(np.int64), 2048


def lengths_of(source: Path) -> np.ndarray:
    """Tokens of each conversation that has an answer."""
    read = read_dataset(source) if source.is_dir() else load_seeds(SeedFile(path=str(source)))
    records = [record for record in read if record.answer]
    chat_format = get_format("vicuna")
    texts = (text for record in records for text in segments(record.turns, chat_format=chat_format))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, Path(folder) / "tokenizer.model", vocab_size=VOCAB)
    encoded = (encode_conversation(r.turns, chat_format=chat_format, tokenizer=tokenizer) for r in records)
    return np.array([len(tokens) for tokens, _ in encoded])


def measured(name: str, lengths: np.ndarray, seq_len: int) -> tuple[str, ...]:
    """A row of the table; `at best` is what no plan can exceed, as the last row is seldom full."""
    began = time.perf_counter()
    plan = plan_packing(lengths, seq_len=seq_len, seed=0)
    seconds = time.perf_counter() - began
    tokens = int(lengths.sum())
    least = -(-tokens // seq_len)
    return (
        name,
        f"{len(lengths):,}",
        f"{lengths.mean():.0f}",
        f"{seq_len:,}",
        f"{plan.rows:,}",
        f"{tokens / (plan.rows * seq_len):.4f}",
        f"{tokens / (least * seq_len):.4f}",
        f"{len(lengths) / seconds:,.0f}",
    )


if __name__ == "__main__":
    main()

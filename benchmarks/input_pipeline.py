"""Packed rows a second, as the training loop gets them, against what a step eats.

    python benchmarks/input_pipeline.py --chips 4 --tokens-per-second 7000

Conversations of made-up words, their lengths log-normal, are packed into rows of 2048 tokens by `pack` and read back
in the order of training: file, checks, decompression, batch, and placing the batch on a device. What a step eats is
`--chips` (of one host) times `--tokens-per-second` (of one chip).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import jax
from conversations import made_up

from wizard_jax.data.config import DataConfig
from wizard_jax.data.packing import PackedFolder, pack
from wizard_jax.data.pipeline import Batch, batches
from wizard_jax.data.steps import StepRows
from wizard_jax.progress import say, show_table

SEQ_LEN = 2048
CONVERSATIONS = 6_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", type=int, default=4, help="of one host")
    parser.add_argument("--tokens-per-second", type=float, default=7000.0, help="that a step eats, of one chip")
    parser.add_argument("--batch-rows", type=int, default=64, help="of one host")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    arguments = parser.parse_args()
    eaten = arguments.chips * arguments.tokens_per_second
    with tempfile.TemporaryDirectory() as place:
        packed = packed_rows(Path(place))
        say(f"{packed.rows:,} rows, {packed.stats.efficiency:.2%} filled; a step eats {eaten / SEQ_LEN:,.1f} rows/s")
        table = [
            row_of(name, rate, eaten=eaten)
            for name, rate in rates(packed, batch_rows=arguments.batch_rows, seconds=arguments.seconds)
        ]
    show_table(("reading", "rows/s", "tokens/s", "times what a step eats"), table)


def rates(packed: PackedFolder, *, batch_rows: int, seconds: float) -> Iterator[tuple[str, float]]:
    """(what, rows a second)"""
    rows = StepRows(Fraction(batch_rows), batch_rows)

    def place(batch: Batch) -> None:
        jax.block_until_ready(jax.device_put(batch._asdict()))

    for threads in (1, 2, 4):
        read = batches(packed, rows=rows, seed=0, threads=threads)
        yield f"{threads} threads", batch_rows * per_second(read, lambda _: None, seconds=seconds)
    read = batches(packed, rows=rows, seed=0)
    yield "as training does, on a device", batch_rows * per_second(read, place, seconds=seconds)


def per_second(read: Iterator[Batch], use: Callable[[Batch], None], *, seconds: float) -> float:
    for batch in itertools.islice(read, 8):  # more than are read ahead
        use(batch)
    began = time.perf_counter()
    for count in itertools.count(1):
        use(next(read))
        if (passed := time.perf_counter() - began) >= seconds:
            return count / passed
    raise AssertionError


def row_of(name: str, rate: float, *, eaten: float) -> tuple[str, ...]:
    return name, f"{rate:,.0f}", f"{rate * SEQ_LEN:,.0f}", f"{rate * SEQ_LEN / eaten:,.0f}"


def packed_rows(folder: Path) -> PackedFolder:
    dataset, tokenizer = made_up(folder, count=CONVERSATIONS)
    config = DataConfig(dataset=str(dataset), chat_format="vicuna", seq_len=SEQ_LEN, truncation="drop")
    return pack(config, tokenizer, cache_dir=folder / "packed")


if __name__ == "__main__":
    main()

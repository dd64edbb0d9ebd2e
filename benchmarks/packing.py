"""How full packed rows are, how fast they are planned and made, and what memory that takes.

    python benchmarks/packing.py seed_tasks.jsonl evolved
    python benchmarks/packing.py --plan 10000000
    python benchmarks/packing.py --pack 100000 400000

The first takes lengths of real conversations, from instruction files (any that `wizard evolve` reads) and data sets
(folders of `wizard evolve`), in the chat format vicuna and tokenised with a tokenizer trained on them; and 22,000,
200,000 and 1,000,000 log-normal ones with a mean of 568 tokens. `--plan` plans for log-normal lengths alone, and
`--pack` makes data sets of so many short records and packs them, tokens and all; each size in a process of its own,
whose peak memory is that of the process and of the largest one that it started.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_gen.config import SeedFile
from data_gen.records import Record, Turn
from data_gen.shards import read_dataset, write_dataset
from data_gen.sources import load_seeds
from wizard_jax.chat import encode_conversation, get_format, segments
from wizard_jax.data.config import DataConfig
from wizard_jax.data.packing import pack
from wizard_jax.data.planning import plan_packing
from wizard_jax.progress import say, show_table
from wizard_jax.tokenizer import train_tokenizer

VOCAB = 8000
WORDS = "sort reverse filter count join the list of plum fig olive mint jam honey bread words numbers then and".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*", help="instruction files and data sets")
    parser.add_argument("--plan", type=int, nargs="+", metavar="N", help="lengths to plan for")
    parser.add_argument("--pack", type=int, nargs="+", metavar="N", help="records to make and pack")
    arguments = parser.parse_args()
    if arguments.plan:
        rows = [in_a_process(planned, count) for count in arguments.plan]
        show_table(("lengths", "rows", "filled", "seconds", "lengths/min", "peak MB", "of that, lengths"), rows)
    elif arguments.pack:
        rows = [in_a_process(packed, count) for count in arguments.pack]
        show_table(
            ("records", "tokens", "rows", "filled", "tokenize s", "plan and write s", "peak MB", "largest other"), rows
        )
    else:
        rows = [measured(*case) for case in cases(arguments.sources)]
        show_table(("lengths", "conversations", "mean", "L", "rows", "filled", "at best", "conversations/s"), rows)


def in_a_process(function: Callable[[int], tuple[str, ...]], count: int) -> tuple[str, ...]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, count, send))
    process.start()
    send.close()
    answer: tuple[str, ...] = receive.recv()
    process.join()
    return answer


def _answer(
    function: Callable[[int], tuple[str, ...]], count: int, send: multiprocessing.connection.Connection
) -> None:
    send.send(function(count))


def cases(sources: Sequence[Path]) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, lengths, L)"""
    for source in sources:
        lengths = lengths_of(source)
        for seq_len in (512, 2048):
            yield source.name, lengths[lengths <= seq_len], seq_len
    for count in (22_000, 200_000, 1_000_000):
        yield "log-normal", log_normal(count), 2048


def log_normal(count: int) -> np.ndarray:
    draws = np.random.default_rng(0).lognormal(mean=6.06, sigma=0.8, size=count)
    return np.clip(draws.round(), 2, 2048).astype(np.uint32)


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
    tokens = int(lengths.sum(dtype=np.int64))
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


def planned(count: int) -> tuple[str, ...]:
    lengths = log_normal(count)
    before = peak_megabytes(resource.RUSAGE_SELF)
    began = time.perf_counter()
    plan = plan_packing(lengths, seq_len=2048, seed=0)
    seconds = time.perf_counter() - began
    return (
        f"{count:,}",
        f"{plan.rows:,}",
        f"{lengths.sum(dtype=np.int64) / (plan.rows * 2048):.5f}",
        f"{seconds:.1f}",
        f"{60 * count / seconds:,.0f}",
        f"{peak_megabytes(resource.RUSAGE_SELF):,.0f}",
        f"{before:,.0f}",
    )


def short_records(count: int) -> Iterator[Record]:
    """Conversations of 6 to 40 words, two rounds of each lineage."""
    draw = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        words = draw.integers(0, len(WORDS), (10_000, 40))
        sizes = draw.integers(3, 21, (10_000, 2))
        for offset in range(min(10_000, count - start)):
            number = start + offset
            asked, said = sizes[offset].tolist()
            text = [WORDS[word] for word in words[offset].tolist()]
            turns = (Turn("user", " ".join(text[:asked])), Turn("assistant", " ".join(text[20 : 20 + said])))
            lineage = f"{number // 2:08d}"
            yield Record(id=f"{lineage}/{number % 2}", lineage=lineage, turns=turns, round=number % 2, source="made up")


def packed(count: int) -> tuple[str, ...]:
    ended_at: dict[str, float] = {}

    def watch(_done: int, _total: int, facts: Mapping[str, int | str | float]) -> None:
        ended_at[str(facts["doing"])] = time.perf_counter()

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = train_tokenizer([" ".join(WORDS)], folder / "tokenizer.model", vocab_size=400)
        write_dataset(
            short_records(count),
            folder / "data",
            name="made_up",
            count=count,
            records_per_shard=50_000,
            description="for a benchmark",
        )
        say(f"{count:,} records are written")
        config = DataConfig(dataset=str(folder / "data"), chat_format="wizardlm_7b", seq_len=512)
        began = time.perf_counter()
        made = pack(config, tokenizer, cache_dir=folder / "packed", progress=watch)
        ended = time.perf_counter()
    return (
        f"{count:,}",
        f"{made.stats.tokens:,}",
        f"{made.rows:,}",
        f"{made.stats.efficiency:.4f}",
        f"{ended_at['tokenize'] - began:.1f}",
        f"{ended - ended_at['tokenize']:.1f}",
        f"{peak_megabytes(resource.RUSAGE_SELF):,.0f}",
        f"{peak_megabytes(resource.RUSAGE_CHILDREN):,.0f}",
    )


def peak_megabytes(who: int) -> float:
    """The largest resident set of this process, or of the largest one that it has waited for (Linux: in KiB)."""
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    main()

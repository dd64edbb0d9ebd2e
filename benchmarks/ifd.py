"""IFD of 10,000 records against a plain `transformers` loop: the same LLaMA, weights, ids, threads and float32.

    python benchmarks/ifd.py --rounds 3 --size 25M --sample 96

Every side scores the same three sequences of a record (the answer after its instruction, the answer alone, the
instruction), from ids that are there already. The loops do what published code does: one record after another, or 16
as they come, padded to the longest. Every side is a process of its own, and they take turns; one round is `--sample`
records drawn from the 10,000 by a seed, and "10,000 records" is what that rate comes to. Ratios are taken within a
round; the table has their median. Seconds of processor time are beside them: on a machine that others use, with
`--threads 1`, they say more. What the sides find is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from train_step import SIZES, Size, answer, ask

from wizard_jax.progress import show_table

SIZES = {"tiny": Size(2_000, 128, 4, 4, 352), **SIZES}
SIDES = ("transformers, 1 at a time", "transformers, 16 padded", "ours")
RECORDS = 10_000
LENGTH = 1024
PREFIX = 6  # tokens before an answer that stands alone: BOS and "### Response:"

Measure = Callable[[], np.ndarray]
"""The losses of the records: [records, 3]."""


class Ids(NamedTuple):
    """A record's, and from where on they are scored."""

    whole: np.ndarray
    alone: np.ndarray
    instruction: np.ndarray
    answer: int
    """Its number of tokens."""

    @property
    def sequences(self) -> tuple[tuple[np.ndarray, int], ...]:
        return (
            (self.whole, len(self.whole) - self.answer),
            (self.alone, len(self.alone) - self.answer),
            (self.instruction, 1),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="25M")
    parser.add_argument("--sample", type=int, default=96, help="records of a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def drawn(vocab: int, *, sample: int) -> list[Ids]:
    """Records with lengths like those of evolved ones: log-normal, 60 tokens asked and 160 answered at the median."""
    random = np.random.default_rng(0)
    records = []
    for _ in range(RECORDS):
        asked, said = (int(n) for n in np.clip(random.lognormal(np.log([60, 160]), [0.6, 0.7]), 8, [300, 700]))
        question, reply = (random.integers(3, vocab, n).astype(np.int32) for n in (asked, said))
        prefix = np.arange(1, PREFIX + 1, dtype=np.int32)
        whole, alone = np.concatenate([[1], question, prefix[1:], reply]), np.concatenate([prefix, reply])
        instruction = np.concatenate([[1], question])
        records.append(Ids(whole.astype(np.int32), alone.astype(np.int32), instruction.astype(np.int32), said))
    return [records[n] for n in random.choice(RECORDS, sample, replace=False)]


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Starts a worker for each side, lets them take turns, and prints the table."""
    told = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--side"]
    workers = {}
    for side in SIDES:  # one after the other: the first writes the weights that the others read
        workers[side] = subprocess.Popen([*told, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer(workers[side])
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    busy: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, np.ndarray] = {}
    for number in range(arguments.rounds):
        turn = number % len(SIDES)
        for side in SIDES[turn:] + SIDES[:turn]:
            told_back = json.loads(ask(workers[side], "measure"))
            seconds[side].append(told_back["seconds"])
            busy[side].append(told_back["cpu_seconds"])
            found[side] = np.array(told_back["losses"])
    for worker in workers.values():
        worker.communicate()
    rows = []
    for side in SIDES:
        rates = [arguments.sample / took for took in seconds[side]]
        ratios = [
            tuple(first / own for first, own in zip(seconds[other], seconds[side], strict=True)) for other in SIDES[:2]
        ]
        spreads = [f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})" for ratio in ratios]
        rate = statistics.median(rates)
        apart = np.abs(found[side][:, 0] / found[side][:, 1] - found[SIDES[0]][:, 0] / found[SIDES[0]][:, 1]).max()
        cpu = statistics.median(busy[side]) / arguments.sample
        rows.append((side, f"{rate:,.2f}", f"{cpu:.3f}", f"{RECORDS / rate / 60:,.0f} min", *spreads, f"{apart:.1e}"))
    tokens = sum(len(ids) for one in drawn(SIZES[arguments.size].vocab, sample=arguments.sample) for ids in one[:3])
    how = f"{arguments.threads} threads, float32, {arguments.rounds} rounds"
    print(f"{arguments.size}, {arguments.sample} of {RECORDS:,} records a round, {tokens:,} tokens, {how}")
    heads = (
        "records/s",
        "CPU s/record",
        f"{RECORDS:,} records",
        "speed, 1 at a time = 1",
        "speed, 16 padded = 1",
        "IFD apart by",
    )
    show_table(("side", *heads), rows)


def work(arguments: argparse.Namespace) -> None:
    """A worker: builds its side, then measures when it is told to, with its time."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    size = SIZES[arguments.size]
    records = drawn(size.vocab, sample=arguments.sample)
    if arguments.side == SIDES[2]:
        measure = our_side(records, arguments=arguments)
    else:
        at_once = 1 if arguments.side == SIDES[0] else 16
        measure = transformers_side(records, size=size, at_once=at_once, arguments=arguments)
    measure()
    print("ready", flush=True)
    for _ in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        losses = measure()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
        print(json.dumps({**took, "losses": losses.tolist()}), flush=True)


def transformers_side(records: list[Ids], *, size: Size, at_once: int, arguments: argparse.Namespace) -> Measure:
    warnings.simplefilter("ignore")
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(arguments.threads)
    if arguments.side == SIDES[0]:
        torch.manual_seed(0)
        LlamaForCausalLM(size.of_transformers(max_position_embeddings=LENGTH)).save_pretrained(arguments.folder)
    loaded: Any = LlamaForCausalLM
    model = loaded.from_pretrained(arguments.folder, dtype=torch.float32).eval()

    def one(ids: np.ndarray, first: int) -> float:
        tokens = torch.tensor(ids, dtype=torch.long)[None]
        labels = tokens.clone()
        labels[:, :first] = -100
        return float(model(input_ids=tokens, labels=labels, use_cache=False).loss)

    def padded(sequences: list[tuple[np.ndarray, int]]) -> list[float]:
        longest = max(len(ids) for ids, _ in sequences)
        tokens = torch.zeros((len(sequences), longest), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        labels = torch.full_like(tokens, -100)
        for row, (ids, first) in enumerate(sequences):
            held = torch.tensor(ids, dtype=torch.long)
            tokens[row, : len(ids)], mask[row, : len(ids)] = held, 1
            labels[row, first : len(ids)] = held[first:]
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        ).view(len(sequences), -1)
        found: list[float] = (losses.sum(1) / (labels[:, 1:] != -100).sum(1)).tolist()
        return found

    def measure() -> np.ndarray:
        with torch.inference_mode():
            if at_once == 1:
                return np.array([[one(ids, first) for ids, first in record.sequences] for record in records])
            found = []
            for start in range(0, len(records), at_once):
                together = [record.sequences for record in records[start : start + at_once]]
                found.append(np.transpose([padded([record[n] for record in together]) for n in range(3)]))
            return np.concatenate(found)

    return measure


def our_side(records: list[Ids], *, arguments: argparse.Namespace) -> Measure:
    from wizard_jax.convert.importing import load_hf_params, read_model_config
    from wizard_jax.evaluate.difficulty.ifd import mean_losses
    from wizard_jax.evaluate.difficulty.sequences import Scored

    config = read_model_config(arguments.folder)
    params = load_hf_params(arguments.folder, config)
    sequences = [Scored(ids, first) for record in records for ids, first in record.sequences]

    def measure() -> np.ndarray:
        return mean_losses(sequences, params=params, config=config, length=LENGTH).reshape(-1, 3)

    return measure


if __name__ == "__main__":
    main()

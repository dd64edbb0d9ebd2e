"""From `wizard train` to its first step on a model of 25M parameters, and what that time is made of.

    python benchmarks/first_step.py --rounds 3

The command is run as a user runs it, in a process of its own, on made-up conversations; what it writes into its folder
shows from outside how far it is. "Cold" packs the data and compiles; "warm" finds both done (`pack_cache`,
`compilation_cache`). Medians of rounds, which take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conversations import made_up

from wizard_jax.progress import say, show_table

WIZARD = [sys.executable, "-m", "wizard_jax"]
CONVERSATIONS = 2_000
MODEL = "vocab_size=8000 d_model=512 n_layers=6 n_heads=8 n_kv_heads=8 head_dim=64 d_ff=1280 max_positions=512".split()
SETTINGS = [
    *(f"model.{one}" for one in MODEL),
    *"data.seq_len=512 data.chat_format='vicuna' data.truncation='truncate' data.max_lost_share=1.0".split(),
    *"batch=@RowsPerStep batch.rows=2 steps=2 init=@RandomInit".split(),
    *"optimizer=@AdamW optimizer.peak_lr=1e-4 optimizer.warmup_steps=1".split(),
]
PARTS = (
    ("identity.json", "Python, imports, settings, devices"),
    ("input.json", "packing, or finding it packed"),
    ("starts.jsonl", "random weights: tracing, compiling, making them"),
    ("metrics.jsonl", "the step: tracing, compiling, running it"),
)
"""A file of the run folder, and what was done when it is there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = arguments_of(folder)
        first_step(folder / "before", asked, caches=folder / "warm")
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            found["cold"].append(first_step(folder / f"cold {turn}", asked, caches=folder / f"caches {turn}"))
            found["warm"].append(first_step(folder / f"warm {turn}", asked, caches=folder / "warm"))
    table = [
        (part, *(f"{statistics.median(one[part] for one in found[how]):.1f}" for how in found))
        for part in found["cold"][0]
    ]
    show_table(("seconds (median)", *found), table)


def arguments_of(folder: Path) -> list[str]:
    """Of the command, but for where it writes."""
    dataset, _ = made_up(folder, count=CONVERSATIONS)
    config = folder / "25m.gin"
    config.write_text("".join(f"{one.replace('=', ' = ', 1)}\n" for one in SETTINGS))
    return [str(config), f"data.dataset={dataset}", f"tokenizer={folder / 'tokenizer.model'}"]


def first_step(out: Path, asked: list[str], *, caches: Path) -> dict[str, float]:
    """Part -> seconds, of a run in `out`; the last is all of them together."""
    command = [*WIZARD, "train", *asked, "--out", str(out)]
    kept = [f"pack_cache={caches / 'packed'}", f"compilation_cache={caches / 'programs'}"]
    times = [time.perf_counter()]
    child = subprocess.Popen(
        [*command, *kept, "log_every=1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for name, _ in PARTS:
            while not ((file := out / name).exists() and file.stat().st_size):
                if child.poll() not in (None, 0):
                    raise SystemExit(f"wizard train ended with {child.returncode}: {child.communicate()[1]}")
                time.sleep(0.01)
            times.append(time.perf_counter())
    finally:
        child.wait()
    seconds = [after - before for before, after in itertools.pairwise(times)]
    figures = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["timing"]
    return {
        **dict(zip((part for _, part in PARTS), seconds, strict=True)),
        "  of it tracing and compiling": figures["compile_seconds"],
        "together": sum(seconds),
    }


if __name__ == "__main__":
    main()

"""How long `wizard --help` takes beside an empty Python, and which heavy modules it imports: there should be none.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wizard_jax.progress import show_table

HEAVY = (
    "jax flax optax orbax grain numpy tensorflow tensorflow_datasets torch google openai matplotlib pydantic".split()
)
ROUNDS = 10

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "wizard --help": [str(Path(sys.executable).with_name("wizard")), "--help"],
    "wizard config paths train": [str(Path(sys.executable).with_name("wizard")), "config", "paths", "train"],
}
"""The last one is not quick by promise; it shows what reading settings costs."""


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            seconds[name].append(timed(command))
    bare = statistics.median(seconds["python -c pass"])
    rows = []
    for name, command in COMMANDS.items():
        median = statistics.median(seconds[name])
        rows.append((name, f"{median:.3f}", f"{min(seconds[name]):.3f}", f"{median / bare:.1f}", imported(command)))
    show_table(("command", f"s, median of {ROUNDS}", "fastest", "to empty Python", "heavy imports"), rows)


def timed(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def imported(command: Sequence[str]) -> str:
    """The heavy modules that the command imports, by Python's own list of imports."""
    python = command if command[0] == sys.executable else [sys.executable, *command]
    traced = [sys.executable, "-X", "importtime", *python[1:]]
    done = subprocess.run(traced, check=True, capture_output=True, text=True)
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    roots = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    return ", ".join(name for name in HEAVY if name in roots) or "none"


if __name__ == "__main__":
    main()

"""How much memory `wizard evolve` needs at its peak, as the number of seeds doubles and doubles again.

    python benchmarks/evolve_memory.py             # 1,000, 2,000 and 4,000 seeds, about 2 minutes
    python benchmarks/evolve_memory.py --full      # 13,000, 26,000 and 52,000 seeds, about half an hour

Each run is a process of its own: seeds of the simulated world, four rounds, the simulated model in that process.
Peak memory is the largest resident set that the kernel saw of it; the row of one seed shows what Python and the
imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from wizard_jax.progress import show_table

CONFIG = """
seeds = @SimulatedSeeds
llm = @Simulated
rounds = 4
concurrency = 512
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--full", action="store_const", const=[13_000, 26_000, 52_000], dest="seeds")
    parser.add_argument("settings", nargs="*", metavar="path=value", help="for every run")
    arguments = parser.parse_args()
    rows = []
    least = 0.0
    for count in (1, *arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seconds, mebibytes, records = measured(Path(folder), count, arguments.settings)
        least = least or mebibytes
        rate = f"{records / seconds:,.0f}"
        rows.append(
            (f"{count:,}", f"{records:,}", f"{seconds:.0f}", rate, f"{mebibytes:,.0f}", f"{mebibytes - least:,.0f}")
        )
    show_table(("seeds", "records", "seconds", "records/s", "peak MiB", "beyond one seed"), rows)


def measured(folder: Path, count: int, settings: Sequence[str]) -> tuple[float, float, int]:
    """(seconds, peak MiB, records) of a whole `wizard evolve`."""
    config, out = folder / "memory.gin", folder / "evolved"
    config.write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "wizard_jax", "evolve", str(config), "--out", str(out)]
    began = time.perf_counter()
    run = subprocess.Popen([*command, f"seeds.count={count}", *settings], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit(f"wizard evolve ended with {run.returncode}")
    summary = json.loads((out / "complete.json").read_text(encoding="utf-8"))["summary"]
    return time.perf_counter() - began, usage.ru_maxrss / 1024, summary["records"]


if __name__ == "__main__":
    main()

"""The figures of every step: one line of `metrics.jsonl` each, and TensorBoard's curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
TIMING = "timing"


class MetricsLog:
    """Appends to a run's metrics from `step` on: lines of later steps, of a run that was cut off, are removed.

    A line holds `step`, what was measured, and apart from it `timing`: everything but `timing` is the same
    however often the run was interrupted.
    """

    def __init__(self, folder: str | os.PathLike[str], *, step: int) -> None:
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        rewritten = path.with_suffix(".jsonl.new")
        with open(rewritten, "w") as file:
            file.writelines(_encoded(line) for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(rewritten, path)
        self._file = open(path, "a")  # noqa: SIM115  # held open until close
        self._curves = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=step + 1, write_to_disk=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._curves.close()

    def write(self, step: int, *, measured: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        """One step; `flush` makes it visible to readers."""
        self._file.write(_encoded({"step": step, **measured, TIMING: dict(timing)}))
        for name, value in (*measured.items(), *((f"{TIMING}/{n}", v) for n, v in timing.items())):
            self._curves.add_scalar(name, value, global_step=step)

    def flush(self) -> None:
        self._file.flush()
        self._curves.flush()


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every whole line of a run's `metrics.jsonl`, in order of steps; a line cut off by a kill is left out."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"

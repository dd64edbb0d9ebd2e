"""The figures of every step: from the devices to one line of `metrics.jsonl` each, and to TensorBoard's curves."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from configs.errors import UserError
from wizard_jax.progress import Progress
from wizard_jax.train.step import StepMetrics

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
TIMING = "timing"


_log = logging.getLogger(__name__)


class DivergedError(UserError):
    """The loss or its gradient is not a number any more."""


class MetricsLog:
    """Appends to a run's metrics from `step` on: lines of later steps, of a run that was cut off, are removed.

    A line holds `step`, what was measured, and apart from it `timing`: everything but `timing` is the same
    however often the run was interrupted.
    """

    def __init__(self, folder: str | os.PathLike[str], *, step: int) -> None:
        from tensorboardX import SummaryWriter  # imports torch where there is one: a second or more, for training alone

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
        self._curves = SummaryWriter(str(path.parent / TENSORBOARD), purge_step=step + 1)

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


class _Pending(NamedTuple):
    step: int
    metrics: StepMetrics


class Recorder:
    """Brings the figures of steps from the devices to the log, some steps late, so that the devices never wait."""

    def __init__(self, folder: Path, *, step: int, total: int, progress: Progress) -> None:
        self._log = MetricsLog(folder, step=step)
        self._pending: list[_Pending] = []
        self._total, self._progress = total, progress
        self._since = time.perf_counter()
        self.is_first = True
        progress(step, total, {})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()

    def add(self, step: int, metrics: StepMetrics) -> None:
        self._pending.append(_Pending(step, metrics))

    def record(self, *, lag: int) -> None:
        """Log every step but the newest `lag`. The first of a process is logged alone: it holds the compilation."""
        ready, self._pending = self._pending[: len(self._pending) - lag], self._pending[len(self._pending) - lag :]
        if not ready:
            return
        figures = jax.device_get([metrics for _, metrics in ready])
        now = time.perf_counter()
        seconds, self._since = (now - self._since) / len(ready), now
        for (step, _), found in zip(ready, figures, strict=True):
            measured = {
                "loss": float(found.loss),
                "grad_norm": float(found.grad_norm),
                "learning_rate": float(found.learning_rate),
                "trained_tokens": float(found.weight),
                "tokens": int(found.tokens),
            }
            if not math.isfinite(measured["loss"] + measured["grad_norm"]):
                self._log.flush()
                raise DivergedError(
                    f"the loss of step {step} is {measured['loss']} and the norm of its gradient "
                    f"{measured['grad_norm']}: lower optimizer.peak_lr or clip_norm, or warm up for longer, "
                    "in another --out"
                )
            timing = {"seconds": seconds, "tokens_per_second": measured["tokens"] / seconds}
            self._log.write(step, measured=measured, timing=timing)
        self._log.flush()
        self.is_first = False
        self._progress(step, self._total, {"loss": measured["loss"], "tokens/s": timing["tokens_per_second"]})


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every whole line of a run's `metrics.jsonl`, in order of steps.

    Without the last one if a kill cut it off, and, with a warning, without damaged ones before it.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    *texts, _cut_off = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
        else:
            _log.warning("%s: line %d is damaged, and is left out of every figure of the run", path, number)
    return lines


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"

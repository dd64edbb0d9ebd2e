"""The figures of every step: from the devices to one line of `metrics.jsonl` each, and to the trackers' curves.

    {"step": 7, "loss": ..., ..., "timing": {...}, "memory": {...}}      an update
    {"step": 8, "held_out": {...}, "timing": {...}}                      the held-out loss after 8 updates

What stands before `timing` is the same however often the run was interrupted; `timing` and `memory` are not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

import jax

from configs.errors import UserError
from wizard_jax.progress import Progress
from wizard_jax.train.step import StepMetrics
from wizard_jax.train.watching.tensorboard import TensorBoard
from wizard_jax.train.watching.timing import CompileClock, Waiting, device_memory
from wizard_jax.train.watching.trackers import Tracker, flat
from wizard_jax.train.watching.utilisation import Utilisation

P = ParamSpec("P")
T = TypeVar("T")
Facts = dict[str, int | str | float]

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
TIMING = "timing"
MEMORY = "memory"
HELD_OUT = "held_out"
UTILISATION = "model_flops_utilisation"

_GIB = 2**30

_log = logging.getLogger(__name__)


class DivergedError(UserError):
    """The guard has stopped the run: a loss or a gradient is no number, or the loss has leapt."""


class MetricsLog:
    """Appends to a run's metrics from `step` on: lines of later steps, of a run that was cut off, are removed.

    TensorBoard's curves and those of `trackers` get the same figures.
    """

    def __init__(self, folder: str | os.PathLike[str], *, step: int, trackers: Sequence[Tracker] = ()) -> None:
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        # The line of step 0, which no checkpoint is older than, is written again at every start from the beginning.
        kept = [line for line in _read_lines(path) if step > 0 and line["step"] <= step]
        rewritten = path.with_suffix(".jsonl.new")
        with open(rewritten, "w") as file:
            file.writelines(_encoded(line) for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(rewritten, path)
        self._file = open(path, "a")  # noqa: SIM115  # held open until close
        self._curves = TensorBoard(path.parent / TENSORBOARD, from_step=step + 1 if step else 0)
        self._trackers = (self._curves, *trackers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._curves.close(finished=True)

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """One line; `flush` makes it visible to readers."""
        self._file.write(_encoded({"step": step, **line}))
        figures = flat(line)
        for tracker in self._trackers:
            tracker.write(step, figures)

    def flush(self) -> None:
        self._file.flush()
        for tracker in self._trackers:
            tracker.flush()


class _Pending(NamedTuple):
    step: int
    metrics: StepMetrics
    data_wait: float


class Recorder:
    """Brings the figures of steps from the devices to the log, some steps late, so that the devices never wait.

    Of several processes the first one writes; the others only look for divergence.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        total: int,
        progress: Progress,
        utilisation: Utilisation | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._log = MetricsLog(folder, step=step, trackers=trackers) if jax.process_index() == 0 else None
        self._pending: list[_Pending] = []
        self._total, self._progress, self._utilisation = total, progress, utilisation
        self._data: Waiting[Any] | None = None
        self._compiling = CompileClock()
        self._shown: Facts = {}
        self._held_out: str | float | None = None
        self._held_out_at: tuple[int, float | None] = (-1, None)
        self._since = time.perf_counter()
        self.is_first = True
        self._saved: tuple[int, float] | None = None
        self._tell(step, doing="compile the step" if step < total else None)

    def __enter__(self) -> Self:
        self._compiling.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._compiling.__exit__(*error)
        if self._log is not None:
            self._log.close()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; how long the loop waits for each goes to the log with its step."""
        self._data = waiting = Waiting(batches)
        return waiting

    def add(self, step: int, metrics: StepMetrics) -> None:
        self._pending.append(_Pending(step, metrics, self._data.seconds if self._data else 0.0))

    def forget_after(self, step: int) -> None:
        """Later steps have changed nothing, and are not logged."""
        self._pending = [pending for pending in self._pending if pending.step <= step]

    def held_out_loss(self, step: int) -> float | None:
        """What was measured after so many updates, if that was the last measurement, and is a number."""
        measured_at, loss = self._held_out_at
        return loss if measured_at == step else None

    def record(self, *, lag: int) -> None:
        """Log every step but the newest `lag`. The first of a process is logged alone: it holds the compilation."""
        ready, self._pending = self._pending[: len(self._pending) - lag], self._pending[len(self._pending) - lag :]
        if not ready:
            return
        figures = jax.device_get([pending.metrics for pending in ready])
        now = time.perf_counter()
        compiling = min(self._compiling.take(), now - self._since)
        seconds, self._since = (now - self._since - compiling) / len(ready), now
        memory = device_memory()
        for pending, found in zip(ready, figures, strict=True):
            measured = _measured(found)
            self._check(pending.step, found)
            timing = {
                "seconds": seconds,
                "tokens_per_second": measured["tokens"] / seconds,
                "trained_tokens_per_second": measured["trained_tokens"] / seconds,
                "data_wait_seconds": pending.data_wait,
            }
            if self._utilisation is not None:
                timing[UTILISATION] = self._utilisation.of(timing["tokens_per_second"])
            if compiling and pending is ready[0]:
                timing["compile_seconds"] = compiling
            self._write(pending.step, {**measured, TIMING: timing, **({MEMORY: memory} if memory else {})})
        self._flush()
        self.is_first = False
        wait = sum(pending.data_wait for pending in ready) / len(ready)
        self._shown = _shown(measured, timing=timing, memory=memory, wait=wait)
        self._tell(pending.step)

    def held_out(self, step: int, measure: Callable[P, Mapping[str, Any]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Log what `measure(...)` finds after `step` updates; the time that it takes is in no step's seconds."""
        self.record(lag=0)
        self._tell(step, doing="measure the held-out loss")
        began = time.perf_counter()
        found = measure(*args, **kwargs)
        compiling = self._compiling.take()
        self._since = time.perf_counter()
        timing = {"seconds": self._since - began - compiling}
        if compiling:
            timing["compile_seconds"] = compiling
        self._held_out, self._held_out_at = _text(found["loss"]), (step, found["loss"])
        self._write(step, {HELD_OUT: dict(found), TIMING: timing})
        self._flush()
        self._tell(step, doing="compile the step" if self.is_first and step < self._total else None)

    def _check(self, step: int, found: StepMetrics) -> None:
        """Say what the guard has refused; raises DivergedError, with what was before it in the log, where it stops."""
        if not found.skipped:
            return
        loss, norm, bound = map(float, (found.loss, found.grad_norm, found.loss_bound))
        figures = f"the loss of step {step} is {loss:g} and the norm of its gradient {norm:g}"
        if loss > bound:
            figures += f", and losses up to {bound:g} were to be expected"
        if not found.stopped:
            _log.warning("%s: its batch is left out", figures)
            return
        self._flush()
        raise DivergedError(
            f"{figures}: it has changed no weight, and the checkpoints before it are kept. Start again with "
            "guard=@Skip to leave such batches out, or with a higher guard.in_a_row or guard.spike.deviations; or "
            "lower optimizer.peak_lr or clip_norm, or warm up for longer, in another --out"
        )

    def saved(self, step: int) -> None:
        """A checkpoint of `step` is being written: its age is shown."""
        self._saved = step, time.monotonic()

    def _tell(self, step: int, *, doing: str | None = None) -> None:
        """Show what is known while the run goes on."""
        facts = dict(self._shown)
        if self._held_out is not None:
            facts["held-out loss"] = self._held_out
        if self._saved is not None:
            number, at = self._saved
            facts["checkpoint"] = f"{number:,}, {timedelta(seconds=round(time.monotonic() - at))} ago"
        if doing is not None:
            facts["doing"] = doing
        self._progress(step, self._total, facts)

    def _write(self, step: int, line: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(step, line)

    def _flush(self) -> None:
        if self._log is not None:
            self._log.flush()


def _measured(found: StepMetrics) -> dict[str, Any]:
    """None for what is not finite: JSON has no word for it, and no curve a place."""
    z_loss = float(found.z_loss)
    figures = {
        "loss": float(found.loss),
        **({"z_loss": z_loss} if z_loss else {}),
        "grad_norm": float(found.grad_norm),
        "learning_rate": float(found.learning_rate),
        "trained_tokens": float(found.weight),
        "tokens": int(found.tokens),
        "skipped": int(found.skipped),
    }
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _text(loss: float | None) -> str | float:
    return "not finite" if loss is None else loss


def _shown(
    measured: Mapping[str, Any], *, timing: Mapping[str, float], memory: Mapping[str, int], wait: float
) -> Facts:
    """Of a step, in the words of the live table; `wait` is the mean of the steps since the last ones shown."""
    facts: Facts = {
        "loss": _text(measured["loss"]),
        "tokens/s": round(timing["tokens_per_second"]),
        "trained tokens/s": round(timing["trained_tokens_per_second"]),
        "data wait": f"{1000 * wait:,.0f} ms",
    }
    if UTILISATION in timing:
        facts["MFU"] = f"{timing[UTILISATION]:.1%}"
    if "peak" in memory:
        limit = f" of {memory['limit'] / _GIB:.1f}" if "limit" in memory else ""
        facts["memory"] = f"{memory['peak'] / _GIB:.1f}{limit} GiB"
    return facts


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What every step measured: the lines of a run's `metrics.jsonl` that are updates, in order.

    Without the last line of the file if a kill cut it off, and, with a warning, without damaged ones before it.
    """
    return [line for line in _read_lines(Path(folder) / FILE) if HELD_OUT not in line]


def read_held_out(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` that are held-out losses, in order; as `read_metrics` for the rest."""
    return [line for line in _read_lines(Path(folder) / FILE) if HELD_OUT in line]


def _read_lines(path: Path) -> list[dict[str, Any]]:
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

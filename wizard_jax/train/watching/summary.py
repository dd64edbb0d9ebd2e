"""What a run comes to: the figures of its whole log, whatever processes wrote it."""

from __future__ import annotations

import os
import statistics
from typing import Any

from wizard_jax.train.watching.metrics import HELD_OUT, TIMING, UTILISATION, read_held_out, read_metrics

SPEEDS = ("tokens_per_second", "trained_tokens_per_second", UTILISATION)


def run_figures(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Sums over the steps, with `seconds` and of those `compile_seconds`, and medians of what is a speed.

    The losses and trained tokens are those of steps that the guard has not left out. What is not known, such as a
    loss where there is no step, is None.
    """
    lines = read_metrics(folder)
    taken = [line for line in lines if not line.get("skipped")]
    timings = [line[TIMING] for line in lines]
    compiling = sum(timing.get("compile_seconds", 0.0) for timing in timings)
    medians = {}
    for name in SPEEDS:
        known = [timing[name] for timing in timings if name in timing]
        medians[name] = statistics.median(known) if known else None
    return {
        "skipped_steps": len(lines) - len(taken),
        "trained_tokens": sum(line["trained_tokens"] for line in taken),
        "tokens": sum(line["tokens"] for line in lines),
        "seconds": sum(timing["seconds"] for timing in timings) + compiling,
        "compile_seconds": compiling,
        **medians,
        "first_loss": taken[0]["loss"] if taken else None,
        "last_loss": taken[-1]["loss"] if taken else None,
        **_held_out(folder),
    }


def _held_out(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The last held-out figures, and the step and loss of the best; nothing where none were measured."""
    lines = read_held_out(folder)
    if not lines:
        return {}
    finite = [
        {"step": line["step"], "loss": line[HELD_OUT]["loss"]} for line in lines if line[HELD_OUT]["loss"] is not None
    ]
    return {
        "held_out_last": {"step": lines[-1]["step"], **lines[-1][HELD_OUT]},
        "held_out_best": min(finite, key=lambda found: found["loss"], default=None),
    }

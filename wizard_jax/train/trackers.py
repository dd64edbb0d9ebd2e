"""Where curves are looked at: one small interface, and TensorBoard, which every run writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Gets the figures of every line of `metrics.jsonl`, by name; the same step may come twice, with other names."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Makes what was written visible, as far as that takes no waiting."""

    def close(self) -> None:
        """Everything that was written is kept when this returns; nothing comes after it."""


class TensorBoard:
    """Event files in a folder. Figures of `from_step` and later, from a run that was cut off, are hidden."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        from tensorboardX import SummaryWriter  # imports torch where there is one: a second or more, for training alone

        self._curves = SummaryWriter(str(folder), purge_step=from_step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._curves.add_scalar(name, value, global_step=step)

    def flush(self) -> None:
        self._curves.flush()

    def close(self) -> None:
        self._curves.close()


def flat(line: Mapping[str, Any], *, under: str = "") -> dict[str, float]:
    """The numbers of a line by their path: {"timing": {"seconds": 1.0}} gives {"timing/seconds": 1.0}."""
    figures: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            figures |= flat(value, under=f"{under}{name}/")
        elif value is not None:
            figures[under + name] = value
    return figures

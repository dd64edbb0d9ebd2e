"""Which packed rows each step takes: a pure function of (seed, step), whatever was restarted."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wizard_jax.data.audit import PackStats
from wizard_jax.data.config import ConversationsPerStep, DataError, RowsPerStep, TrainedTokensPerStep
from wizard_jax.data.order import seeded_order

Sizing = RowsPerStep | ConversationsPerStep | TrainedTokensPerStep


@dataclass(frozen=True)
class StepRows:
    """How many rows a step takes of an endless order of rows.

    A step takes `per_step` rows on average, and `batch_rows` at most; a batch is filled up with empty rows:

        per_step 5/2, batch_rows 3       step 0: rows 0 1 -    step 1: rows 2 3 4    step 2: rows 5 6 -

    so that any number of trained tokens a step can be kept, on any number of devices. With `end`, the order ends
    there: the last step takes what is left, so that each row is seen once in every epoch.
    """

    per_step: Fraction
    batch_rows: int
    """A multiple of what batches are divided by."""
    end: int | None = None

    def of(self, step: int) -> range:
        """The places in the endless order that a step takes."""
        first, last = (math.floor(at * self.per_step) for at in (step, step + 1))
        return range(first, last) if self.end is None else range(min(first, self.end), min(last, self.end))

    @property
    def steps(self) -> int:
        """Until `end`."""
        assert self.end is not None
        return math.ceil(self.end / self.per_step)


def step_rows(sizing: Sizing, *, stats: PackStats, multiple_of: int = 1, epochs: float | None = None) -> StepRows:
    """The rows of a step; `multiple_of` is what they are divided by (devices along the batch x microbatches).

    Raises:
      DataError: `rows` is no positive multiple of `multiple_of`, or `tokens` or `conversations` are less than a row
        holds on average.
    """
    end = None if epochs is None else max(1, round(epochs * stats.rows))
    if isinstance(sizing, RowsPerStep):
        check_rows(sizing.rows, multiple_of=multiple_of)
        return StepRows(Fraction(sizing.rows), sizing.rows, end)
    if isinstance(sizing, ConversationsPerStep):
        asked, there, what = sizing.conversations, stats.conversations, "conversations"
    else:
        asked, there, what = sizing.tokens, stats.trained_tokens, "trained tokens"
    per_step = Fraction(asked * stats.rows, there)
    if per_step < 1:
        raise DataError(
            f"{asked} {what} a step: a packed row holds {there / stats.rows:.0f} on average, "
            "so ask for at least that many"
        )
    return StepRows(per_step, math.ceil(per_step / multiple_of) * multiple_of, end)


def check_rows(rows: int, *, multiple_of: int) -> None:
    """Raises DataError unless a step of `rows` can be divided by `multiple_of` (as in `step_rows`)."""
    if rows < 1 or rows % multiple_of:
        near = max(1, round(rows / multiple_of)) * multiple_of
        raise DataError(
            f"{rows} rows a step are no positive multiple of {multiple_of} "
            f"(devices along the batch x microbatches): use {near}"
        )


def row_indices(places: range, *, rows: int, seed: int) -> np.ndarray:
    """The rows (int64) at some places of the endless order: one seeded permutation of all rows for each epoch."""
    parts = [np.empty(0, np.int64)]
    for epoch in range(places.start // rows, -(-places.stop // rows)):
        first = epoch * rows
        order = _epoch_order(rows, seed, epoch)
        parts.append(order[max(places.start - first, 0) : places.stop - first])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=3)  # 8 bytes a row; steps that are read ahead reach into the next epoch
def _epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return seeded_order(rows, seed=seed, stream=epoch + 1)

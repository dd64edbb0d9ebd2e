"""Packed rows as batches: what step s sees is a pure function of (seed, s).

A row of length 9 with two conversations, where the capitals are trained (answers and their EOS, here X and Y):

    tokens         a b A B X c C Y 0
    targets        b A B X 0 C Y 0 0
    loss_weights   0 1 1 1 0 1 1 0 0
    positions      0 1 2 3 4 0 1 2 0
    segment_ids    1 1 1 1 1 2 2 2 0

Position i predicts the token after it in its own conversation; the last one predicts nothing.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple, SupportsIndex, TypeVar

import numpy as np

from wizard_jax.data.config import DataError
from wizard_jax.data.packing import PackedFolder
from wizard_jax.data.row_files import RowReader
from wizard_jax.data.rows import Row
from wizard_jax.data.steps import StepRows, row_indices

_Item = TypeVar("_Item")

_ENDLESS = 2**31 - 1  # steps: more than anyone trains for


class Batch(NamedTuple):
    """B packed rows; every array is [B, L]."""

    tokens: np.ndarray
    """int32; 0 in padding"""
    targets: np.ndarray
    """int32; the token after, 0 where there is none"""
    positions: np.ndarray
    """int32; from 0 in each conversation"""
    segment_ids: np.ndarray
    """int32; 1, 2, ... for the conversations of a row, 0 for padding"""
    loss_weights: np.ndarray
    """float32; 1 where the target is trained, else 0"""


def to_batch(rows: Sequence[Row | None], *, seq_len: int) -> Batch:
    """Lay rows out one under the other, each padded to `seq_len`; None is a row of nothing but padding."""
    shape = (len(rows), seq_len)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
    )
    for index, row in enumerate(rows):
        if row is None:
            continue
        size = len(row.tokens)
        ends = np.cumsum(row.lengths)
        batch.tokens[index, :size] = row.tokens
        batch.segment_ids[index, :size] = np.repeat(np.arange(1, len(ends) + 1), row.lengths)
        batch.positions[index, :size] = np.arange(size) - np.repeat(ends - row.lengths, row.lengths)
        batch.targets[index, : size - 1] = row.tokens[1:]
        batch.targets[index, ends - 1] = 0
        batch.loss_weights[index, : size - 1] = row.trained[1:]
        batch.loss_weights[index, ends - 1] = 0
    return batch


class HeldOutBatch(NamedTuple):
    """A batch that is only measured, and what each of its trained targets is counted to."""

    batch: Batch
    groups: np.ndarray
    """int32 [B, L]: index into `PackedFolder.groups`; -1 where the target is not trained"""


WHOLE = (slice(None),)
"""Every row of a batch."""


def batches(
    packed: PackedFolder,
    *,
    rows: StepRows,
    seed: int,
    start_step: int = 0,
    positions: Sequence[slice] = WHOLE,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Batches from `start_step` on, without end.

    Args:
      rows: which rows make a step, over all processes.
      positions: which rows of every batch this process needs, as its devices hold them; they come in this order.
      threads, prefetch: how many read ahead, and how many batches; of no influence on what is read.

    Raises:
      DataError: at once, a file is missing or short; from `next`, a row cannot be read.
    """
    import grain

    source = _Steps(packed, rows=rows, seed=seed, start_step=start_step, positions=positions)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def held_out_batches(
    packed: PackedFolder, *, batch_rows: int, positions: Sequence[slice] = WHOLE
) -> Iterator[HeldOutBatch]:
    """All rows once, in the order of the file; the last batch is filled up with empty rows.

    Every process gets as many batches, whatever its `positions`, which are as in `batches`.
    """
    reader = _Rows(packed)
    seq_len = packed.stats.seq_len
    for start in range(0, packed.rows, batch_rows):
        numbers = np.arange(start, min(start + batch_rows, packed.rows))
        rows = reader.read(_at(positions, numbers, batch_rows=batch_rows))
        batch = to_batch(rows, seq_len=seq_len)
        groups = np.full(batch.tokens.shape, -1, np.int32)
        for index, row in enumerate(rows):
            if row is not None:
                groups[index, : len(row.tokens)] = np.repeat(row.groups, row.lengths)
        yield HeldOutBatch(batch, np.where(batch.loss_weights > 0, groups, np.int32(-1)))


def ahead(items: Iterator[_Item], *, count: int) -> Iterator[_Item]:
    """`items`, each asked for `count` items before it is used.

    JAX places arrays on devices, and runs steps, without waiting for either: so the batches of the next steps are on
    their way while a step runs. A DataError comes when the item is due that could not be read, not before.
    """
    waiting: collections.deque[_Item] = collections.deque()
    failure: DataError | None = None
    while failure is None:
        try:
            waiting.append(next(items))
        except StopIteration:
            break
        except DataError as error:
            failure = error
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
    if failure is not None:
        raise failure


def _at(positions: Sequence[slice], numbers: np.ndarray, *, batch_rows: int) -> np.ndarray:
    """Of a batch that holds the rows `numbers` and then empty ones (-1): those at some positions."""
    batch = np.full(batch_rows, -1, np.int64)
    batch[: len(numbers)] = numbers
    return np.concatenate([batch[part] for part in positions])


class _Rows:
    """Random access to the rows of a packed folder."""

    def __init__(self, packed: PackedFolder) -> None:
        self._reader = RowReader(packed.path, packed.files)

    def read(self, numbers: np.ndarray) -> list[Row | None]:
        """The rows of these numbers; None for -1."""
        wanted = numbers[numbers >= 0].tolist()
        found = iter(self._reader.read(wanted))
        return [Row.from_bytes(next(found)) if number >= 0 else None for number in numbers.tolist()]


class _Steps:
    """Random access to what this process needs of every batch, counted from `start_step`."""

    def __init__(
        self, packed: PackedFolder, *, rows: StepRows, seed: int, start_step: int, positions: Sequence[slice]
    ) -> None:
        self._reader = _Rows(packed)
        self._packed, self._rows, self._seed, self._start = packed, rows, seed, start_step
        self._positions = tuple(positions)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: SupportsIndex) -> Batch:
        places = self._rows.of(self._start + index.__index__())
        numbers = row_indices(places, rows=self._packed.rows, seed=self._seed)
        wanted = _at(self._positions, numbers, batch_rows=self._rows.batch_rows)
        return to_batch(self._reader.read(wanted), seq_len=self._packed.stats.seq_len)

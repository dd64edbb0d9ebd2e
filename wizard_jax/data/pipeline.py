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

from collections.abc import Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

from wizard_jax.data.config import DataError
from wizard_jax.data.packing import PackedFolder, Row
from wizard_jax.data.steps import StepRows, row_indices

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


def to_batch(rows: Sequence[Row], *, batch_rows: int, seq_len: int) -> Batch:
    """Lay rows out side by side, each padded to `seq_len`, and filled up with empty rows to `batch_rows`."""
    shape = (batch_rows, seq_len)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
    )
    for index, row in enumerate(rows):
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


def batches(
    packed: PackedFolder,
    *,
    rows: StepRows,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Batches from `start_step` on, without end; each process gets its own rows of every batch.

    Args:
      rows: which rows make a step, over all processes.
      threads, prefetch: how many read ahead, and how many batches; of no influence on what is read.

    Raises:
      DataError: `rows.batch_rows` is no multiple of `process_count`.
    """
    if rows.batch_rows % process_count:
        raise DataError(f"a batch of {rows.batch_rows} rows cannot be divided among {process_count} processes")
    import grain

    source = _Steps(
        packed,
        rows=rows,
        seed=seed,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


class _Steps:
    """Random access to this process's part of every batch, counted from `start_step`."""

    def __init__(
        self,
        packed: PackedFolder,
        *,
        rows: StepRows,
        seed: int,
        start_step: int,
        process_index: int,
        process_count: int,
    ) -> None:
        import grain

        self._share = rows.batch_rows // process_count
        self._part = slice(process_index * self._share, (process_index + 1) * self._share)
        self._source = grain.sources.ArrayRecordDataSource(str(packed.rows_file))
        self._packed, self._rows, self._seed, self._start = packed, rows, seed, start_step

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: SupportsIndex) -> Batch:
        places = self._rows.of(self._start + index.__index__())
        wanted = row_indices(places[self._part], rows=self._packed.rows, seed=self._seed)
        data = self._source.__getitems__(wanted.tolist()) if len(wanted) else []
        rows = [Row.from_bytes(item) for item in data]
        return to_batch(rows, batch_rows=self._share, seq_len=self._packed.stats.seq_len)

"""Batches on the devices of a mesh: each process reads the rows that its own devices compute, and no others.

Which rows those are, the sharding says, not the number of the process: with `tensor` over two processes both need the
same rows, and a mesh may lay devices in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from wizard_jax.data.packing import PackedFolder
from wizard_jax.data.pipeline import ahead, batches, to_batch
from wizard_jax.data.steps import StepRows
from wizard_jax.model.sharding import batch_sharding
from wizard_jax.train.halting import Halting
from wizard_jax.train.step import HALT

BATCHES_AHEAD = 2
"""On the devices, beside the one that a step works on."""


def local_positions(mesh: Mesh, *, rows: int) -> tuple[slice, ...]:
    """The rows of a batch that this process's devices hold, in rising order, each once."""
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    bounds = {index[0].indices(rows)[:2] for index in held if index is not None}
    return tuple(slice(start, stop) for start, stop in sorted(bounds))


def place(column: np.ndarray, positions: tuple[slice, ...], *, mesh: Mesh, rows: int) -> jax.Array:
    """The column [rows, ...] of a batch, from its rows at `positions`, which are those of this process."""
    sizes = [part.stop - part.start for part in positions]
    pieces = np.split(column, np.cumsum(sizes)[:-1])
    parts = {part.start: piece for part, piece in zip(positions, pieces, strict=True)}

    def held(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        piece: np.ndarray = parts[index[0].indices(rows)[0]]
        return piece

    return jax.make_array_from_callback((rows, *column.shape[1:]), batch_sharding(mesh), held)


def fed_to_devices(
    packed: PackedFolder, *, mesh: Mesh, rows: StepRows, seed: int, step: int, halting: Halting
) -> Iterator[dict[str, jax.Array]]:
    """The columns that `Steps.train` takes, of every batch from `step` on.

    Batches are on their way to the devices before they are used; whether this process wishes to stop is asked last.
    """
    positions = local_positions(mesh, rows=rows.batch_rows)
    mine = sum(part.stop - part.start for part in positions)

    def placed(columns: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: place(one, positions, mesh=mesh, rows=rows.batch_rows) for name, one in columns.items()}

    read = batches(packed, rows=rows, seed=seed, start_step=step, positions=positions)
    nothing = placed(to_batch([None] * mine, seq_len=packed.stats.seq_len)._asdict())
    on_their_way = ahead((placed(batch._asdict()) for batch in read), count=BATCHES_AHEAD)
    for columns, wish in halting.fed(on_their_way, nothing=nothing):
        yield {**columns, **placed({HALT: np.full(mine, wish, np.int32)})}

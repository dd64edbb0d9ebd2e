"""The loss on conversations that are never trained on: of all, of each source and of each round.

A loss is the sum over a group's trained tokens divided once by their number, so a group's figure does not depend on
how its conversations were packed, and the figures of groups add up to that of all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wizard_jax.data.audit import Group
from wizard_jax.data.packing import PackedFolder
from wizard_jax.data.pipeline import HeldOutBatch, held_out_batches
from wizard_jax.model.sharding import batch_sharding
from wizard_jax.train.step import Columns, TrainState


@dataclasses.dataclass(frozen=True)
class HeldOutRows:
    """Packed rows that are measured every so many steps, `batch_rows` of them at a time."""

    packed: PackedFolder
    every: int
    batch_rows: int
    mesh: Mesh

    def is_due(self, step: int, *, total: int) -> bool:
        """After so many updates; at the end whatever `every` says."""
        return step % self.every == 0 or step == total

    def measure(self, evaluate: Callable[[TrainState, Columns], jax.Array], state: TrainState) -> dict[str, Any]:
        """What `summed` makes of the losses of all rows. Every process of a run must call it, at the same step."""
        return summed(self._losses(evaluate, state), groups=self.packed.groups)

    def _losses(
        self, evaluate: Callable[[TrainState, Columns], jax.Array], state: TrainState
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """(losses float32 [B, L], groups int32 [B, L]) of every batch; the next one is read while the devices work."""
        measuring: tuple[jax.Array, np.ndarray] | None = None
        for held_out in held_out_batches(self.packed, batch_rows=self.batch_rows):
            losses = evaluate(state, self._on_devices(held_out))
            if measuring is not None:
                yield np.asarray(measuring[0]), measuring[1]
            measuring = losses, held_out.groups
        if measuring is not None:
            yield np.asarray(measuring[0]), measuring[1]

    def _on_devices(self, held_out: HeldOutBatch) -> Columns:
        sharding = batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_callback(column.shape, sharding, column.__getitem__)
            for name, column in held_out.batch._asdict().items()
        }


def summed(batches: Iterable[tuple[np.ndarray, np.ndarray]], *, groups: Sequence[Group]) -> dict[str, Any]:
    """{"loss": nats per trained token, "tokens": how many, "by_source": {source: the same}, "by_round": {...}}.

    A loss that is not finite is None.

    `batches` are (losses float32 [B, L], groups int32 [B, L], -1 where nothing is trained). Sums are in float64 and
    in the order of the file.
    """
    losses, tokens = np.zeros(len(groups)), np.zeros(len(groups), np.int64)
    for losses_BxL, groups_BxL in batches:
        trained = groups_BxL >= 0
        counted = groups_BxL[trained]
        losses += np.bincount(counted, weights=losses_BxL[trained], minlength=len(groups))
        tokens += np.bincount(counted, minlength=len(groups))

    def mean(members: Sequence[int]) -> dict[str, Any]:
        loss = float(losses[members].sum() / tokens[members].sum())
        return {"loss": loss if math.isfinite(loss) else None, "tokens": int(tokens[members].sum())}

    def split(keys: Sequence[str]) -> dict[str, Any]:
        members = {key: [i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)}
        return {key: mean(of_key) for key, of_key in members.items()}

    return {
        **mean(range(len(groups))),
        "by_source": split([group.source for group in groups]),
        "by_round": split([str(group.round) for group in groups]),
    }

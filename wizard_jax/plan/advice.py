"""The nearest change with which a step fits: of its settings first, and then of the slice.

Each is ruled out by arithmetic where that is enough, and is compiled before it is recommended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from configs.errors import UserError
from launch.slices import find_slice, larger
from wizard_jax.model.flops import token_flops
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.plan.plan import Planner, devices_of, known_plan, make_plan, prepare
from wizard_jax.plan.report import Plan, amount
from wizard_jax.plan.search import Say, accumulations, remats, rows_asked, with_remat
from wizard_jax.train.config import TrainConfig

SIZES_OF_SLICES = 12
"""How many larger ones are looked at."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A config, and the settings in which it differs."""

    config: TrainConfig
    settings: str


def changes_within(config: TrainConfig, *, rows: int) -> Iterator[list[Change]]:
    """Ladders of changes on the same slice, each from the nearest to the farthest: every next rung takes less memory.

    The first are more microbatches; then the same with each remat that keeps less.
    """
    now = token_flops(config.model, seq_len=config.data.seq_len, adapter=config.adapter).recomputed
    stronger = {}
    for remat in remats():
        model = with_remat(config.model, remat)
        again = token_flops(model, seq_len=config.data.seq_len, adapter=config.adapter).recomputed
        if again > now:
            stronger[remat] = again
    mesh = make_mesh(config.mesh, devices_of(config))
    ways = mesh.shape["slice"] * mesh.shape["fsdp"]
    counts = [one for one in accumulations(config, ways=ways, rows=rows) if one >= config.gradient_accumulation]
    for remat in (config.model.remat, *sorted(stronger, key=lambda name: stronger[name])):
        ladder = []
        for count in counts:
            changed = dataclasses.replace(config, gradient_accumulation=count, model=with_remat(config.model, remat))
            told = f"gradient_accumulation={count} " * (count != config.gradient_accumulation)
            told += f"model.remat={remat}" * (remat != config.model.remat)
            if told:
                ladder.append(Change(changed, told.strip()))
        yield ladder


def changes_of_slice(config: TrainConfig) -> Iterator[Change]:
    """Larger slices of the same generation, all of whose devices divide the parameters."""
    assert config.slice is not None
    for row in larger(find_slice(config.slice))[:SIZES_OF_SLICES]:
        for count in sorted({config.gradient_accumulation, 1}, reverse=True):
            mesh = MeshConfig(slice=config.mesh.slice, fsdp=-1, tensor=config.mesh.tensor)
            changed = dataclasses.replace(config, slice=row.key, gradient_accumulation=count, mesh=mesh)
            told = f"slice={row.short_name}"
            told += f" gradient_accumulation={count}" * (count != config.gradient_accumulation)
            told += " mesh.fsdp=-1" * (config.mesh.fsdp != -1)
            yield Change(changed, told)


def nearest_change(config: TrainConfig, planner: Planner, *, compiles: int, say: Say) -> str:
    """A sentence: the nearest change that fits, as compiled; or how far the search came."""
    tries = _Tries(planner, compiles, say)
    for ladder in changes_within(config, rows=rows_asked(config, planner)):
        if found := tries.lowest_rung(ladder):
            return found
    for change in changes_of_slice(config):
        if (plan := tries.fits(change)) is not None:
            return _told(change, plan)
    if tries.untried is not None:
        told = f"None of the {tries.compiled} changes that were compiled fits; " * (tries.compiled > 0)
        return (
            f"{told}--compiles {tries.compiled + 1} or more tries {tries.untried.settings}, which arithmetic lets pass"
        )
    if tries.compiled:
        return f"None of the {tries.compiled} changes that arithmetic lets pass fits"
    return "No change of microbatches, remat or slice of this generation makes it fit by arithmetic"


def _told(change: Change, plan: Plan) -> str:
    return f"The nearest change that fits: {change.settings} (peak {amount(plan.memory.peak)})"


class _Tries:
    """At most `compiles` compiles, and the first change for which none was left."""

    def __init__(self, planner: Planner, compiles: int, say: Say) -> None:
        self.compiled = 0
        self.untried: Change | None = None
        self._compiles = compiles
        self._planner, self._say = planner, say

    def fits(self, change: Change) -> Plan | None:
        """The plan of a change; None if it does not fit, or no compile is left to find out."""
        try:
            prepared = prepare(change.config, self._planner)
        except UserError:
            return None
        outcome = known_plan(prepared, self._planner)
        if outcome is None and self.compiled == self._compiles:
            self.untried = self.untried or change
        elif outcome is None:
            self._say(f"does not fit as it is; compiling with {change.settings}")
            self.compiled += 1
            outcome = make_plan(prepared, self._planner)
        return outcome if isinstance(outcome, Plan) else None

    def lowest_rung(self, ladder: list[Change]) -> str | None:
        """The first rung that fits, by bisection; None if the last does not."""
        if not ladder or (plan := self.fits(ladder[-1])) is None:
            return None
        best, low, high = _told(ladder[-1], plan), 0, len(ladder) - 1
        while low < high:
            middle = (low + high) // 2
            if (plan := self.fits(ladder[middle])) is None:
                low = middle + 1
            else:
                best, high = _told(ladder[middle], plan), middle
        return best

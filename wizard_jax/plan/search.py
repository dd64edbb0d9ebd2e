"""`wizard plan --search`: which settings fit a slice, and what each costs in arithmetic.

Only settings are changed that leave what is learned as it is: microbatches, remat and the mesh; the rows of a step
stay. Settings that fit are ordered by what can be counted, and not by a predicted time:

1. the share of FLOPs that remat computes a second time, by `wizard_jax.model.flops`;
2. the bytes that collectives move in a step on each device, as the compiled program has them;
3. the memory that is left.

What is not tried: settings that arithmetic refuses; those that take more than ones that were too large already (fewer
microbatches, a remat that keeps more), or still too much if all that was too large but state and gradients shrank with
the microbatch; more microbatches, where fewer fit (they gather parameters more often for the same work).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import jax
import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from wizard_jax.data.config import RowsPerStep
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.flops import matrix_params, token_flops
from wizard_jax.model.sharding import MESH_AXES, MeshConfig
from wizard_jax.plan.cache import Busy
from wizard_jax.plan.plan import PlanError, Planner, devices_of, known_plan, make_plan, prepare, rows_of
from wizard_jax.plan.report import Plan, amount
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.fit import check_positions

LARGEST_TENSOR = 16
"""Ways that heads are split at most: every layer waits for all of them four times."""
LARGEST_ACCUMULATION = 64

_MORE_AND_MORE = (("offload", "full", "attention", "qkv", "except_mlp", "none"), ("offload", "full", "dots", "none"))
"""Remat policies each of which keeps what those before it keep, and more."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What may be changed about how a step is computed."""

    remat: str
    gradient_accumulation: int
    fsdp: int
    tensor: int

    def apply(self, config: TrainConfig) -> TrainConfig:
        return dataclasses.replace(
            config,
            gradient_accumulation=self.gradient_accumulation,
            model=with_remat(config.model, self.remat),
            mesh=MeshConfig(slice=config.mesh.slice, fsdp=self.fsdp, tensor=self.tensor),
        )

    @property
    def settings(self) -> str:
        """For a command line."""
        return (
            f"model.remat={self.remat} gradient_accumulation={self.gradient_accumulation} "
            f"mesh.fsdp={self.fsdp} mesh.tensor={self.tensor}"
        )


@dataclass(frozen=True)
class Fitting:
    """Settings that fit, with their plan."""

    variant: Variant
    plan: Plan

    @property
    def merit(self) -> tuple[float, int, int]:
        """Smaller is better: see the module's text."""
        flops, memory = self.plan.flops, self.plan.memory
        return (flops.recomputed / flops.step, sum(one.bytes for one in self.plan.collectives), -memory.headroom)


@dataclass(frozen=True)
class Found:
    """What a search found: the best first; and of everything else why it is not there."""

    fitting: tuple[Fitting, ...]
    skipped: tuple[tuple[Variant, str], ...]
    compiles: int


def with_remat(model: ModelConfig, remat: str) -> ModelConfig:
    """`remat` is one of `remats()`."""
    changed: ModelConfig = dataclasses.replace(model, remat=remat)  # type: ignore[arg-type]
    return changed


def remats() -> tuple[str, ...]:
    """Every remat policy that there is."""
    return get_args(get_type_hints(ModelConfig)["remat"])


def variants(config: TrainConfig, *, rows: int) -> Iterator[Variant]:
    """Every variant on the slice of the config whose mesh divides the devices, the rows and the model."""
    copies = config.slices if config.mesh.slice in (None, -1) else config.mesh.slice
    within = len(devices_of(config)) // copies
    for tensor in range(1, min(LARGEST_TENSOR, within) + 1):
        if within % tensor or config.model.n_heads % tensor or config.model.d_ff % tensor:
            continue
        fsdp = within // tensor
        if config.model.d_model % fsdp:
            continue
        for remat, accumulation in itertools.product(remats(), accumulations(config, ways=copies * fsdp, rows=rows)):
            yield Variant(remat=remat, gradient_accumulation=accumulation, fsdp=fsdp, tensor=tensor)


def accumulations(config: TrainConfig, *, ways: int, rows: int) -> list[int]:
    """Numbers of microbatches that the rows of a step can be split into, so that no microbatch is empty."""
    most = min(LARGEST_ACCUMULATION, -(-rows // ways))
    if isinstance(config.batch, RowsPerStep):
        return [count for count in range(1, most + 1) if rows % (ways * count) == 0]
    return [2**power for power in range(most.bit_length())]


def rows_asked(config: TrainConfig, planner: Planner) -> int:
    """The rows of a step before they are filled up to what a mesh divides."""
    alone = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1, 1), MESH_AXES)
    return rows_of(dataclasses.replace(config, gradient_accumulation=1), alone, given=planner.rows).count


def estimate(variant: Variant, config: TrainConfig, *, rows: int) -> tuple[float, float]:
    """(share of FLOPs computed again, bytes on the network): the order in which variants are tried.

    Parameters are gathered twice in each microbatch, and their gradients scattered once unless an adapter is trained
    instead; with `tensor`, the residual stream is summed four times in each layer.
    """
    model, adapter = variant.apply(config).model, config.adapter
    width = {"float32": 4, "bfloat16": 2}[model.compute_dtype]
    moves = 3 if adapter is None else 2
    parameters = moves * matrix_params(model) * width / variant.tensor * variant.gradient_accumulation
    positions = rows / variant.fsdp * config.data.seq_len
    sums = 4 * model.n_layers * positions * model.d_model * width if variant.tensor > 1 else 0
    return token_flops(model, seq_len=config.data.seq_len, adapter=adapter).recomputed_share, parameters + sums


def search(config: TrainConfig, planner: Planner, *, compiles: int, say: Say) -> Found:
    """Tries variants, the most promising first, until `compiles` were compiled; those known already cost nothing.

    Several processes with one cache share the work: what another compiles is left for later.
    """
    check_positions(config)
    rows = rows_asked(config, planner)
    candidates = deque(sorted(variants(config, rows=rows), key=lambda one: estimate(one, config, rows=rows)))
    if not candidates:
        raise PlanError("no mesh of this slice divides the model and the rows of a step: change batch or slice")
    fitting: list[Fitting] = []
    too_large: list[_TooLarge] = []
    skipped: list[tuple[Variant, str]] = []
    done, waited = 0, 0
    while candidates:
        variant = candidates.popleft()
        if why := _needless(variant, fitting, too_large):
            skipped.append((variant, why))
            continue
        try:
            prepared = prepare(variant.apply(config), planner)
        except UserError as error:
            skipped.append((variant, str(error)))
            continue
        outcome = known_plan(prepared, planner)
        if outcome is None:
            if done >= compiles:
                skipped.append((variant, f"not tried: {compiles} compiles were allowed"))
                continue
            try:
                told = functools.partial(say, f"compiling {done + 1} of at most {compiles}: {variant.settings}")
                busy: Literal["wait", "raise"] = "wait" if waited > len(candidates) else "raise"
                outcome = make_plan(prepared, planner, busy=busy, begins=told)
            except Busy:
                candidates.append(variant)
                waited += 1
                continue
            done += 1
        waited = 0
        if isinstance(outcome, Plan):
            fitting.append(Fitting(variant, outcome))
        else:
            fixed = prepared.least.arguments + prepared.least.gradients
            too_large.append(_TooLarge(variant, fixed, outcome.needed, outcome.available))
            skipped.append((variant, f"needs {amount(outcome.needed)} of {amount(outcome.available)}"))
    return Found(tuple(sorted(fitting, key=lambda one: one.merit)), tuple(skipped), done)


@dataclass(frozen=True)
class _TooLarge:
    """A variant that took `needed` bytes of `available`; of these, `fixed` do not depend on microbatches."""

    variant: Variant
    fixed: int
    needed: int
    available: int

    def rules_out(self, other: Variant) -> bool:
        """Whether `other` takes too much as well."""
        own = self.variant
        if (own.fsdp, own.tensor) != (other.fsdp, other.tensor) or not _keeps_more(other, own):
            return False
        share = min(1.0, own.gradient_accumulation / other.gradient_accumulation)
        return other.gradient_accumulation <= own.gradient_accumulation or (
            self.fixed + (self.needed - self.fixed) * share > self.available
        )


def _needless(variant: Variant, fitting: Sequence[Fitting], too_large: Sequence[_TooLarge]) -> str | None:
    """Why a variant need not be compiled, given what is known of others; None if it must be."""
    for one in fitting:
        same = dataclasses.replace(variant, gradient_accumulation=one.variant.gradient_accumulation) == one.variant
        if same and variant.gradient_accumulation > one.variant.gradient_accumulation:
            return f"fits, and gathers more often than gradient_accumulation={one.variant.gradient_accumulation}"
    for other in too_large:
        if other.rules_out(variant):
            return f"too large by what was found of {other.variant.settings}"
    return None


def _keeps_more(variant: Variant, other: Variant) -> bool:
    """Whether `variant` keeps at least what `other` keeps of each layer, as far as that is certain."""
    if variant.remat == other.remat:
        return True
    for order in _MORE_AND_MORE:
        if variant.remat in order and other.remat in order:
            return order.index(variant.remat) > order.index(other.remat)
    return False

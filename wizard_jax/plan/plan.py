"""`wizard plan`: the very step that `wizard train` runs, compiled for a slice on a machine that has none.

No data set and no tokenizer is opened, and no array is made: the step is traced with shapes alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from configs.errors import UserError
from launch.slices import find_slice
from wizard_jax.data.config import ConversationsPerStep, RowsPerStep
from wizard_jax.data.steps import check_rows
from wizard_jax.model.decoder import count_params
from wizard_jax.model.flops import formula, token_flops
from wizard_jax.plan.cache import PlanCache, plan_key
from wizard_jax.plan.collectives import kernels, read_collectives
from wizard_jax.plan.report import Flops, Memory, Outcome, Overflow, Plan, Seconds
from wizard_jax.plan.stopping import ending_at_once
from wizard_jax.plan.tpu_compiler import Versions, compiler_flags, tpu_devices
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.fit import LeastMemory, check_memory, fitting_mesh, least_memory, left_whole, steps_of
from wizard_jax.train.step import abstract_batch

_NEEDED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_log = logging.getLogger(__name__)


class PlanError(UserError):
    """A config that can not be planned, or that the compiler refuses."""


@dataclass(frozen=True)
class Rows:
    """The rows of a step, and where their number is from."""

    count: int
    told: str


@dataclass(frozen=True)
class Planner:
    """What plans of one process have in common."""

    cache: PlanCache
    versions: Versions
    rows: int | None = None
    """Of a step, where the config does not say; a batch of conversations or tokens is known when it is packed."""


def devices_of(config: TrainConfig) -> tuple[jax.Device, ...]:
    """The devices of the slices of a config; raises PlanError where it names none."""
    if config.slice is None:
        raise PlanError("a plan is for a slice: give one, such as slice=v5e-16")
    return tpu_devices(find_slice(config.slice), slices=config.slices)


def mesh_of(config: TrainConfig) -> Mesh:
    """The mesh on the slice of a config; raises UserError as `fitting_mesh` does."""
    return fitting_mesh(config, devices_of(config))


def rows_of(config: TrainConfig, mesh: Mesh, *, given: int | None) -> Rows:
    """The rows of a step on this mesh.

    A row holds one conversation at least, so that a batch of conversations has at most as many rows, filled up to
    what the devices divide; `given` is how many it really has. Raises PlanError where nothing tells the number.
    """
    ways = mesh.shape["slice"] * mesh.shape["fsdp"] * config.gradient_accumulation
    if isinstance(config.batch, RowsPerStep):
        if given is not None:
            raise PlanError(f"--rows {given}: batch.rows is {config.batch.rows} already; set that instead")
        check_rows(config.batch.rows, multiple_of=ways)
        return Rows(config.batch.rows, "batch.rows")
    if given is not None:
        if given < 1:
            raise PlanError(f"--rows {given}: a step has 1 row at least")
        return Rows(-(-given // ways) * ways, f"--rows {given}, filled up to what the mesh divides")
    if isinstance(config.batch, ConversationsPerStep):
        conversations = config.batch.conversations
        told = f"at most, as {conversations} conversations; --rows N for the rows that they are packed into"
        return Rows(-(-conversations // ways) * ways, told)
    raise PlanError(
        "how many rows a batch of trained tokens has is known once the data is packed, and a plan opens no data: give "
        "--rows N (wizard pack tells rows and tokens; rows_per_step in the input.json of a run is N)"
    )


@dataclass(frozen=True)
class Prepared:
    """A config that arithmetic lets pass, and the key of its plan."""

    config: TrainConfig
    mesh: Mesh
    rows: Rows
    least: LeastMemory
    key: str


def prepare(config: TrainConfig, planner: Planner) -> Prepared:
    """Everything before a compile. Raises UserError: what is wrong, or what can not fit whatever the compiler does."""
    config = canonical(config)
    mesh = mesh_of(config)
    rows = rows_of(config, mesh, given=planner.rows)
    least = least_memory(config, mesh, rows=rows.count)
    check_memory(mesh, least)
    key = plan_key(config, mesh=mesh.shape, rows=rows.count, versions=planner.versions, flags=compiler_flags())
    return Prepared(config, mesh, rows, least, key)


def known_plan(prepared: Prepared, planner: Planner) -> Outcome | None:
    """The plan if it was made before."""
    found = planner.cache.get(prepared.key)
    return dataclasses.replace(found, rows_from=prepared.rows.told) if isinstance(found, Plan) else found


def make_plan(
    prepared: Prepared,
    planner: Planner,
    *,
    busy: Literal["wait", "raise"] = "wait",
    begins: Callable[[], None] = lambda: None,
) -> Outcome:
    """The plan, compiled unless it is known; `Busy` where another process is at it and `busy` is "raise".

    `begins` is called before it is compiled.
    """
    with planner.cache.making(prepared.key, busy=busy):
        found = known_plan(prepared, planner)
        if found is not None:
            return found
        begins()
        outcome = compile_plan(prepared, versions=planner.versions)
        try:
            planner.cache.put(outcome)
        except OSError as error:
            _log.warning("the plan is not kept in %s: %s", planner.cache.folder, error.strerror)
    return outcome


def canonical(config: TrainConfig) -> TrainConfig:
    """The config with the name of its slice in one form."""
    return config if config.slice is None else dataclasses.replace(config, slice=find_slice(config.slice).key)


def trace_step(config: TrainConfig, mesh: Mesh, *, rows: int) -> Any:
    """The `jax.stages.Traced` of the step that `wizard train` runs with this config on this mesh."""
    # Outside of `set_mesh`: Optax makes small arrays here, which devices that are not there can not hold.
    steps = steps_of(config, total_steps=config.steps or 1, mesh=mesh)
    step: Any = steps.train
    with jax.set_mesh(mesh):
        return step.trace(steps.abstract, abstract_batch(rows=rows, seq_len=config.data.seq_len, mesh=mesh))


def compile_step(prepared: Prepared) -> tuple[jax.stages.Compiled, Seconds]:
    """Traces, lowers and compiles the step. Raises JaxRuntimeError as the compiler does, for one that is too large."""
    clock = [time.perf_counter()]
    with ending_at_once():
        traced = trace_step(prepared.config, prepared.mesh, rows=prepared.rows.count)
        clock.append(time.perf_counter())
        with jax.set_mesh(prepared.mesh):
            lowered = traced.lower()
            clock.append(time.perf_counter())
            compiled = lowered.compile()
        clock.append(time.perf_counter())
    trace, lower, compile_ = (after - before for before, after in itertools.pairwise(clock))
    return compiled, Seconds(trace=trace, lower=lower, compile=compile_)


def compile_plan(prepared: Prepared, *, versions: Versions) -> Outcome:
    """Compiles the step, and reads what the compiler made of it."""
    config, mesh, rows, key = prepared.config, prepared.mesh, prepared.rows, prepared.key
    assert config.slice is not None
    row = find_slice(config.slice)
    try:
        compiled, seconds = compile_step(prepared)
    except jax.errors.JaxRuntimeError as error:
        return _overflow(error, slice_key=row.key, key=key)
    text = compiled.as_text()
    assert text is not None
    flops = token_flops(config.model, seq_len=config.data.seq_len, adapter=config.adapter)
    tokens = rows.count * config.data.seq_len
    return Plan(
        slice=row.key,
        slices=config.slices,
        chips=row.chips * config.slices,
        devices=mesh.size,
        device_kind=row.generation.device_kind,
        mesh=dict(mesh.shape),
        rows=rows.count,
        rows_from=rows.told,
        rows_on_a_device=rows.count // (mesh.shape["slice"] * mesh.shape["fsdp"] * config.gradient_accumulation),
        gradient_accumulation=config.gradient_accumulation,
        seq_len=config.data.seq_len,
        remat=config.model.remat,
        parameters=count_params(config.model),
        left_whole=left_whole(config.model, mesh),
        memory=_memory(compiled.memory_analysis(), limit=row.generation.usable_bytes),
        flops=Flops(
            step=tokens * flops.total,
            attention=tokens * flops.attention,
            recomputed=tokens * flops.recomputed,
            formula=formula(config.model, seq_len=config.data.seq_len, adapter=config.adapter),
        ),
        collectives=read_collectives(text, mesh=dict(mesh.shape)),
        kernels=kernels(text),
        seconds=seconds,
        versions=versions,
        flags=compiler_flags(),
        key=key,
    )


def _memory(told: Any, *, limit: int) -> Memory:
    return Memory(
        arguments=told.argument_size_in_bytes,
        outputs=told.output_size_in_bytes,
        aliased=told.alias_size_in_bytes,
        temporaries=told.temp_size_in_bytes,
        peak=told.peak_memory_in_bytes,
        program=told.generated_code_size_in_bytes,
        host=told.host_argument_size_in_bytes + told.host_temp_size_in_bytes,
        limit=limit,
    )


def _overflow(error: Exception, *, slice_key: str, key: str) -> Overflow:
    """What the compiler says of a step that is too large; raises PlanError for what is no matter of HBM."""
    message = str(error)
    found = _NEEDED.search(message) or _USED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        first = next((line for line in message.splitlines() if line.strip()), "no message")
        raise PlanError(f"the compiler for {slice_key} refuses the step: {first}") from error
    needed, available = (float(found[at]) * _UNITS[found[at + 1].upper()] for at in (1, 3))
    told = message.strip().splitlines()[0]
    return Overflow(slice=slice_key, needed=int(needed), available=int(available), told=told, key=key)

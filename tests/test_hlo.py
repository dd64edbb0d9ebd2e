"""What is read out of a compiled module: loops, groups of devices, and what runs beside a collective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from launch.slices import find_slice
from wizard_jax.plan.collectives import Collective, kernels, read_collectives
from wizard_jax.plan.hlo import array_bytes, executions, parse_module, trip_count
from wizard_jax.plan.tpu_compiler import tpu_devices, use_tpu_compiler

MESH = {"slice": 1, "fsdp": 4, "tensor": 2}

LOOP = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %rows = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %step = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%turn, %step)
  %sum.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%rows), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %both = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %sum.1)
}

%condition (state.1: (s32[], f32[8,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %end = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%turn.1, %end), direction=LT
}

ENTRY %main (rows.1: f32[8,128]) -> f32[8,128] {
  %rows.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(START)
  %first = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%start, %rows.1)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%first), condition=%condition, body=%body
  ROOT %last = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""

GATHER = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (rows: f32[2,128], other: f32[8,128]) -> (f32[8,128], f32[8,128]) {
  %rows = f32[2,128]{1,0} parameter(0)
  %other = f32[8,128]{1,0} parameter(1)
  %gather-start = (f32[2,128]{1,0}, f32[8,128]{1,0}) all-gather-start(%rows), channel_id=1, GROUPS, dimensions={0}
  %BESIDE
  %gathered = f32[8,128]{1,0} all-gather-done(%gather-start)
  ROOT %both = (f32[8,128]{1,0}, f32[8,128]{1,0}) tuple(%gathered, %beside)
}
"""
WORK = "beside = f32[8,128]{1,0} dot(%other, %other), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
NO_WORK = "beside = f32[8,128]{1,0} bitcast(%other)"


SCATTER = """\
HloModule jit_step, is_scheduled=true

%wrapped (whole: f32[8,128]) -> f32[2,128] {
  %whole = f32[8,128]{1,0} parameter(0)
  ROOT %part = f32[2,128]{1,0} reduce-scatter(%whole), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

ENTRY %main (other: f32[8,128]) -> (f32[2,128], f32[8,128]) {
  %other = f32[8,128]{1,0} parameter(0)
  %start = ((f32[8,128]{1,0}), f32[2,128]{1,0}, u32[]) async-start(%other), calls=%wrapped
  %BESIDE
  %end = f32[2,128]{1,0} async-done(%start)
  ROOT %both = (f32[2,128]{1,0}, f32[8,128]{1,0}) tuple(%end, %beside)
}
"""


@pytest.mark.parametrize(("beside", "overlap"), [(WORK, "overlapped"), (NO_WORK, "alone")])
def test_a_reduce_scatter_that_an_asynchronous_call_wraps_moves_the_array_that_it_scatters(
    beside: str, overlap: str
) -> None:
    (found,) = read_collectives(SCATTER.replace("BESIDE", beside), mesh=MESH)
    assert (found.kind, found.axes, found.overlap, found.bytes) == ("reduce-scatter", ("fsdp",), overlap, 8 * 128 * 4)


@pytest.mark.parametrize(("start", "turns"), [(0, 4), (1, 3), (6, 1), (7, 0), (9, 0)])
def test_a_loop_that_counts_by_constants_has_known_turns(start: int, turns: int) -> None:
    module = parse_module(LOOP.replace("START", str(start)))
    loop = next(one for one in module.computations["main"] if one.opcode == "while")
    assert trip_count(module, "main", loop) == turns
    assert executions(module) == {"main": 1, "body": turns, "condition": turns, "add": turns}


def test_what_a_loop_sends_is_counted_once_for_each_turn() -> None:
    (found,) = read_collectives(LOOP.replace("START", "0"), mesh=MESH)
    assert found == Collective(
        kind="all-reduce",
        axes=("tensor",),
        network="ICI",
        overlap="alone",
        places=1,
        times=4,
        bytes=4 * 8 * 128 * 4,
        is_exact=True,
    )


def test_a_loop_whose_turns_are_not_known_counts_once_and_says_so() -> None:
    text = LOOP.replace("%end = s32[]{:T(128)} constant(7)", "%end = s32[]{:T(128)} custom-call()")
    (found,) = read_collectives(text.replace("START", "0"), mesh=MESH)
    assert (found.times, found.is_exact) == (1, False)


@pytest.mark.parametrize(("beside", "overlap"), [(WORK, "overlapped"), (NO_WORK, "alone")])
def test_a_collective_is_overlapped_where_other_work_starts_before_its_end(beside: str, overlap: str) -> None:
    text = GATHER.replace("BESIDE", beside).replace("GROUPS", "replica_groups={{0,2,4,6},{1,3,5,7}}")
    (found,) = read_collectives(text, mesh=MESH)
    assert (found.kind, found.overlap, found.axes) == ("all-gather", overlap, ("fsdp",))
    assert found.bytes == 8 * 128 * 4


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("fsdp",)),
        ("replica_groups={{0,1,2,3,4,5,6,7}}", ("fsdp", "tensor")),
        ("replica_groups={}", ("fsdp", "tensor")),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("fsdp",)),
        ("replica_groups={{8,9}}", ()),
    ],
)
def test_groups_of_devices_tell_the_axes_of_the_mesh(groups: str, axes: tuple[str, ...]) -> None:
    (found,) = read_collectives(GATHER.replace("BESIDE", WORK).replace("GROUPS", groups), mesh=MESH)
    assert found.axes == axes


def test_bytes_of_a_type_are_those_of_its_arrays() -> None:
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, pred[4], s4[8], token[])") == [12, 4, 4, 4, 0]


def compiled(function: Any, *, sharded: PartitionSpec) -> str:
    """The program of `function` on 4 x 2 chips of v5e, given float32 [16, 256] with its rows split."""
    use_tpu_compiler()
    devices = np.array(tpu_devices(find_slice("v5e-8"))).reshape(1, 4, 2)
    mesh = Mesh(devices, tuple(MESH), axis_types=(AxisType.Auto,) * 3)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=sharded, out_specs=sharded, check_vma=False)
    placed = NamedSharding(mesh, sharded)
    rows = jax.ShapeDtypeStruct((16, 256), jnp.float32, sharding=placed)  # type: ignore[no-untyped-call]
    return jax.jit(mapped, in_shardings=placed, out_shardings=placed).lower(rows).compile().as_text() or ""


def test_a_compiled_program_moves_the_bytes_that_were_asked_for() -> None:
    def step(rows: jax.Array) -> jax.Array:
        summed, _ = jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "tensor")), None), rows, length=3)
        return jnp.sin(summed + jax.lax.all_gather(rows, "fsdp").sum(0))

    found = {one.kind: one for one in read_collectives(compiled(step, sharded=PartitionSpec("fsdp")), mesh=MESH)}
    whole, part = 16 * 256 * 4, 4 * 256 * 4
    assert (found["all-reduce"].axes, found["all-reduce"].times, found["all-reduce"].bytes) == (
        ("tensor",),
        3,
        3 * part,
    )
    assert (found["all-gather"].axes, found["all-gather"].times, found["all-gather"].bytes) == (("fsdp",), 1, whole)
    assert {one.network for one in found.values()} == {"ICI"}


def test_the_compiler_hides_the_second_of_two_gathers_behind_the_product_of_the_first() -> None:
    """In the scheduled program it is a fusion that starts it, one that works beside it, and one that ends it."""
    use_tpu_compiler()
    devices = np.array(tpu_devices(find_slice("v5e-8"))).reshape(1, 4, 2)
    mesh = Mesh(devices, tuple(MESH), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    size = 2048
    array = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=rows)  # type: ignore[no-untyped-call]

    def step(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        for weight in (first, second):
            x = jnp.sin(x @ jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec())))
        return x

    found = read_collectives(
        jax.jit(step, out_shardings=rows).lower(array, array, array).compile().as_text() or "", mesh=MESH
    )
    assert {one.kind for one in found} == {"all-gather"}
    assert [(one.overlap, one.places, one.times, one.bytes) for one in found] == [
        ("alone", 1, 1, 2 * size * size),
        ("overlapped", 1, 1, 2 * size * size),
    ]


@pytest.mark.parametrize(
    ("kind", "type_", "size"),
    [
        ("all-gather", "(f32[2,128]{1,0}, f32[8,128]{1,0})", 8 * 128 * 4),
        ("all-gather", "((f32[2,128]{1,0}, bf16[2]{0}), (f32[8,128]{1,0}, bf16[8]{0}))", 8 * 128 * 4 + 16),
        ("all-reduce", "(f32[8,128]{1,0}, bf16[8]{0})", 8 * 128 * 4 + 16),
        ("collective-permute", "(f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)})", 8 * 128 * 4),
    ],
)
def test_an_asynchronous_collective_of_several_arrays_moves_all_of_them_once(kind: str, type_: str, size: int) -> None:
    text = GATHER.replace("(f32[2,128]{1,0}, f32[8,128]{1,0}) all-gather-start", f"{type_} {kind}-start")
    text = (
        text.replace("all-gather-done", f"{kind}-done").replace("BESIDE", WORK).replace("GROUPS", "replica_groups={}")
    )
    (found,) = read_collectives(text, mesh=MESH)
    assert (found.kind, found.bytes) == (kind, size)


def test_a_program_without_kernels_has_none() -> None:
    assert kernels(LOOP.replace("START", "0")) == {}

"""What a compiled step says about communication: read from its HLO, nothing estimated.

Three things have to be undone to count a collective once. A TPU starts one in a fusion, hides it behind fused
products (`async_collective_fusion`), and ends it in a third: all of them name the same channel. A loop's body stands
in the text once and runs as often as the loop turns. Between slices an all-reduce has become a send and a recv of the
runtime (megascale) that carries its kind as a note.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wizard_jax.plan.hlo import Instruction, Module, array_bytes, executions, parse_module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
DATA_CENTRE = "slice"
"""The mesh axis that crosses from slice to slice."""

Overlap = Literal["overlapped", "alone"]

_WORK = frozenset("fusion convolution dot custom-call while conditional call reduce sort gather scatter".split())
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(([^)]+\)?)\))?(?: \{([^}]*)\})?")
_MARKS = {"AsyncCollectiveStart": "start", "AsyncCollectiveDone": "done"}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of a step that are of one kind, over the same axes, and hidden or not.

    `places` is how many stand in the program. `times` is how often they run in a step, and `bytes` what they move
    in a step on each device: of an all-gather the gathered array, of a reduce-scatter the array to be scattered, of
    the others, and of all that cross from slice to slice, their operand. Both count what is in a loop of unknown
    length once; `is_exact` says that there is none. "overlapped" means that the schedule starts other work between
    its start and its end; that this work is long enough to hide it, no compiler says.
    """

    kind: str
    axes: tuple[str, ...]
    """Of the mesh, as its groups of devices tell; empty where they fit none."""
    network: Literal["ICI", "DCN"]
    overlap: Overlap
    places: int
    times: int
    bytes: int
    is_exact: bool


def read_collectives(text: str, *, mesh: Mapping[str, int]) -> tuple[Collective, ...]:
    """The collectives of `Compiled.as_text()`; `mesh` is the sizes of the mesh's axes in order."""
    module = parse_module(text)
    times = executions(module)
    parents = _callers(module)
    sums: dict[tuple[str, tuple[str, ...], str, Overlap], list[tuple[int | None, int]]] = defaultdict(list)
    for computation, instructions in module.computations.items():
        role = _role(computation, instructions)
        for instruction in instructions:
            kind = _kind(instruction)
            if kind is None or role in ("middle", "done"):
                continue
            over_dcn = instruction.opcode == "send"
            if over_dcn or instruction.opcode.endswith("-start"):
                hidden = _work_until_done(instructions, instruction)
            elif role == "start":
                hidden = _work_between_callers(module, parents, computation, instruction)
            else:
                hidden = _in_async_call(module, parents, computation)
            axes = (DATA_CENTRE,) if over_dcn else _axes(instruction.attributes, mesh)
            overlap: Overlap = "overlapped" if hidden else "alone"
            sums[kind, axes, "DCN" if DATA_CENTRE in axes else "ICI", overlap].append(
                (times[computation], _bytes(kind, instruction))
            )
    return tuple(_sum(row, found) for row, found in sorted(sums.items()))


def kernels(text: str) -> dict[str, int]:
    """How often each kernel of ours (Mosaic: a `tpu_custom_call`) stands in the program, by name."""
    module = parse_module(text)
    names = [
        re.sub(r"\.\d+$", "", instruction.name)
        for instructions in module.computations.values()
        for instruction in instructions
        if instruction.attribute("custom_call_target") == "tpu_custom_call"
    ]
    return dict(sorted(Counter(names).items()))


def _sum(row: tuple[str, tuple[str, ...], str, Overlap], found: Sequence[tuple[int | None, int]]) -> Collective:
    kind, axes, network, overlap = row
    counted = [(1 if times is None else times, size) for times, size in found]
    return Collective(
        kind=kind,
        axes=axes,
        network="DCN" if network == "DCN" else "ICI",
        overlap=overlap,
        places=len(found),
        times=sum(times for times, _ in counted),
        bytes=sum(times * size for times, size in counted),
        is_exact=all(times is not None for times, _ in found),
    )


def _kind(instruction: Instruction) -> str | None:
    """The kind of collective that an instruction is or starts."""
    if instruction.opcode == "send":
        told = instruction.attribute("_xla_megascale_transfer_type")
        return told.lower().replace("_", "-") if told else None
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _role(computation: str, instructions: Sequence[Instruction]) -> str:
    """Which part of an asynchronous collective a computation holds."""
    if computation.startswith("async_collective_fusion"):
        return "middle"
    marks = (_MARKS.get(one.attribute("custom_call_target") or "") for one in instructions)
    return next((mark for mark in marks if mark), "whole")


def _callers(module: Module) -> dict[str, list[tuple[str, int]]]:
    """Computation -> where it is called: the caller, and the place in its schedule."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, instructions in module.computations.items():
        for at, instruction in enumerate(instructions):
            for called in instruction.called:
                found[called].append((name, at))
    return found


def _work_until_done(instructions: Sequence[Instruction], start: Instruction) -> bool:
    """Whether other work starts before the instruction that waits for `start`."""
    after = itertools.dropwhile(lambda one: one is not start, instructions)
    next(after)
    for one in after:
        if one.opcode.endswith("-done") and start.name in one.operands:
            return False
        if one.opcode in _WORK:
            return True
    return False


def _work_between_callers(
    module: Module, parents: Mapping[str, list[tuple[str, int]]], computation: str, start: Instruction
) -> bool:
    """The same where start and end are fusions of one channel."""
    channel = start.attribute("channel_id")
    ends = {
        place
        for name, instructions in module.computations.items()
        if _role(name, instructions) == "done" and any(one.attribute("channel_id") == channel for one in instructions)
        for place in parents.get(name, [])
    }
    for caller, at in parents.get(computation, []):
        for end in (place for name, place in ends if name == caller and place > at):
            return any(one.opcode in _WORK for one in module.computations[caller][at + 1 : end])
    return False


def _in_async_call(module: Module, parents: Mapping[str, list[tuple[str, int]]], computation: str) -> bool:
    """Whether a computation is that of an `async-start` before whose end other work starts."""
    for caller, at in parents.get(computation, []):
        instructions = module.computations[caller]
        if instructions[at].opcode == "async-start":
            return _work_until_done(instructions, instructions[at])
    return False


def _bytes(kind: str, instruction: Instruction) -> int:
    sizes = array_bytes(instruction.type)
    if instruction.opcode == "send" or instruction.opcode == "collective-permute-start":
        return sizes[0]
    if instruction.opcode == "all-gather-start":
        return sum(sizes[len(sizes) // 2 :])  # operands, then results
    if kind == "reduce-scatter":
        group = _first_group(instruction.attributes)
        return sum(sizes) * (len(group) if group else 1)
    return sum(sizes)


def _axes(attributes: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ; devices are numbered as they lie in the mesh."""
    group = _first_group(attributes)
    sizes = tuple(mesh.values())
    if group is None:
        return tuple(name for name, size in mesh.items() if size > 1)
    if max(group) >= math.prod(sizes):
        return ()
    places = np.array(np.unravel_index(group, sizes))
    return tuple(name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)


def _first_group(attributes: str) -> list[int] | None:
    """One of the groups (all have the same shape) of an instruction; None: all devices are one group.

    {{0,1},{2,3}} are groups; [2,4]<=[4,2]T(1,0) are those of 0..7 as 4x2, transposed, as 2x4;
    mesh['a'=4,'b'=2] {'a'} are the lines along 'a' of 0..7 as 4x2, whose ids `device_ids` may permute.
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        groups = [[int(one) for one in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
        return next((group for group in groups if len(set(group)) > 1), groups[0])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return [int(one) for one in _iota(found[2]).reshape(_integers(found[1]))[0]]
    if found := _MESH_GROUPS.search(attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        ids = _iota(found[2]) if found[2] else np.arange(math.prod(sizes.values()))
        along = re.findall(r"'([^']+)'", found[3] or "")
        line = tuple(slice(None) if name in along else 0 for name in sizes)
        return [int(one) for one in ids.reshape(tuple(sizes.values()))[line].reshape(-1)]
    return None


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: 0..7 as 4x2, transposed, flat; or a plain list of ids."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text)
    if not found:
        return np.array(_integers(text))
    shape = _integers(found[1])
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_integers(found[2])) if found[2] else ids).reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one)

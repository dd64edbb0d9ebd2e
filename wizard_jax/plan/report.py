"""What a plan tells: one record, as JSON in a file and as a table for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wizard_jax.plan.collectives import Collective

GIB = 2**30
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device, as the compiler assigned them; `limit` is what a program has there.

    `arguments` (state and batch) are given back in place (`aliased` of `outputs`). `peak` is the compiler's figure of
    the most that is held at any time, and what it holds against the limit: it may be less than arguments and
    temporaries together, as those of LLaMA-2 7B on v5e-8 were 15.84 GiB, the peak 14.91, and it compiled for 15.75.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int
    program: int
    host: int
    """In the memory of the host, beside: what remat offloads."""
    limit: int

    @property
    def headroom(self) -> int:
        return self.limit - self.peak


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of a step on all devices, by `wizard_jax.model.flops`; `recomputed` comes on top, by remat."""

    step: float
    attention: float
    recomputed: float
    formula: str


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """What it took on this machine until the step was a program."""

    trace: float
    lower: float
    compile: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A step that was compiled for a slice, and so fits it.

    It says what the compiler says. There is no step time and no utilisation in it: XLA's cost analysis counts the
    body of a loop once and a kernel not at all, and its estimates of cycles add up to more than the peak. Whether
    communication that the schedule overlaps is really hidden, and what an all-reduce on a large torus costs where
    a reduce-scatter was asked for, hardware alone can show.
    """

    slice: str
    slices: int
    chips: int
    devices: int
    device_kind: str
    mesh: dict[str, int]
    rows: int
    rows_from: str
    rows_on_a_device: int
    """In one microbatch."""
    gradient_accumulation: int
    seq_len: int
    remat: str
    parameters: int
    left_whole: list[str]
    memory: Memory
    flops: Flops
    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    seconds: Seconds
    versions: dict[str, str]
    flags: dict[str, str]
    key: str


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A step that the compiler could not place: it needs more than a device has. Bytes, to the digits it told."""

    slice: str
    needed: int
    available: int
    told: str
    key: str

    @property
    def shortfall(self) -> int:
        return self.needed - self.available


Outcome = Plan | Overflow


def to_json(outcome: Outcome) -> str:
    told = {"format": FORMAT, "fits": isinstance(outcome, Plan), **dataclasses.asdict(outcome)}
    return json.dumps(told, indent=1) + "\n"


def from_json(text: str) -> Outcome:
    """What `to_json` wrote. Raises ValueError for any other text."""
    told = json.loads(text)
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise ValueError("no plan of this version")
    try:
        return _plan(told) if told.pop("fits") else Overflow(**told)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no plan of this version: {error}") from error


def _plan(told: dict[str, Any]) -> Plan:
    parts = {
        "memory": Memory(**told["memory"]),
        "flops": Flops(**told["flops"]),
        "seconds": Seconds(**told["seconds"]),
        "collectives": tuple(Collective(**{**one, "axes": tuple(one["axes"])}) for one in told["collectives"]),
    }
    return Plan(**{**told, **parts})


def amount(size: float) -> str:
    """`4.71 GiB`, or in a smaller unit."""
    units = {"GiB": GIB, "MiB": 2**20, "KiB": 2**10, "B": 1}
    unit = next((name for name, limit in units.items() if size >= limit), "B")
    return f"{size / units[unit]:.{0 if unit == 'B' else 2}f} {unit}"


def report_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """(what, figure) for the table of a terminal."""
    many = f"{plan.slices} x " if plan.slices > 1 else ""
    yield "slice", f"{many}{plan.slice}: {plan.chips} chips, {plan.devices} devices ({plan.device_kind})"
    yield "mesh", ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    split = f"{plan.rows_on_a_device} on a device"
    split += f" in each of {plan.gradient_accumulation} microbatches" * (plan.gradient_accumulation > 1)
    yield "step", f"{plan.rows:,} rows x {plan.seq_len:,} tokens ({plan.rows_from}); {split}; remat {plan.remat}"
    yield "parameters", f"{plan.parameters:,}"
    for name in plan.left_whole:
        yield "left whole", name
    memory = plan.memory
    yield "arguments", f"{amount(memory.arguments)} on each device: state and batch"
    yield "temporaries", amount(memory.temporaries)
    yield "given back", f"{amount(memory.outputs)}, of which {amount(memory.aliased)} in place of arguments"
    yield "program", amount(memory.program)
    at_once = "the most at one time, which is less than the sum where temporaries take turns"
    yield "peak", f"{amount(memory.peak)} of {amount(memory.limit)}, {amount(memory.headroom)} left: {at_once}"
    if memory.host:
        yield "on the host", f"{amount(memory.host)} for each device"
    flops = plan.flops
    share = f"attention {flops.attention / flops.step:.1%} of them"
    yield "FLOPs", f"{flops.step:.4g} a step, {flops.step / plan.devices:.4g} on a device, {share}"
    yield "formula", flops.formula
    yield "recomputed", f"{flops.recomputed / flops.step:.1%} more, by remat"
    yield "kernels", ", ".join(f"{count} x {name}" for name, count in plan.kernels.items()) or "none"
    took = plan.seconds
    python = f"trace {took.trace:.1f} s, lower {took.lower:.1f} s (together {took.trace + took.lower:.1f} s)"
    yield "took", f"{python}, compile {took.compile:.0f} s"
    yield "compiled with", _pairs({**plan.versions, **plan.flags})
    yield "plan", plan.key


def _pairs(told: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in told.items())


COLLECTIVE_HEAD = ("collective", "over", "network", "beside other work", "in the program", "in a step", "moves a step")


def collective_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """A line for each kind of collective, those that move most first."""
    for one in sorted(plan.collectives, key=lambda one: -one.bytes):
        least = "" if one.is_exact else "at least "
        yield (
            one.kind,
            " and ".join(one.axes) or "some devices",
            one.network,
            "yes" if one.overlap == "overlapped" else "no",
            f"{one.places:,}",
            f"{least}{one.times:,}",
            f"{least}{amount(one.bytes)}",
        )

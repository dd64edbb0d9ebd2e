"""TPU slices: one table of what Google Cloud names, how it is put together, and what a program has on it.

    find_slice("v5e-16")       the 4x4 of v5e: 16 chips, 4 VMs of ct5lp-hightpu-4t
    find_slice("v5litepod-16") the same, as the TPU API names it
    find_slice("v5e:4x4")      the same, as libtpu names it

A slice is a generation and a topology (chips along each axis of its torus); names are aliases. Those of v4, v5p and
tpu7x count TensorCores, two in a chip: v5p-128 has 64 chips. Where a name stands for several topologies of tpu7x,
which the TPU API never named, it is refused.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from dataclasses import dataclass

from configs.errors import UserError


class SliceError(UserError):
    """A slice that there is not, or a name of more than one."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A type of VM with chips; `host_bounds` is how libtpu takes the chips of one VM to lie."""

    name: str
    chips: int
    host_bounds: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What all slices of a generation have in common.

    Published: peak bf16 FLOP/s and HBM (GiB) of a chip (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x).
    Measured: `usable_gib`, the HBM in GiB that the compiler of libtpu 0.0.42 gives a program on one JAX device, to
    the hundredth ("exceeds available HBM (15.75G)"); the rest is the runtime's.
    """

    name: str
    api_names: tuple[str, ...]
    """What stands before the number in names of slices; the first is that of the TPU API."""
    cores_in_name: int
    """What a name counts for each chip."""
    device_kind: str
    devices_per_chip: int
    chip_config: str | None
    """libtpu's name for two cores as one device, where that is not its default but JAX's on the machines."""
    peak_flops: float
    hbm_gib: int
    usable_gib: float
    gke_accelerator: str
    runtime_version: str | None
    """Of TPU VMs; None where the TPU API does not have the generation."""
    machines: tuple[Machine, ...]
    max_chips: int
    """Of one slice."""

    @property
    def is_torus_3d(self) -> bool:
        return self.name in ("v4", "v5p", "tpu7x")

    @property
    def usable_bytes(self) -> int:
        """HBM that a program has on one JAX device."""
        return int(self.usable_gib * 2**30)


def _machines(prefix: str, *chips: int) -> tuple[Machine, ...]:
    bounds = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}
    return tuple(Machine(name=f"{prefix}-{count}t", chips=count, host_bounds=bounds[count]) for count in chips)


GENERATIONS: tuple[Generation, ...] = (
    Generation(
        name="v4",
        api_names=("v4",),
        cores_in_name=2,
        device_kind="TPU v4",
        devices_per_chip=1,
        chip_config="megacore",
        peak_flops=275e12,
        hbm_gib=32,
        usable_gib=30.75,
        gke_accelerator="tpu-v4-podslice",
        runtime_version="tpu-ubuntu2204-base",
        machines=_machines("ct4p-hightpu", 4),
        max_chips=4096,
    ),
    Generation(
        name="v5e",
        api_names=("v5litepod", "v5e"),
        cores_in_name=1,
        device_kind="TPU v5 lite",
        devices_per_chip=1,
        chip_config=None,
        peak_flops=197e12,
        hbm_gib=16,
        usable_gib=15.75,
        gke_accelerator="tpu-v5-lite-podslice",
        runtime_version="v2-alpha-tpuv5-lite",
        machines=_machines("ct5lp-hightpu", 1, 4, 8),
        max_chips=256,
    ),
    Generation(
        name="v5p",
        api_names=("v5p",),
        cores_in_name=2,
        device_kind="TPU v5",
        devices_per_chip=1,
        chip_config=None,
        peak_flops=459e12,
        hbm_gib=95,
        usable_gib=95.74,
        gke_accelerator="tpu-v5p-slice",
        runtime_version="v2-alpha-tpuv5",
        machines=_machines("ct5p-hightpu", 1, 4),
        max_chips=6144,
    ),
    Generation(
        name="v6e",
        api_names=("v6e",),
        cores_in_name=1,
        device_kind="TPU v6 lite",
        devices_per_chip=1,
        chip_config=None,
        peak_flops=918e12,
        hbm_gib=32,
        usable_gib=31.25,
        gke_accelerator="tpu-v6e-slice",
        runtime_version="v2-alpha-tpuv6e",
        machines=_machines("ct6e-standard", 1, 4, 8),
        max_chips=256,
    ),
    Generation(
        name="tpu7x",
        api_names=("tpu7x",),
        cores_in_name=2,
        device_kind="TPU7x",
        devices_per_chip=2,
        chip_config=None,
        peak_flops=2307e12,
        hbm_gib=192,
        usable_gib=94.75,
        gke_accelerator="tpu7x",
        runtime_version=None,
        machines=_machines("tpu7x-standard", 1, 4),
        max_chips=9216,
    ),
)


@dataclass(frozen=True)
class Slice:
    """One row of the table: `topology` is the number of chips along each axis."""

    generation: Generation
    topology: tuple[int, ...]

    @property
    def key(self) -> str:
        """The canonical name, which is also libtpu's: `v5e:4x4`."""
        return f"{self.generation.name}:{self.shape}"

    @property
    def shape(self) -> str:
        """The topology as Google Cloud writes it: `4x4`."""
        return "x".join(map(str, self.topology))

    @property
    def chips(self) -> int:
        return math.prod(self.topology)

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.generation.devices_per_chip

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The VMs that it may be made of; the first is what its name in the TPU API brings.

        Eight chips of v5e or v6e are one VM of eight, or two of four (on GKE); larger slices have VMs of four.
        """
        whole = [one for one in self.generation.machines if one.chips == self.chips]
        fours = [one for one in self.generation.machines if one.chips == 4 and self.chips % 4 == 0 and one not in whole]
        return tuple(whole + fours)

    @property
    def machine(self) -> Machine:
        return self.machines[0]

    @property
    def hosts(self) -> int:
        """VMs, and so JAX processes."""
        return self.chips // self.machine.chips

    @property
    def name(self) -> str:
        """The name of the TPU API, such as v5litepod-16; the key, where that name is of another topology too."""
        return self._named(self.generation.api_names[0])

    @property
    def short_name(self) -> str:
        """As people say it, such as v5e-16; the key, where that is the name of another topology too."""
        return self._named(self.generation.name)

    def _named(self, prefix: str) -> str:
        name = f"{prefix}-{self.chips * self.generation.cores_in_name}"
        return name if _by_alias().get(name) == (self,) else self.key


def _topologies(generation: Generation) -> list[tuple[int, ...]]:
    """All that can be asked for, smallest first.

    In two dimensions each topology has a name. In three, above the parts of a cube of 4x4x4, they are all boxes
    A <= B <= C of whole cubes (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus gives the rule).
    """
    single = [1] if any(one.chips == 1 for one in generation.machines) else []
    if not generation.is_torus_3d:
        flat = [(2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
        return [*((1, 1) for _ in single), *flat]
    parts = [*((1, 1, 1) for _ in single), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    cubes = generation.max_chips // 64
    boxes = [
        (4 * a, 4 * b, 4 * c)
        for a in range(1, math.isqrt(cubes) + 1)
        for b in range(a, math.isqrt(cubes // a) + 1)
        for c in range(b, cubes // (a * b) + 1)
    ]
    return [*parts, *sorted(boxes, key=lambda box: (math.prod(box), sum(box)))]


@functools.cache
def slices() -> tuple[Slice, ...]:
    """Every row of the table; of a generation, the smallest first, and of equal size the nearest to a cube first."""
    return tuple(Slice(generation, topology) for generation in GENERATIONS for topology in _topologies(generation))


@functools.cache
def _by_alias() -> dict[str, tuple[Slice, ...]]:
    """Every name that is understood, and what it may mean."""
    named: dict[str, tuple[Slice, ...]] = {}
    for generation, rows in itertools.groupby(slices(), key=lambda row: row.generation):
        for row in rows:
            for prefix in generation.api_names:
                named[f"{prefix}:{row.shape}"] = named[f"{prefix}-{row.shape}"] = (row,)
                name = f"{prefix}-{row.chips * generation.cores_in_name}"
                # The TPU API gives a bare name of v4 or v5p the box nearest to a cube; it never had tpu7x.
                if name not in named or generation.runtime_version is None:
                    named[name] = (*named.get(name, ()), row)
    return named


def find_slice(name: str) -> Slice:
    """The slice of a name, in any of its forms and in any case.

    Raises SliceError: no slice has the name (the nearest are told), or several have it (all are told).
    """
    found = _by_alias().get(name.strip().lower(), ())
    if len(found) == 1:
        return found[0]
    if found:
        choices = " or ".join(row.key for row in found)
        raise SliceError(f"{name} is the name of {len(found)} slices: write {choices}")
    raise SliceError(f"there is no slice {name!r}{_nearest(name.strip().lower())}")


def _nearest(name: str) -> str:
    """What may have been meant: the nearest sizes of a known generation, names that look alike, or what is known."""
    aliases = _by_alias()
    prefix = next((one for one in _prefixes() if name.startswith(f"{one}-")), None)
    size = name[len(prefix) + 1 :] if prefix else ""
    if size.isdecimal():
        sizes = {int(tail): alias for alias in aliases if (tail := alias.removeprefix(f"{prefix}-")).isdecimal()}
        near = [sizes[one] for one in sorted(sizes, key=lambda one: abs(one - int(size)))[:3]]
    else:
        near = difflib.get_close_matches(name, aliases, n=3, cutoff=0.7)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f": the generations are {', '.join(one.name for one in GENERATIONS)}; write v5e-16 or v5e:4x4"


def _prefixes() -> list[str]:
    return [name for one in GENERATIONS for name in one.api_names]


def generation_of(device_kind: str) -> Generation | None:
    """The generation of `jax.Device.device_kind`; None for what is no TPU of the table."""
    return next((one for one in GENERATIONS if one.device_kind == device_kind), None)


def larger(than: Slice) -> list[Slice]:
    """The slices of the same generation with more chips, smallest first, one of each size."""
    more = [row for row in slices() if row.generation is than.generation and row.chips > than.chips]
    return list({row.chips: row for row in reversed(more)}.values())[::-1]

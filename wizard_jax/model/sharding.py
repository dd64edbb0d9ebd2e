"""Where arrays live: the mesh, and one table from logical axes to mesh axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs.errors import UserError
from configs.loader import setting

MESH_AXES = ("slice", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": ("slice", "fsdp"),
        "layers": (),
        "vocab": ("tensor",),
        "embed": ("fsdp",),
        "d_embed": (),
        "positions": (),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "head_dim": (),
        "head_norm": (),
        "mlp": ("tensor",),
        "rank": (),
    }
)
"""Logical axis -> the mesh axes it is split over. Parameters are whole on every slice: between slices, on the
data-centre network, only gradients travel."""


class MeshError(UserError):
    """A mesh that these devices can not form."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways the devices are divided along each mesh axis; one of them may be -1: all that is left."""

    slice: int | None = setting(
        None, operational=True, doc="copies of the parameters; None: one on each TPU slice that the devices are of"
    )
    fsdp: int = setting(-1, operational=True, doc="ways to split parameters and the batch")
    tensor: int = setting(1, operational=True, doc="ways to split heads, feed-forward and vocabulary")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (all, by default) as a mesh of axes `slice`, `fsdp`, `tensor`. Raises MeshError."""
    devices = jax.devices() if devices is None else list(devices)
    slices = len({_slice_of(device) for device in devices})
    sizes = [slices if config.slice is None else config.slice, config.fsdp, config.tensor]
    asked = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise MeshError(f"mesh ({asked}): every size must be above 0, and at most one may be -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        raise MeshError(
            f"mesh ({asked}) does not divide {len(devices)} device(s): the sizes must multiply to "
            f"{len(devices)}; set one of them to -1 to take what is left"
        )
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    types = (AxisType.Auto,) * len(sizes)
    if slices > 1:
        return Mesh(arrange_slices(devices, sizes), MESH_AXES, axis_types=types)
    # `jax.make_mesh` refuses 8 x 2 on a 4x4 of v6e, because an axis of the torus is split.
    arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=types)


def arrange_slices(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """Devices of several slices as an array of `sizes`, of which only axis 0 goes from slice to slice.

    Raises MeshError: axis 0 is not a multiple of the number of slices, or some slices have more devices.
    """
    per_slice = Counter(_slice_of(device) for device in devices)
    if sizes[0] % len(per_slice) or len(set(per_slice.values())) > 1:
        raise MeshError(
            f"the devices are of {len(per_slice)} slices ({', '.join(map(str, per_slice.values()))} devices): set "
            f"mesh.slice to {len(per_slice)}, with as many devices of each"
        )
    within = (sizes[0] // len(per_slice), *sizes[1:])
    across = (len(per_slice), *(1 for _ in sizes[1:]))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _slice_of(device: Any) -> int:
    """Its TPU slice; devices of other kinds have none, and count as one slice."""
    return getattr(device, "slice_index", 0)


def partition_spec(
    axes: Sequence[str | None], mesh_shape: Mapping[str, int], *, shape: Sequence[int] | None = None
) -> PartitionSpec:
    """The mesh axes of an array with these logical axes; a dimension of `shape` that they do not divide stays whole.

    (As 32,001 rows of a vocabulary on two chips, or one key-value head on four.)
    """
    entries: list[tuple[str, ...] | str | None] = []
    for dimension, name in enumerate(axes):
        over = () if name is None else RULES[name]
        ways = math.prod(mesh_shape[axis] for axis in over)
        divides = shape is None or shape[dimension] % ways == 0
        entries.append((over[0] if len(over) == 1 else over) if over and divides else None)
    return PartitionSpec(*entries)  # type: ignore[no-untyped-call]  # jax leaves it untyped


def shardings(axes_tree: Any, mesh: Mesh, *, shapes: Any = None) -> Any:
    """A tree of NamedSharding for a tree of tuples of logical names; `shapes` is the same tree of abstract arrays.

    With `shapes`, dimensions that the mesh does not divide are left whole instead of failing later.
    """

    def sharding(axes: tuple[str | None, ...], array: Any = None) -> NamedSharding:
        shape = None if array is None else array.shape
        return NamedSharding(mesh, partition_spec(axes, mesh.shape, shape=shape))

    trees = (axes_tree,) if shapes is None else (axes_tree, shapes)
    return jax.tree.map(sharding, *trees, is_leaf=lambda node: isinstance(node, tuple))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of any array whose first axis is the batch: rows over `slice` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, partition_spec(("batch",), mesh.shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of an array that every device holds whole."""
    return NamedSharding(mesh, partition_spec((), mesh.shape))


def constrain(array: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pin an activation to its logical axes under `jax.set_mesh`; without a mesh, the array itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names):
        return array
    spec = partition_spec(axes, mesh.shape, shape=array.shape)
    pinned: jax.Array = jax.lax.with_sharding_constraint(array, spec)  # type: ignore[no-untyped-call]  # as above
    return pinned

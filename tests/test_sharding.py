"""Meshes are made as asked or refused, and the rules say where arrays live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from wizard_jax.model.sharding import (
    RULES,
    MeshConfig,
    MeshError,
    arrange_slices,
    batch_sharding,
    constrain,
    make_mesh,
    replicated,
    shardings,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(tensor=2), (1, 4, 2)),
        (MeshConfig(slice=2, fsdp=2, tensor=-1), (2, 2, 2)),
        (MeshConfig(slice=-1, fsdp=1), (8, 1, 1)),
    ],
    ids=str,
)
def test_a_mesh_uses_every_device(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("slice", "fsdp", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(tensor=3), "does not divide 8 device"),
        (MeshConfig(fsdp=2), "must multiply to 8"),
        (MeshConfig(fsdp=16), "does not divide 8 device"),
        (MeshConfig(slice=-1), "at most one may be -1"),
        (MeshConfig(tensor=0), "above 0"),
    ],
    ids=str,
)
def test_a_mesh_that_the_devices_can_not_form_is_refused(config: MeshConfig, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        make_mesh(config)


def test_a_mesh_can_use_some_devices() -> None:
    assert make_mesh(MeshConfig(), devices=jax.devices()[:2]).size == 2


@dataclass(frozen=True)
class OfSlice:
    """What arranging looks at in a device."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 1)], ids=str)
def test_only_the_slice_axis_goes_from_slice_to_slice(sizes: tuple[int, int, int]) -> None:
    devices = [OfSlice(id=number, slice_index=number % 2) for number in range(8)]
    arranged = arrange_slices(devices, sizes)
    assert arranged.shape == sizes
    assert set(arranged.flat) == set(devices)
    for part, index in zip(np.split(arranged, 2), (0, 1), strict=True):
        assert {device.slice_index for device in part.flat} == {index}


@pytest.mark.parametrize(
    ("slices", "sizes"),
    [([0, 0, 0, 0, 1, 1, 1, 1], (1, 8, 1)), ([0, 0, 0, 1, 1, 1], (3, 2, 1)), ([0, 0, 0, 1], (2, 2, 1))],
)
def test_slices_that_the_slice_axis_does_not_hold_are_refused(slices: list[int], sizes: tuple[int, int, int]) -> None:
    devices: list[Any] = [OfSlice(id=number, slice_index=index) for number, index in enumerate(slices)]
    config = MeshConfig(slice=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    with pytest.raises(MeshError, match=r"of 2 slices .*set mesh\.slice to 2"):
        make_mesh(config, devices)


def test_shardings_follow_the_rules_and_leave_whole_what_is_not_divided() -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    axes = {"table": ("vocab", "embed"), "norm": ("embed",)}
    assert shardings(axes, mesh)["table"].spec == PartitionSpec("tensor", "fsdp")
    shapes = {"table": jax.ShapeDtypeStruct((32_001, 64), "float32"), "norm": jax.ShapeDtypeStruct((64,), "float32")}
    found = shardings(axes, mesh, shapes=shapes)
    assert found["table"].spec == PartitionSpec(None, "fsdp")
    assert found["norm"].spec == PartitionSpec("fsdp")


def test_parameters_are_whole_on_each_slice() -> None:
    assert all("slice" not in over for name, over in RULES.items() if name != "batch")


def test_batches_are_split_by_rows_and_scalars_are_everywhere() -> None:
    mesh = make_mesh(MeshConfig(slice=2))
    rows = jax.device_put(jnp.zeros((16, 4)), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 4)}
    assert replicated(mesh).is_fully_replicated


def test_constraints_apply_under_a_mesh_and_nowhere_else() -> None:
    array = jnp.zeros((8, 4))
    assert constrain(array, ("batch", None)) is array
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: constrain(x, ("batch", None)))(array)
        odd = jax.jit(lambda x: constrain(x, ("batch", None)))(array[:3])
    assert split.sharding.is_equivalent_to(batch_sharding(mesh), split.ndim)
    assert odd.shape == (3, 4)

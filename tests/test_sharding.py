"""Meshes are made as asked or refused, and the rules say where arrays live."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from wizard_jax.model.sharding import (
    RULES,
    MeshConfig,
    MeshError,
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

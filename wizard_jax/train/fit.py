"""What arithmetic says of a config on a slice, before anything is compiled or any folder is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs.errors import UserError
from launch.slices import find_slice, generation_of
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params, logical_axes
from wizard_jax.model.sharding import make_mesh, partition_spec
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.step import Steps, abstract_batch, make_steps

GIB = 2**30


class FitError(UserError):
    """A model, a mesh and devices that do not go together."""


class TooLarge(FitError):
    """A step that takes more memory than there is."""


@dataclass(frozen=True, kw_only=True)
class LeastMemory:
    """Bytes on each device without which no compiler can do: what a step certainly holds at one time.

    `arguments` is exact: the state (parameters, moments) and the batch. `gradients` are those of all parameters, in
    the compute dtype at least, because their norm is taken before the first of them is used. `kept` is what remat
    keeps of every layer for the rows of one microbatch.
    """

    arguments: int
    gradients: int
    kept: int

    @property
    def total(self) -> int:
        return self.arguments + self.gradients + self.kept


def fitting_mesh(config: TrainConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a config on these devices, found right as far as arithmetic goes.

    Raises FitError: devices of another slice than the config names, a mesh that does not divide the model, a state
    that is larger than the devices; MeshError: a mesh that does not divide the devices.
    """
    check_positions(config)
    check_devices(config, devices)
    mesh = make_mesh(config.mesh, devices)
    check_divides(config.model, mesh)
    if generation_of(devices[0].device_kind):
        check_memory(mesh, least_memory(config, mesh))
    return mesh


def check_positions(config: TrainConfig) -> None:
    if config.data.seq_len > config.model.max_positions:
        raise FitError(
            f"data.seq_len is {config.data.seq_len} and model.max_positions {config.model.max_positions}: "
            "lower the one or raise the other"
        )


def check_devices(config: TrainConfig, devices: Sequence[jax.Device]) -> None:
    """Raises FitError where `slice` is set and these are other devices."""
    if config.slice is None:
        return
    row = find_slice(config.slice)
    wanted = (row.devices * config.slices, row.generation.device_kind)
    found = (len(devices), devices[0].device_kind)
    if wanted != found:
        many = f"{config.slices} of " if config.slices > 1 else ""
        raise FitError(
            f"slice is {config.slice}, {many}{row.devices} x {wanted[1]}, and here are {found[0]} x {found[1]}: start "
            "it on that slice, name the one that this is, or leave slice out"
        )


def check_divides(model: ModelConfig, mesh: Mesh) -> None:
    """Raises FitError where an axis of the mesh does not divide what it is to split.

    (Key-value heads and vocabularies may stay whole: they are small, and `left_whole` tells.)
    """
    sizes = {
        "tensor": {"model.n_heads": model.n_heads, "model.d_ff": model.d_ff},
        "fsdp": {"model.d_model": model.d_model},
    }
    for axis, split in sizes.items():
        ways = mesh.shape[axis]
        for name, size in split.items():
            if size % ways:
                fitting = math.gcd(*split.values())
                choices = [str(one) for one in range(1, min(fitting, mesh.size) + 1) if fitting % one == 0]
                rest = "slice" if axis == "fsdp" else "fsdp"
                raise FitError(
                    f"mesh.{axis} is {ways} and does not divide {name} = {size}: set it to {_or(choices)}, and "
                    f"mesh.{rest} to what is left of {mesh.size} devices"
                )


def _or(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def left_whole(model: ModelConfig, mesh: Mesh) -> list[str]:
    """Parameters with a dimension that stays whole because its mesh axis does not divide it: `layers/k over tensor`."""
    arrays = jax.tree_util.tree_leaves_with_path(abstract_params(model))
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda node: isinstance(node, tuple))
    found = []
    for (path, array), names in zip(arrays, axes, strict=True):
        asked = partition_spec(names, mesh.shape)
        given = partition_spec(names, mesh.shape, shape=array.shape)
        whole = {axis for axis, there in zip(asked, given, strict=True) if axis != there}
        found += [f"{'/'.join(str(key.key) for key in path)} over {axis}" for axis in sorted(whole)]
    return found


def least_memory(config: TrainConfig, mesh: Mesh, *, rows: int | None = None) -> LeastMemory:
    """The least that a step of `rows` rows takes on each device; of the state alone, without rows."""
    model = config.model
    # The state is the same whatever a step keeps and however it is split: one trace serves all that a search tries.
    plain = dataclasses.replace(model, remat="none", scan_unroll=1)
    steps = steps_of(dataclasses.replace(config, model=plain, gradient_accumulation=1), total_steps=1, mesh=mesh)
    width = jnp.dtype(model.compute_dtype).itemsize
    arguments = _bytes_on_a_device(steps.abstract)
    gradients = _bytes_on_a_device(steps.abstract.params) * width // 4
    if rows is None:
        return LeastMemory(arguments=arguments, gradients=gradients, kept=0)
    positions = rows // (mesh.shape["slice"] * mesh.shape["fsdp"]) * config.data.seq_len
    kept = positions // config.gradient_accumulation * model.n_layers * _kept_of_a_layer(model, mesh) * width
    if model.scan_unroll == model.n_layers:
        kept = 0  # an unrolled backward pass lets go of them one by one as gradients come
    batch = _bytes_on_a_device(abstract_batch(rows=rows, seq_len=config.data.seq_len, mesh=mesh))
    return LeastMemory(arguments=arguments + batch, gradients=gradients, kept=kept)


def _kept_of_a_layer(model: ModelConfig, mesh: Mesh) -> int:
    """Numbers that a device keeps of one position of one layer until its backward pass, at the least.

    They are what the scan over layers hands on, as `ModelConfig.remat` says; 'none' keeps what goes into products of
    matrices and what comes out of them.
    """
    d, tensor = model.d_model, int(mesh.shape["tensor"])
    heads, f = model.n_heads * model.head_dim // tensor, model.d_ff // tensor
    qkv = heads + 2 * model.n_kv_heads * model.head_dim // tensor
    widenings = 2 if model.mlp == "swiglu" else 1
    match model.remat:
        case "offload":
            return 0
        case "full":
            return d
        case "attention":
            return d + heads
        case "qkv":
            return d + heads + qkv
        case "except_mlp":
            return 2 * d + heads + qkv
        case "dots":
            return 2 * d + qkv + widenings * f
        case "none":
            return 4 * d + heads + qkv + (widenings + 1) * f


def steps_of(config: TrainConfig, *, total_steps: int, mesh: Mesh) -> Steps:
    """What `wizard train` runs, and what a plan compiles: made in one place, so that they are one thing."""
    return make_steps(
        config.model,
        optimizer=config.optimizer,
        total_steps=total_steps,
        gradient_accumulation=config.gradient_accumulation,
        mesh=mesh,
        z_loss=config.z_loss,
        guard=config.guard,
        adapter=config.adapter,
    )


def _bytes_on_a_device(tree: Any) -> int:
    def size(leaf: Any) -> int:
        bits: int = 4 if leaf.dtype == jnp.uint4 else 8 * leaf.dtype.itemsize  # JAX counts 8 for 4
        elements: int = math.prod(leaf.sharding.shard_shape(leaf.shape))
        return elements * bits // 8

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def check_memory(mesh: Mesh, least: LeastMemory) -> None:
    """Raises TooLarge where the least that a step takes is more than a program has on one of the mesh's devices."""
    generation = generation_of(mesh.devices.flat[0].device_kind)
    if generation is None or least.total <= generation.usable_bytes:
        return
    kept = f", what layers keep {least.kept / GIB:.2f}" if least.kept else ""
    raise TooLarge(
        f"the model does not fit: a step takes at least {least.total / GIB:.2f} GiB on each of {mesh.size} devices "
        f"(state and batch {least.arguments / GIB:.2f}, gradients {least.gradients / GIB:.2f}{kept}), and a program "
        f"has {generation.usable_gib} GiB on a {generation.device_kind}: it is short of "
        f"{(least.total - generation.usable_bytes) / GIB:.2f} GiB"
    )

"""The compiler of TPUs on a machine that has none: what it needs around it, and the devices it compiles for.

libtpu brings the compiler. `jax.experimental.topologies` describes the devices of a slice, which can be put into a
mesh and compiled for, and hold nothing. (GPUs have no such thing.)
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from configs.errors import UserError
from launch.slices import Slice

if TYPE_CHECKING:
    import jax

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # else it waits for the metadata server of a TPU VM
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # this and the next only end complaints that they are not set
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
)
COMPILED_WITH = ("jax", "jaxlib", "libtpu", "flax", "optax")
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
"""Environment that reaches the compiler; on the slice it must be the same."""

Versions = dict[str, str]


class CompilerError(UserError):
    """There is no compiler for TPUs here, or one that no slice would use."""


def use_tpu_compiler() -> Versions:
    """Makes this process ready to compile for TPUs, before it starts JAX; the versions that take part in it.

    Raises CompilerError: libtpu is not installed, or is not the one that the installed jax goes with on a TPU.
    """
    if not importlib.util.find_spec("libtpu"):
        raise CompilerError(
            "libtpu, which compiles for TPUs, is not installed. It comes with an extra: pip install 'wizard-jax[plan]'"
        )
    os.environ.update(ENVIRONMENT)
    versions = {name: importlib.metadata.version(name) for name in COMPILED_WITH}
    check_versions(versions, jax_requires=importlib.metadata.requires("jax") or [])
    return versions


def check_versions(versions: Mapping[str, str], *, jax_requires: list[str]) -> None:
    """Raises CompilerError unless libtpu is what `jax[tpu]` of this version asks for, as on a slice it would be."""
    for text in jax_requires:
        asked = Requirement(text)
        of_tpu = asked.marker is not None and asked.marker.evaluate({"extra": "tpu"})
        if asked.name == "libtpu" and of_tpu and versions["libtpu"] not in asked.specifier:
            raise CompilerError(
                f"libtpu {versions['libtpu']} is installed, and on a TPU jax {versions['jax']} takes "
                f"libtpu{asked.specifier}: what is compiled here would say nothing of a slice. "
                "pip install 'wizard-jax[plan]' brings the two together"
            )


def compiler_flags() -> dict[str, str]:
    """What the environment tells the compiler, and a slice must tell it too."""
    return {name: os.environ[name] for name in FLAGS if os.environ.get(name)}


@functools.cache  # devices of two descriptions are never equal, and so nor are meshes of them
def tpu_devices(row: Slice, *, slices: int = 1) -> tuple[jax.Device, ...]:
    """The devices of one or more slices, as JAX has them there; after `use_tpu_compiler`."""
    from jax.experimental import topologies

    options: dict[str, Any] = {"chips_per_host_bounds": row.machine.host_bounds}
    if row.generation.chip_config:
        options["chip_config_name"] = row.generation.chip_config
    if slices > 1:
        options["num_slices"] = slices
    described = topologies.get_topology_desc(platform="tpu", topology_name=row.key, **options)
    return tuple(described.devices)

"""What a layer keeps for its backward pass, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

from wizard_jax.model.config import ModelConfig

RESIDUAL, QKV, ATTENDED, MLP_INPUT = "residual", "qkv", "attended", "mlp_input"

KEPT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"full": (), "attention": (ATTENDED,), "qkv": (ATTENDED, QKV), "except_mlp": (ATTENDED, QKV, MLP_INPUT)}
)
"""`ModelConfig.remat` -> the named arrays that a layer keeps beside its own input."""

Arrays = TypeVar("Arrays")
Layer = Callable[..., Any]


def named(arrays: Arrays, name: str) -> Arrays:
    """The arrays, under a name by which a policy may keep them."""
    marked: Arrays = checkpoint_name(arrays, name)  # type: ignore[no-untyped-call]  # jax leaves it untyped
    return marked


def checkpointed(layer: Layer, *, config: ModelConfig) -> Layer:
    """The layer, computed again in the backward pass but for what `config.remat` keeps."""
    policies = jax.checkpoint_policies
    policy: Any
    if config.remat == "none":
        return layer
    if config.remat == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    elif config.remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[RESIDUAL],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*KEPT[config.remat])
    # CSE would undo remat across the copies of an unrolled scan.
    return jax.checkpoint(layer, policy=policy, prevent_cse=config.scan_unroll > 1)

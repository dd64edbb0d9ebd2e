"""AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101) and its learning rate."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from configs.errors import UserError
from configs.loader import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Settings of AdamW; the defaults but for `peak_lr` are those published for WizardLM (decay 0)."""

    peak_lr: float = setting(doc="learning rate at the end of the warm-up; 2e-5 for WizardLM 7B and 13B")
    warmup_steps: int = setting(0, doc="steps over which the rate rises linearly to its peak")
    schedule: Literal["cosine", "constant"] = setting("cosine", doc="the rate after the warm-up")
    final_lr_fraction: float = setting(0.0, doc="share of the peak that a cosine ends at")
    b1: float = setting(0.9, doc="decay of the mean of gradients")
    b2: float = setting(0.999, doc="decay of the mean of squared gradients")
    eps: float = setting(1e-8, doc="added to the root of the mean of squares")
    weight_decay: float = setting(0.0, doc="per step and per learning rate; never applied to norms")
    clip_norm: float | None = setting(1.0, doc="largest global norm of a gradient; None does not clip")

    def __post_init__(self) -> None:
        if self.peak_lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                "optimizer: peak_lr must be above 0, warmup_steps and weight_decay at least 0; they are"
                f" {self.peak_lr}, {self.warmup_steps} and {self.weight_decay}"
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and 0 <= self.final_lr_fraction <= 1):
            raise UserError(
                "optimizer: b1 and b2 must be in [0, 1), final_lr_fraction in [0, 1]; they are"
                f" {self.b1}, {self.b2} and {self.final_lr_fraction}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}: give a norm above 0, or None")


def learning_rate(step: jax.Array, *, config: AdamW, total_steps: int) -> jax.Array:
    """Rate of the update that ends step `step`, counted from 0: step `warmup_steps - 1` runs at the peak.

    The first step is not wasted on a rate of 0, and a cosine reaches its final value with the last step.
    """
    done = jnp.asarray(step, jnp.float32) + 1.0
    rate: jax.Array = jnp.asarray(config.peak_lr, jnp.float32)
    if config.schedule == "cosine":
        decaying_steps = max(total_steps - config.warmup_steps, 1)
        progress = jnp.clip((done - config.warmup_steps) / decaying_steps, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        rate = rate * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine)
    if config.warmup_steps:
        rate = rate * jnp.minimum(done / config.warmup_steps, 1.0)
    return rate


def make_optimizer(config: AdamW, *, total_steps: int) -> optax.GradientTransformation:
    """The Optax transformation: clip, then AdamW; the moments have the dtype of the parameters."""
    adamw = optax.adamw(
        functools.partial(learning_rate, config=config, total_steps=total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    both = optax.chain(clip, adamw)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax raises a Python float to an int32 power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updated: tuple[Any, Any] = both.update(updates, state, params)
        return updated

    return optax.GradientTransformation(both.init, update)


def decayed(params: Any) -> Any:
    """The tree of `params` with True where weight decay applies: everywhere but on the scales of norms."""

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        return not str(path[-1].key).endswith("norm")

    return jax.tree_util.tree_map_with_path(is_decayed, params)

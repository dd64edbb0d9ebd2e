"""How gradients change weights: AdamW, Adafactor and Lion, and the learning rate that they have in common.

    update = clip(gradient) -> direction (of the algorithm) + weight_decay * weight
    weight = weight - learning_rate(step) * update

The rate is a function of the run's step and not of the optimizer's own count, so that a step whose batch is left out
does not shift the schedule.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from configs.errors import UserError
from configs.loader import setting
from wizard_jax.train.factored import matrix_by_matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
    """What every optimizer is told. The defaults but for `peak_lr` are those published for WizardLM."""

    peak_lr: float = setting(doc="learning rate at the end of the warm-up; 2e-5 for WizardLM 7B and 13B")
    warmup_steps: int = setting(0, doc="steps over which the rate rises linearly to its peak")
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = setting(
        "cosine", doc="the rate after the warm-up; the last stays at the peak until a linear decay"
    )
    decay_steps: int | None = setting(None, doc="of warmup_stable_decay: the last steps, over which the rate falls")
    final_lr_fraction: float = setting(0.0, doc="share of the peak that the rate falls to")
    weight_decay: float = setting(0.0, doc="per step and per learning rate; never applied to norms and biases")
    no_decay: Literal["norms", "norms_and_embeddings"] = setting(
        "norms", doc="what weight decay leaves alone; embeddings are those of both ends"
    )
    clip_norm: float | None = setting(1.0, doc="largest global norm of a gradient; None does not clip")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == math.inf:
                raise UserError(f"optimizer.{field.name} is infinite: give a number")
        if self.peak_lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                "optimizer: peak_lr must be above 0, warmup_steps and weight_decay at least 0; they are"
                f" {self.peak_lr}, {self.warmup_steps} and {self.weight_decay}"
            )
        if not 0 <= self.final_lr_fraction <= 1:
            raise UserError(f"optimizer.final_lr_fraction is {self.final_lr_fraction}: it must be in [0, 1]")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}: give a norm above 0, or None")
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        if (self.decay_steps is not None) != (self.schedule == "warmup_stable_decay"):
            raise UserError(
                f"optimizer: decay_steps is {self.decay_steps} and schedule '{self.schedule}': "
                "'warmup_stable_decay' needs decay_steps, and no other schedule has them"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"optimizer.decay_steps is {self.decay_steps}: it must be at least 1")
        if self.schedule == "constant" and self.final_lr_fraction:
            raise UserError(
                f"optimizer.final_lr_fraction is {self.final_lr_fraction}: a constant rate does not fall; leave it at 0"
            )
        if self.no_decay != "norms" and not self.weight_decay:
            raise UserError(
                f"optimizer.no_decay is '{self.no_decay}' and weight_decay 0: there is no decay to keep off"
            )

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: it must be in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(_Common):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101); two moments per weight."""

    b1: float = setting(0.9, doc="decay of the mean of gradients")
    b2: float = setting(0.999, doc="decay of the mean of squared gradients")
    eps: float = setting(1e-8, doc="added to the root of the mean of squares")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("b1", "b2")
        if self.eps <= 0:
            raise UserError(
                f"optimizer.eps is {self.eps}: it must be above 0, or a gradient of 0 makes a step of 0 / 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(_Common):
    """Adafactor (Shazeer & Stern, arXiv 1804.04235) without momentum: a moment per row and column of a matrix."""

    lr_scale: Literal["parameter_rms", "none"] = setting(
        "parameter_rms", doc="times what the rate is: each matrix's root mean square, as in the paper, or nothing"
    )
    decay_exponent: float = setting(0.8, doc="step t keeps 1 - t^-exponent of the means of squares")
    eps: float = setting(1e-30, doc="added to squared gradients")
    clip_rms: float = setting(1.0, doc="largest root mean square of a matrix's update")
    min_factored: int = setting(128, doc="matrices with a shorter side keep a moment per weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_exponent <= 0 or self.eps <= 0 or self.clip_rms <= 0 or self.min_factored < 1:
            raise UserError(
                "optimizer: decay_exponent, eps and clip_rms must be above 0, min_factored at least 1; they are "
                f"{self.decay_exponent}, {self.eps}, {self.clip_rms} and {self.min_factored}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(_Common):
    """Lion (Chen et al., arXiv 2302.06675): the sign of one moment per weight. Its rates are 3 to 10 times lower than
    AdamW's, its decay as much higher."""

    b1: float = setting(0.9, doc="share of the mean in the mixture with the gradient whose sign is taken")
    b2: float = setting(0.99, doc="decay of the mean of gradients")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("b1", "b2")


Optimizer = AdamW | Adafactor | Lion


def check_schedule(config: Optimizer, *, total_steps: int) -> None:
    """Raises UserError if a run of that length has no room for its warm-up and its decay."""
    if config.decay_steps is not None and config.warmup_steps + config.decay_steps > total_steps:
        raise UserError(
            f"optimizer: {config.warmup_steps} warmup_steps and {config.decay_steps} decay_steps are more than the "
            f"{total_steps} steps of the run"
        )


def learning_rate(step: jax.Array, *, config: Optimizer, total_steps: int) -> jax.Array:
    """Rate of the update that ends step `step`, counted from 0: step `warmup_steps - 1` runs at the peak.

    The first step is not wasted on a rate of 0, and what falls reaches its final value with the last step. A run that
    is no longer than its warm-up only warms up.
    """
    done = jnp.asarray(step, jnp.float32) + 1.0
    falling_steps = total_steps - config.warmup_steps if config.decay_steps is None else config.decay_steps
    progress: jax.Array | float = 0.0
    if falling_steps > 0:
        progress = jnp.clip(1.0 - (total_steps - done) / falling_steps, 0.0, 1.0)
    left: jax.Array | float  # of the way from the peak to the final rate
    match config.schedule:
        case "constant":
            left = 1.0
        case "cosine":
            left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        case "linear" | "warmup_stable_decay":
            left = 1.0 - progress
    rate = config.peak_lr * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)
    warm = jnp.minimum(done / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    return jnp.asarray(rate * warm, jnp.float32)


def make_optimizer(config: Optimizer, *, axes: Any) -> optax.GradientTransformation:
    """From gradients to what the learning rate times is taken from the weights; `axes` as `model.logical_axes`.

    Moments have the dtype of the parameters.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    decay = optax.add_decayed_weights(config.weight_decay, lambda params: decayed(params, no_decay=config.no_decay))
    chain = optax.chain(clip, _direction(config, axes=axes), decay)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax raises a Python float to an int32 power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updated: tuple[Any, Any] = chain.update(gradients, state, params)
        return updated

    return optax.GradientTransformation(chain.init, update)


def _direction(config: Optimizer, *, axes: Any) -> optax.GradientTransformation:
    match config:
        case AdamW():
            return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        case Lion():
            return optax.scale_by_lion(b1=config.b1, b2=config.b2)
        case Adafactor():
            of_matrix = optax.chain(
                optax.scale_by_factored_rms(
                    decay_rate=config.decay_exponent,
                    min_dim_size_to_factor=config.min_factored,
                    epsilon=config.eps,
                ),
                optax.clip_by_block_rms(config.clip_rms),
                optax.scale_by_param_block_rms() if config.lr_scale == "parameter_rms" else optax.identity(),
            )
            return matrix_by_matrix(of_matrix, axes=axes)


def decayed(params: Any, *, no_decay: Literal["norms", "norms_and_embeddings"] = "norms") -> Any:
    """The tree of `params` with True where weight decay applies: never on norms and biases."""
    embeddings = ("embed", "unembed") if no_decay == "norms_and_embeddings" else ()

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = str(path[-1].key)
        return not name.endswith(("norm", "bias")) and name not in embeddings

    return jax.tree_util.tree_map_with_path(is_decayed, params)

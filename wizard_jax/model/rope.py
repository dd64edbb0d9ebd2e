"""Rotary position embedding (arXiv 2104.09864), and the three ways in which published models stretch it.

Shape legend: see decoder.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

from configs.errors import UserError
from configs.loader import setting

Rotation = tuple[jax.Array, jax.Array]


class RopeError(UserError):
    """Numbers by which no frequencies can be scaled."""


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every position is divided by `factor` (arXiv 2306.15595), as in Vicuna 16k."""

    factor: float = setting(doc="how many times the original length the new one is")

    def __post_init__(self) -> None:
        _check(factor=self.factor)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long waves are divided by `factor`, short ones kept, those between blended: Llama 3.1 and 3.2."""

    factor: float = setting(doc="what long waves are divided by")
    low_freq_factor: float = setting(doc="waves longer than original_positions over this are long")
    high_freq_factor: float = setting(doc="waves shorter than original_positions over this are short")
    original_positions: int = setting(doc="the length that the base model was trained with")

    def __post_init__(self) -> None:
        _check(**vars(self))
        if self.high_freq_factor <= self.low_freq_factor:
            raise RopeError(
                f"rope_scaling: high_freq_factor = {self.high_freq_factor} must be above low_freq_factor = "
                f"{self.low_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071), as Qwen 2.5 and 3 advise it beyond 32,768 positions."""

    factor: float = setting(doc="how many times the original length the new one is")
    original_positions: int = setting(doc="the length that the model was trained with")
    beta_fast: float = setting(32.0, doc="frequencies with more turns than this in that length are kept")
    beta_slow: float = setting(1.0, doc="frequencies with fewer turns than this in that length are divided by factor")
    attention_factor: float | None = setting(
        None, doc="what cosine and sine are multiplied by; None: 0.1 ln factor + 1"
    )

    def __post_init__(self) -> None:
        _check(**{name: value for name, value in vars(self).items() if value is not None})
        if self.beta_fast <= self.beta_slow:
            raise RopeError(f"rope_scaling: beta_fast = {self.beta_fast} must be above beta_slow = {self.beta_slow}")


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise RopeError(f"rope_scaling: {name} = {value}: must be above 0, and finite")


def rotary_angles(
    positions_BxL: jax.Array, *, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """Cosine and sine of the angles, float32 [B, L, 1, Dh / 2] each; YaRN's are longer than 1."""
    angles = positions_BxL.astype(jnp.float32)[..., None, None] * _frequencies(head_dim, theta=theta, scaling=scaling)
    if not isinstance(scaling, YarnScaling):
        return jnp.cos(angles), jnp.sin(angles)
    stretch = scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0)
    return jnp.cos(angles) * stretch, jnp.sin(angles) * stretch


def rotate(x_BxLxHxDh: jax.Array, rotation: Rotation) -> jax.Array:
    """Turn dimension i with i + Dh / 2, the pairs of Hugging Face checkpoints (Meta's own pair 2i with 2i + 1)."""
    cos, sin = rotation
    first, second = jnp.split(x_BxLxHxDh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxDh.dtype)


def _frequencies(head_dim: int, *, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Radians per position: [Dh / 2]."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    match scaling:
        case None:
            return frequencies
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            turns = scaling.original_positions * frequencies / (2 * math.pi)
            span = scaling.high_freq_factor - scaling.low_freq_factor
            kept = (turns - scaling.low_freq_factor) / span
        case YarnScaling():
            first, last = _yarn_bounds(scaling, head_dim=head_dim, theta=theta)
            kept = (last - jnp.arange(head_dim // 2, dtype=jnp.float32)) / (last - first)
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def _yarn_bounds(scaling: YarnScaling, *, head_dim: int, theta: float) -> tuple[float, float]:
    """The dimensions between which frequencies go over from kept to divided: equation 23 of the paper, rounded out."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(dimension(scaling.beta_fast)), 0)
    last = min(math.ceil(dimension(scaling.beta_slow)), head_dim - 1)
    return first, max(last, first + 0.001)

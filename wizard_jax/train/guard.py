"""What becomes of a step whose loss is no number or leaps: decided in the step, from figures that live in its state.

So every process decides alike, a run that is resumed decides as one that never stopped, and weights are never
touched by a batch that is refused, however late the host reads of it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from configs.errors import UserError
from configs.loader import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spike:
    """A loss that is too far above the losses before it."""

    deviations: float = setting(6.0, doc="standard deviations above the running mean from which a loss is a spike")
    window: int = setting(100, doc="steps that the running mean and deviation reach back, with falling weights")
    min_steps: int = setting(50, doc="steps before which no loss is a spike")

    def __post_init__(self) -> None:
        if not 0 < self.deviations < math.inf or self.window < 2 or self.min_steps < 2:
            raise UserError(
                "guard.spike: deviations must be above 0 and finite, window and min_steps at least 2; they are "
                f"{self.deviations}, {self.window} and {self.min_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """End the run at the first loss or gradient that is not finite, or spike."""

    spike: Spike | None = setting(None, doc="which finite losses are refused too; None: none")

    @property
    def in_a_row(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Leave such a step's batch out: weights, moments and running figures stay, and the next batch is taken."""

    spike: Spike | None = setting(None, doc="which finite losses are refused too; None: none")
    in_a_row: int = setting(10, doc="batches left out one after the other; one more ends the run")

    def __post_init__(self) -> None:
        if self.in_a_row < 1:
            raise UserError(f"guard.in_a_row is {self.in_a_row}: it must be at least 1; guard=@Stop skips none")


class GuardState(NamedTuple):
    """Scalars: what the guard remembers from step to step."""

    seen: jax.Array
    """int32; losses that `mean` and `variance` are of"""
    mean: jax.Array
    variance: jax.Array
    skips: jax.Array
    """int32; batches left out in a row, up to now"""
    stopped: jax.Array
    """bool; from then on no step changes anything"""


class Verdict(NamedTuple):
    """On one step: whether it is refused (bool), and the largest loss that would not have been (float32)."""

    refused: jax.Array
    bound: jax.Array


def start_guard() -> GuardState:
    whole, real = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return GuardState(seen=whole, mean=real, variance=real, skips=whole, stopped=jnp.zeros((), jnp.bool_))


def judge(
    state: GuardState, *, loss: jax.Array, grad_norm: jax.Array, config: Stop | Skip
) -> tuple[Verdict, GuardState]:
    """The verdict on a step, and the state after it. A refused loss does not enter the running figures."""
    bound = _bound(state, config.spike)
    refused = state.stopped | ~jnp.isfinite(loss) | ~jnp.isfinite(grad_norm) | (loss > bound)
    skips = jnp.where(refused, state.skips + 1, 0)
    stopped = state.stopped | (refused & (skips > config.in_a_row))
    taken = _with_loss(state, loss, window=(config.spike or Spike()).window)
    figures = jax.tree.map(lambda old, new: jnp.where(refused, old, new), state, taken)
    return Verdict(refused, bound), figures._replace(skips=skips, stopped=stopped)


def _bound(state: GuardState, spike: Spike | None) -> jax.Array:
    if spike is None:
        return jnp.full((), jnp.inf, jnp.float32)
    bound = state.mean + spike.deviations * jnp.sqrt(state.variance)
    return jnp.where(state.seen >= spike.min_steps, bound, jnp.inf)


def _with_loss(state: GuardState, loss: jax.Array, *, window: int) -> GuardState:
    """One loss more in mean and variance: plain ones of the first `window`, then with weights that fall by
    1 - 1/window a step (West, "Updating mean and variance estimates", CACM 22(9), 1979)."""
    seen = state.seen + 1
    share = 1.0 / jnp.minimum(seen, window).astype(jnp.float32)
    difference = loss - state.mean
    variance = (1.0 - share) * (state.variance + share * difference**2)
    return state._replace(seen=seen, mean=state.mean + share * difference, variance=variance)

"""The learning rate, the clipping and the decay are what the settings say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.errors import UserError
from wizard_jax.train.optimizer import AdamW, decayed, learning_rate, make_optimizer


def rates(config: AdamW, steps: int) -> list[float]:
    rate = jax.jit(lambda step: learning_rate(step, config=config, total_steps=steps))
    return [float(rate(jnp.int32(step))) for step in range(steps)]


def params() -> dict[str, jax.Array | dict[str, jax.Array]]:
    return {
        "embed": jnp.ones((4, 2)),
        "layers": {"attention_norm": jnp.ones((3, 2)), "q": jnp.ones((3, 2, 1, 2))},
        "final_norm": jnp.ones((2,)),
    }


def test_warm_up_rises_in_equal_steps_and_no_step_has_rate_zero() -> None:
    seen = rates(AdamW(peak_lr=1.0, warmup_steps=4, schedule="constant"), 8)
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_cosine_falls_from_the_peak_to_the_final_fraction() -> None:
    seen = rates(AdamW(peak_lr=2.0, warmup_steps=2, final_lr_fraction=0.1), 10)
    expected = [1.0, 2.0]
    expected += [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(1, 9)]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    assert seen[-1] == pytest.approx(0.2)


def test_first_step_is_the_equation_of_the_paper() -> None:
    config = AdamW(peak_lr=0.1, schedule="constant", weight_decay=0.5, clip_norm=None)
    optimizer = make_optimizer(config, total_steps=10)
    start = params()
    gradients = jax.tree.map(lambda p: -3.0 * jnp.ones_like(p), start)
    updates, _ = optimizer.update(gradients, optimizer.init(start), start)
    after = optax.apply_updates(start, updates)
    # m / sqrt(v) is the sign of the gradient at the first step; decay takes 0.1 * 0.5 of the weight of 1
    np.testing.assert_allclose(after["embed"], 1 + 0.1 - 0.05, rtol=1e-6)
    np.testing.assert_allclose(after["layers"]["q"], 1 + 0.1 - 0.05, rtol=1e-6)
    np.testing.assert_allclose(after["layers"]["attention_norm"], 1 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(after["final_norm"], 1 + 0.1, rtol=1e-6)


def test_norms_and_only_norms_are_not_decayed() -> None:
    assert decayed(params()) == {
        "embed": True,
        "layers": {"attention_norm": False, "q": True},
        "final_norm": False,
    }


def test_the_norm_of_all_gradients_together_is_clipped() -> None:
    gradients = {"embed": jnp.full((2,), 30.0), "final_norm": jnp.full((2,), 40.0)}
    start = jax.tree.map(jnp.zeros_like, gradients)
    config = AdamW(peak_lr=0.1, b1=0.0, clip_norm=1.0)
    optimizer = make_optimizer(config, total_steps=10)
    _, state = optimizer.update(gradients, optimizer.init(start), start)
    first_moment = optax.tree_utils.tree_get(state, "mu")
    norm = math.sqrt(2 * 30**2 + 2 * 40**2)
    np.testing.assert_allclose(first_moment["embed"], 30 / norm, rtol=1e-6)
    np.testing.assert_allclose(first_moment["final_norm"], 40 / norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("peak_lr", 0.0), ("b2", 1.0), ("warmup_steps", -1), ("final_lr_fraction", 2.0), ("clip_norm", 0.0)],
)
def test_settings_out_of_range_are_refused_with_their_value(name: str, wrong: float) -> None:
    change: dict[str, Any] = {name: wrong}
    with pytest.raises(UserError, match=rf"{name}.*{wrong}"):
        dataclasses.replace(AdamW(peak_lr=1.0), **change)

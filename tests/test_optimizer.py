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
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params
from wizard_jax.train.optimizer import (
    Adafactor,
    AdamW,
    Lion,
    Optimizer,
    check_schedule,
    decayed,
    learning_rate,
    make_optimizer,
)

AXES = {
    "embed": ("vocab", "embed"),
    "layers": {"attention_norm": ("layers", "embed"), "q": ("layers", "embed", "heads", "head_dim")},
    "final_norm": ("embed",),
}


def rates(config: Optimizer, steps: int) -> list[float]:
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
    optimizer = make_optimizer(config, axes=AXES)
    start = params()
    gradients = jax.tree.map(lambda p: -3.0 * jnp.ones_like(p), start)
    updates, _ = optimizer.update(gradients, optimizer.init(start), start)
    rate = learning_rate(jnp.int32(0), config=config, total_steps=10)
    after: Any = jax.tree.map(lambda p, u: p - rate * u, start, updates)
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
    gradients = {"embed": jnp.full((2, 1), 30.0), "final_norm": jnp.full((2,), 40.0)}
    start = jax.tree.map(jnp.zeros_like, gradients)
    config = AdamW(peak_lr=0.1, b1=0.0, clip_norm=1.0)
    optimizer = make_optimizer(config, axes={name: AXES[name] for name in gradients})
    _, state = optimizer.update(gradients, optimizer.init(start), start)
    first_moment = optax.tree_utils.tree_get(state, "mu")
    norm = math.sqrt(2 * 30**2 + 2 * 40**2)
    np.testing.assert_allclose(first_moment["embed"], 30 / norm, rtol=1e-6)
    np.testing.assert_allclose(first_moment["final_norm"], 40 / norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AdamW(peak_lr=2.0, warmup_steps=2, schedule="linear"), [1, 2, 1.6, 1.2, 0.8, 0.4, 0]),
        (AdamW(peak_lr=2.0, schedule="linear", final_lr_fraction=0.5), [2 - k / 7 for k in range(1, 8)]),
        (Lion(peak_lr=2.0, warmup_steps=2, schedule="warmup_stable_decay", decay_steps=2), [1, 2, 2, 2, 2, 1, 0]),
        (
            Adafactor(peak_lr=2.0, schedule="warmup_stable_decay", decay_steps=4, final_lr_fraction=0.2),
            [2, 2, 2, 1.6, 1.2, 0.8, 0.4],
        ),
    ],
    ids=lambda value: value.schedule if not isinstance(value, list) else "",
)
def test_the_rate_follows_its_schedule_to_the_last_step(config: Optimizer, expected: list[float]) -> None:
    np.testing.assert_allclose(rates(config, len(expected)), expected, rtol=1e-5, atol=1e-6)


def test_a_run_too_short_for_its_warm_up_and_decay_is_refused() -> None:
    config = AdamW(peak_lr=1.0, warmup_steps=5, schedule="warmup_stable_decay", decay_steps=6)
    check_schedule(config, total_steps=11)
    with pytest.raises(UserError, match=r"5 warmup_steps and 6 decay_steps .*10 steps"):
        check_schedule(config, total_steps=10)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [3, 5])
def test_a_run_no_longer_than_its_warm_up_only_warms_up(schedule: Any, steps: int) -> None:
    seen = rates(AdamW(peak_lr=1.0, warmup_steps=5, schedule=schedule), steps)
    np.testing.assert_allclose(seen, [0.2, 0.4, 0.6, 0.8, 1.0][:steps], rtol=1e-6)


def test_embeddings_of_both_ends_can_be_kept_from_decay_too() -> None:
    model = ModelConfig(vocab_size=8, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=2, d_ff=4)
    tree = abstract_params(model)
    assert decayed(tree, no_decay="norms_and_embeddings") == {
        "embed": False,
        "unembed": False,
        "final_norm": False,
        "layers": {name: not name.endswith("norm") for name in tree["layers"]},
    }
    assert decayed(tree)["embed"]
    assert decayed(tree)["unembed"]


@pytest.mark.parametrize("kind", [AdamW, Lion, Adafactor])
def test_a_decay_of_weights_takes_its_share_of_every_decayed_weight_and_no_other(kind: type[Optimizer]) -> None:
    start = params()
    gradients = jax.tree.map(jnp.ones_like, start)

    def updates(**settings: Any) -> Any:
        config = kind(peak_lr=1.0, **settings)
        optimizer = make_optimizer(config, axes=AXES)
        return optimizer.update(gradients, optimizer.init(start), start)[0]

    for no_decay, kept in [("norms", ()), ("norms_and_embeddings", ("embed",))]:
        more: Any = jax.tree.map(jnp.subtract, updates(weight_decay=0.5, no_decay=no_decay), updates())
        np.testing.assert_allclose(more["embed"], 0.0 if "embed" in kept else 0.5, rtol=1e-5)
        np.testing.assert_allclose(more["layers"]["q"], 0.5, rtol=1e-5)
        np.testing.assert_array_equal(more["layers"]["attention_norm"], 0.0)
        np.testing.assert_array_equal(more["final_norm"], 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"decay_steps": 3},
        {"schedule": "warmup_stable_decay"},
        {"schedule": "constant", "final_lr_fraction": 0.1},
        {"no_decay": "norms_and_embeddings"},
    ],
    ids=str,
)
def test_a_setting_that_would_have_no_effect_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="|".join(settings)):
        AdamW(peak_lr=1.0, **settings)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("peak_lr", 0.0), ("b2", 1.0), ("warmup_steps", -1), ("final_lr_fraction", 2.0), ("clip_norm", 0.0)),
        *(("eps", 0.0), ("peak_lr", math.inf), ("weight_decay", math.inf), ("clip_norm", math.inf)),
    ],
)
def test_settings_out_of_range_are_refused_with_their_value(name: str, wrong: float) -> None:
    change: dict[str, Any] = {name: wrong}
    with pytest.raises(UserError, match=rf"{name}.*{wrong}"):
        dataclasses.replace(AdamW(peak_lr=1.0), **change)


@pytest.mark.parametrize(
    ("kind", "name", "wrong"), [(Lion, "b1", 1.5), (Adafactor, "clip_rms", 0.0), (Adafactor, "min_factored", 0)]
)
def test_each_optimizer_refuses_its_own_settings_out_of_range(kind: type[Optimizer], name: str, wrong: float) -> None:
    change: dict[str, Any] = {name: wrong}
    with pytest.raises(UserError, match=rf"{name}.*{wrong}"):
        kind(peak_lr=1.0, **change)

"""A batch whose loss is no number or leaps changes nothing, on all devices and after every restart alike."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_steps import MODEL, batch_of
from tiny_flow import Flow

from configs.errors import UserError
from wizard_jax.cli import main
from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.guard import GuardState, Skip, Spike, Stop, judge, start_guard
from wizard_jax.train.optimizer import AdamW
from wizard_jax.train.step import StepMetrics, Steps, TrainState, make_steps
from wizard_jax.train.train import _restore, _trees
from wizard_jax.train.watching.metrics import read_metrics

SPIKE = Spike(deviations=3.0, window=4, min_steps=3)


def verdicts(losses: list[float], config: Stop | Skip) -> tuple[list[bool], GuardState]:
    state, refused = start_guard(), []
    for loss in losses:
        verdict, state = judge(state, loss=jnp.float32(loss), grad_norm=jnp.float32(1.0), config=config)
        refused.append(bool(verdict.refused))
    return refused, jax.device_get(state)


def test_figures_are_plain_ones_at_first_and_then_forget() -> None:
    losses = [3.0, 2.0, 2.5, 1.0, 1.5, 2.5, 2.0]
    _, state = verdicts(losses, Stop(spike=Spike(window=4, min_steps=90)))
    mean, square = np.mean(losses[:4]), np.mean(np.square(losses[:4]))
    for loss in losses[4:]:
        mean, square = 0.75 * mean + 0.25 * loss, 0.75 * square + 0.25 * loss**2
    np.testing.assert_allclose([state.mean, state.variance], [mean, square - mean**2], rtol=1e-5)
    assert state.seen == len(losses)


def test_a_spike_is_refused_from_the_bound_on_but_never_among_the_first_steps() -> None:
    calm = [2.0, 2.2, 1.8]
    bound = np.mean(calm) + 3.0 * np.std(calm)
    for last, spike in [(bound - 1e-3, False), (bound + 1e-3, True), (-50.0, False)]:
        refused, _ = verdicts([*calm, last], Skip(spike=SPIKE))
        assert refused == [False, False, False, spike]
    assert not any(verdicts([2.0, 2.2, 100.0], Skip(spike=SPIKE))[0])
    assert not any(verdicts([*calm, 100.0], Skip())[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_in_the_loss_and_in_its_gradient(value: float) -> None:
    for loss, norm in [(value, 1.0), (1.0, value)]:
        figures = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm)}
        verdict, state = judge(start_guard(), **figures, config=Stop())
        assert bool(verdict.refused)
        assert bool(state.stopped)
        assert state.seen == 0


def test_skips_are_counted_in_a_row_and_one_too_many_stops_for_good() -> None:
    config = Skip(in_a_row=2)
    nan = math.nan
    assert not verdicts([nan, nan, 1.0, nan, nan], config)[1].stopped
    refused, state = verdicts([1.0, nan, nan, nan, 1.0], config)
    assert state.stopped
    assert refused == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spike(deviations=0.0), "deviations"),
        (lambda: Spike(deviations=math.inf), "deviations"),
        (lambda: Spike(window=1), "window"),
        (lambda: Skip(in_a_row=0), "in_a_row is 0.*@Stop"),
    ],
)
def test_settings_of_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def steps_with(guard: Stop | Skip, mesh: jax.sharding.Mesh) -> Steps:
    return make_steps(
        MODEL,
        optimizer=AdamW(peak_lr=0.01, weight_decay=0.1),
        total_steps=20,
        gradient_accumulation=1,
        mesh=mesh,
        guard=guard,
    )


def updates(steps: Steps, state: TrainState, batches: list[Any], mesh: jax.sharding.Mesh) -> tuple[Any, ...]:
    """The state after each batch, and the figures of each, on the host."""
    states, seen = [jax.device_get(state)], []
    for batch in batches:
        state, metrics = steps.train(state, jax.device_put(batch, batch_sharding(mesh)))
        states.append(jax.device_get(state))
        seen.append(jax.device_get(metrics))
    return state, states, seen


def same(left: Any, right: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right)))


def broken(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**batch, "loss_weights": batch["loss_weights"] * np.float32(math.nan)}


def unlearnt(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same, with answers that no other batch has."""
    return {**batch, "targets": (batch["targets"] + 40) % MODEL.vocab_size}


def test_a_skipped_batch_leaves_weights_and_moments_and_the_next_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    mesh = make_mesh(MeshConfig(tensor=2))
    with jax.set_mesh(mesh):
        # one deviation: a loss that falls has a large one
        steps = steps_with(Skip(spike=dataclasses.replace(SPIKE, deviations=1.0), in_a_row=2), mesh)
        batch = batch_of(0)
        batches = [batch] * 5 + [broken(batch), unlearnt(batch), batch]
        _, states, seen = updates(steps, steps.init(jax.random.key(0)), batches, mesh)
        assert [bool(metrics.skipped) for metrics in seen] == [False] * 5 + [True, True, False]
        assert seen[6].loss > seen[6].loss_bound > seen[4].loss
        before, after_nan, after_spike, after = states[5:]
        for skipped in (after_nan, after_spike):
            assert same((before.params, before.opt_state), (skipped.params, skipped.opt_state))
            assert same(before.guard[:3], skipped.guard[:3])
        assert [state.step for state in states[5:]] == [5, 6, 7, 8]
        assert [state.guard.skips for state in states[5:]] == [0, 1, 2, 0]
        assert not same(after.params, before.params)

        # the rate goes on with the steps, whatever was skipped
        rates = [float(metrics.learning_rate) for metrics in seen]
        assert all(later < sooner for sooner, later in itertools.pairwise(rates))

        # and a run that is restored in between skips the same
        with CheckpointStore(tmp_path) as store:
            store.save(6, _trees(after_nan))
            store.wait()
            restored = _restore(store, steps=steps)
        assert restored is not None
        _, resumed, _ = updates(steps, restored, batches[6:], mesh)
        assert same(resumed[-1], after)


def test_once_stopped_nothing_changes_any_more_however_late_it_is_seen() -> None:
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps = steps_with(Stop(), mesh)
        batch = batch_of(0)
        _, states, seen = updates(steps, steps.init(jax.random.key(0)), [batch, broken(batch), batch], mesh)
    figures: list[StepMetrics] = seen
    assert [bool(metrics.stopped) for metrics in figures] == [False, True, True]
    assert math.isnan(figures[1].loss)
    for later in states[2:]:
        assert same(later[:3], states[1][:3]), "the state is still that of the last good step"


def test_a_run_that_diverges_ends_with_its_step_named_and_keeps_what_was_saved_before(
    flow: Flow, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    wild = ("optimizer.peak_lr=1e30", "optimizer.clip_norm=None", "steps=8", "checkpoint_every=1", "log_every=1")
    skip = ("guard=@Skip", "guard.in_a_row=2")
    assert main(flow.train_command(out, *wild)) == 2
    assert "the loss of step 2 is" in capsys.readouterr().err
    assert (out / "checkpoints" / "1.json").exists()
    assert [line["step"] for line in read_metrics(out)] == [1]

    # the guard may change at a restart; weights of 1e30 compute nothing, so skipping only ends it later
    assert main(flow.train_command(out, *wild, *skip)) == 2
    assert "the loss of step 4 is" in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["skipped"]) for line in lines] == [(1, 0), (2, 1), (3, 1)]

"""A trace holds the steps that were asked for, by their numbers, whole."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from configs.errors import UserError
from wizard_jax.train.watching.profiling import check_profile_steps, profiled


@jax.jit
def update(x: jax.Array) -> jax.Array:
    with jax.named_scope("attention"):
        return x @ x


def traced(folder: pathlib.Path) -> list[tuple[int, str]]:
    """(number of the step, name) of every step in the one trace of a folder."""
    (file,) = folder.rglob("*.xplane.pb")
    assert b"attention" in file.read_bytes()
    events = (
        event for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for event in line.events
    )
    return sorted((dict(e.stats)["step_num"], e.name) for e in events if "step_num" in dict(e.stats))


def run(folder: pathlib.Path, profile_steps: tuple[int, int] | None, *, done: int, last: int) -> None:
    x = jnp.eye(4)
    with profiled(update, profile_steps, folder=folder, done=done) as step:
        for _ in range(done, last):
            x = step(x)


def test_the_steps_asked_for_are_in_the_trace_by_number_and_no_others(tmp_path: pathlib.Path) -> None:
    run(tmp_path, (3, 2), done=0, last=6)
    assert traced(tmp_path) == [(3, "train"), (4, "train")]


def test_a_run_that_goes_on_counts_on(tmp_path: pathlib.Path) -> None:
    run(tmp_path, (8, 1), done=6, last=9)
    assert traced(tmp_path) == [(8, "train")]


def test_a_run_that_stops_in_the_middle_leaves_what_it_has(tmp_path: pathlib.Path) -> None:
    def stopped() -> None:
        with profiled(update, (1, 9), folder=tmp_path, done=0) as step:
            step(jnp.eye(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert traced(tmp_path) == [(1, "train")]


def test_steps_that_are_done_and_were_not_traced_are_said_to_be(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "profile", (3, 2), done=3, last=6)
    assert "step 3, with which the profile begins, is done" in caplog.text
    assert not list(tmp_path.iterdir())

    run(tmp_path / "traced", (3, 2), done=2, last=6)
    caplog.clear()
    run(tmp_path / "traced", (3, 2), done=4, last=6)
    assert not caplog.records


def test_without_a_request_the_step_is_what_it_was(tmp_path: pathlib.Path) -> None:
    with profiled(update, None, folder=tmp_path, done=0) as step:
        assert step is update


@pytest.mark.parametrize("asked", [(0, 1), (3, 0), (10, 2), (11, 1)])
def test_steps_that_the_run_does_not_have_are_refused(asked: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"profile_steps.* steps 1 to 10"):
        check_profile_steps(asked, total=10)
    check_profile_steps((10, 1), total=10)
    check_profile_steps(None, total=0)

"""Every step is in metrics.jsonl once, whatever was cut off, and TensorBoard shows the same."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from configs.errors import UserError
from wizard_jax.train.step import StepMetrics
from wizard_jax.train.watching.metrics import MetricsLog, Recorder, read_held_out, read_metrics
from wizard_jax.train.watching.summary import run_figures
from wizard_jax.train.watching.timing import device_memory
from wizard_jax.train.watching.utilisation import Utilisation


def log_steps(folder: pathlib.Path, first: int, last: int, *, scale: float = 1.0) -> None:
    with MetricsLog(folder, step=first - 1) as log:
        for step in range(first, last + 1):
            log.write(step, {"loss": scale / step, "timing": {"seconds": 0.5}})
        log.flush()


def test_lines_hold_the_step_what_was_measured_and_apart_from_it_the_timing(tmp_path: pathlib.Path) -> None:
    log_steps(tmp_path, 1, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0, "timing": {"seconds": 0.5}},
        {"step": 2, "loss": 0.5, "timing": {"seconds": 0.5}},
    ]


def test_steps_after_the_restored_one_are_replaced_and_none_is_there_twice(tmp_path: pathlib.Path) -> None:
    log_steps(tmp_path, 1, 9)
    log_steps(tmp_path, 5, 7, scale=2.0)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines] == [1.0, 1 / 2, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 2 / 7]


def test_a_line_cut_off_by_a_kill_is_left_out_and_written_anew(tmp_path: pathlib.Path) -> None:
    log_steps(tmp_path, 1, 3)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    log_steps(tmp_path, 3, 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", [b"\x00" * 9, b'{"step": 2, "lo', b"2", b"\xff"])
def test_a_line_damaged_in_the_middle_is_said_and_takes_no_other_with_it(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    log_steps(tmp_path, 1, 4)
    file = tmp_path / "metrics.jsonl"
    first, _, *rest = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, damage, *rest, b""]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4]
    assert "line 2 is damaged" in caplog.text


def test_a_run_that_has_not_begun_has_no_lines(tmp_path: pathlib.Path) -> None:
    assert read_metrics(tmp_path) == []


def test_flushed_lines_are_seen_by_others_before_the_log_is_closed(tmp_path: pathlib.Path) -> None:
    with MetricsLog(tmp_path, step=0) as log:
        log.write(1, {"loss": 1.0})
        log.flush()
        assert len(read_metrics(tmp_path)) == 1


def test_tensorboard_reads_the_same_values(tmp_path: pathlib.Path) -> None:
    log_steps(tmp_path, 1, 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = [(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value]
    assert [(step, value) for step, tag, value in found if tag == "loss"] == [
        (step, pytest.approx(1 / step)) for step in (1, 2, 3)
    ]
    assert {tag for _, tag, _ in found} == {"loss", "timing/seconds"}


def events(file: pathlib.Path) -> list[Event]:
    """The records of a TFRecord file: length, its checksum, bytes, their checksum."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += 12 + size + 4
    return found


def metrics(loss: float, *, skipped: bool = False, stopped: bool = False, bound: float = math.inf) -> StepMetrics:
    one = jnp.float32(1.0)
    return StepMetrics(
        loss_sum=jnp.float32(3 * loss),
        weight=jnp.float32(3),
        loss=jnp.float32(loss),
        z_loss=jnp.float32(0),
        grad_norm=one,
        learning_rate=one,
        tokens=jnp.int32(7),
        halt=jnp.int32(0),
        loss_bound=jnp.float32(bound),
        skipped=jnp.bool_(skipped),
        stopped=jnp.bool_(stopped),
    )


def test_recorder_leaves_the_newest_steps_for_later_and_loses_none(tmp_path: pathlib.Path) -> None:
    shown: list[int] = []
    with Recorder(tmp_path, step=4, total=9, progress=lambda *seen: shown.append(seen[0])) as recorder:
        for step in (5, 6, 7):
            recorder.add(step, metrics(1.0))
        recorder.record(lag=1)
        assert [line["step"] for line in read_metrics(tmp_path)] == [5, 6]
        recorder.record(lag=0)
        recorder.record(lag=0)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [5, 6, 7]
    assert lines[0].keys() == {
        *("step", "loss", "grad_norm", "learning_rate", "trained_tokens", "tokens", "skipped", "timing")
    }
    assert (lines[0]["trained_tokens"], lines[0]["tokens"]) == (3, 7)
    timing = lines[0]["timing"]
    assert timing["tokens_per_second"] == pytest.approx(7 / timing["seconds"])
    assert timing["trained_tokens_per_second"] == pytest.approx(3 / timing["seconds"])
    assert shown == [4, 6, 7]


def test_compilation_stands_apart_from_the_seconds_of_the_step_that_it_was_for(tmp_path: pathlib.Path) -> None:
    with Recorder(tmp_path, step=0, total=2, progress=lambda *_: None) as recorder:
        for step in (1, 2):
            if step == 1:
                began = time.perf_counter()
                jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) @ c, None), x, None, length=9))(jnp.eye(9))
                compiling = time.perf_counter() - began
            recorder.add(step, metrics(1.0))
            recorder.record(lag=0)
    first, second = (line["timing"] for line in read_metrics(tmp_path))
    assert 0.3 * compiling < first["compile_seconds"] <= compiling
    assert 0 < first["seconds"] < 0.7 * compiling
    assert "compile_seconds" not in second
    figures = run_figures(tmp_path)
    assert figures["seconds"] == pytest.approx(first["seconds"] + first["compile_seconds"] + second["seconds"])
    assert figures["tokens_per_second"] == np.median([first["tokens_per_second"], second["tokens_per_second"]])


def test_the_log_says_how_long_the_loop_waited_for_the_batch_of_each_step(tmp_path: pathlib.Path) -> None:
    def batches() -> Iterator[int]:
        for seconds in (0.0, 0.05, 0.0):
            time.sleep(seconds)
            yield 1

    with Recorder(tmp_path, step=0, total=3, progress=lambda *_: None) as recorder:
        for step, _ in enumerate(recorder.timed(batches()), start=1):
            recorder.add(step, metrics(1.0))
        recorder.record(lag=0)
    waits = [line["timing"]["data_wait_seconds"] for line in read_metrics(tmp_path)]
    assert waits[1] >= 0.05 > 0.04 > max(waits[0], waits[2])


def test_what_is_shown_has_the_age_of_the_checkpoint_and_what_is_being_done(tmp_path: pathlib.Path) -> None:
    seen: list[dict[str, object]] = []
    speed = Utilisation(
        flops_per_token=1.0, flops_formula="", devices=1, peak_flops_per_device=1e6, peak_from="the setting peak_flops"
    )
    with Recorder(
        tmp_path, step=4, total=9, utilisation=speed, progress=lambda *told: seen.append(dict(told[2]))
    ) as recorder:
        recorder.held_out(4, lambda loss: {"loss": loss, "tokens": 3}, 5.5)
        recorder.add(5, metrics(1.0))
        recorder.record(lag=0)
        recorder.saved(5)
        recorder.add(6, metrics(1.0))
        recorder.record(lag=0)
    assert seen[:3] == [
        {"doing": "compile the step"},
        {"doing": "measure the held-out loss"},
        {"held-out loss": 5.5, "doing": "compile the step"},
    ]
    assert list(seen[3]) == ["loss", "tokens/s", "trained tokens/s", "data wait", "MFU", "held-out loss"]
    assert seen[4]["checkpoint"] == "5, 0:00:00 ago"
    assert [line["held_out"] for line in read_held_out(tmp_path)] == [{"loss": 5.5, "tokens": 3}]


class Device:
    """As far as its memory goes."""

    def __init__(self, **stats: int) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats or None


def test_memory_is_that_of_the_fullest_device_and_absent_where_the_platform_tells_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_memory() == {}, "CPU devices tell nothing"
    half = Device(bytes_in_use=40, peak_bytes_in_use=50, bytes_limit=100, num_allocs=7)
    full = Device(bytes_in_use=30, peak_bytes_in_use=90, bytes_limit=100, num_allocs=7)
    monkeypatch.setattr(jax, "local_devices", lambda: [half, full, Device()])
    with Recorder(tmp_path, step=0, total=1, progress=lambda *_: None) as recorder:
        recorder.add(1, metrics(1.0))
        recorder.record(lag=0)
    assert read_metrics(tmp_path)[0]["memory"] == {"in_use": 30, "peak": 90, "limit": 100}


@pytest.mark.parametrize("loss", [np.nan, np.inf, 9.5])
def test_a_step_that_the_guard_stops_at_ends_the_run_and_is_named(tmp_path: pathlib.Path, loss: float) -> None:
    with Recorder(tmp_path, step=0, total=9, progress=lambda *_: None) as recorder:
        recorder.add(1, metrics(2.0))
        recorder.add(2, metrics(loss, skipped=True, stopped=True, bound=3.5))
        bound = "" if math.isnan(loss) else "losses up to 3.5"
        with pytest.raises(UserError, match=rf"loss of step 2 is {loss}.*{bound}.*guard=@Skip.*peak_lr"):
            recorder.record(lag=0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_batch_that_is_left_out_is_logged_and_warned_of_and_its_line_is_plain_json(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Recorder(tmp_path, step=0, total=9, progress=lambda *_: None) as recorder:
        recorder.add(1, metrics(math.nan, skipped=True))
        recorder.add(2, metrics(2.0))
        recorder.record(lag=0)
    assert "loss of step 1 is nan" in caplog.text
    assert [(line["loss"], line["skipped"]) for line in read_metrics(tmp_path)] == [(None, 1), (2.0, 0)]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()

"""Every tracker shows the figures that it was given, and none can stop or delay a run, or tell a secret."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import google.auth
import pytest
import wandb_file
from google.oauth2.credentials import Credentials
from tiny_run import STEPS, quiet, tiny_config, write_material
from vertex_experiments import VertexServer
from wandb.proto.wandb_internal_pb2 import Record

from configs.errors import UserError
from wizard_jax.train.config import HeldOut
from wizard_jax.train.train import train
from wizard_jax.train.watching import trackers
from wizard_jax.train.watching.metrics import flat, read_held_out, read_metrics
from wizard_jax.train.watching.tensorboard import TensorBoard
from wizard_jax.train.watching.trackers import (
    InBackground,
    RunName,
    Tracker,
    Trackers,
    VertexExperiment,
    WandB,
    check_trackers,
    open_trackers,
)

TOKEN = "ya29.CANARY-token"
KEY = "CANARY" + "0" * 34
RUN = RunName(id="0a1b2c3d", name="My run")
SETTINGS = {"optimizer.peak_lr": "2e-05", "model.d_model": "16"}
Curves = dict[tuple[int, str], float]


class Kind(Protocol):
    """How a tracker is opened, and what it shows."""

    def open(self, *, from_step: int) -> Tracker: ...

    def curves(self) -> Curves: ...


class OnDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def open(self, *, from_step: int) -> Tracker:
        return TensorBoard(self.folder, from_step=from_step)

    def curves(self) -> Curves:
        from test_metrics import events

        found: Curves = {}
        for file in sorted(self.folder.iterdir()):
            for event in events(file):
                if event.HasField("session_log"):  # a start, from which on what was there before is hidden
                    found = {at: value for at, value in found.items() if at[0] < event.step}
                found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        return found


class WeightsAndBiases:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, *, from_step: int) -> Tracker:
        del from_step
        from wizard_jax.train.watching.wandb_tracker import WandBTracker

        return WandBTracker(WandB(project="p", mode="offline"), run=RUN, folder=self.folder, settings=SETTINGS)

    def curves(self) -> Curves:
        found: Curves = {}
        for file in wandb_file.files(self.folder):
            for row in wandb_file.history(file):
                found |= {
                    (row["step"], name): value for name, value in row.items() if name != "step" and name[0] != "_"
                }
        return found


class Vertex:
    def __init__(self, server: VertexServer) -> None:
        self.server = server

    def open(self, *, from_step: int) -> Tracker:
        del from_step
        from wizard_jax.train.watching.vertex_tracker import VertexTracker

        return VertexTracker(experiment(self.server), run=RUN, settings=SETTINGS)

    def curves(self) -> Curves:
        return {(step, name): value for (name, step), value in self.server.points.items()}


def experiment(server: VertexServer) -> VertexExperiment:
    return VertexExperiment(experiment="exp", project="a-project", location="us-central1", endpoint=server.address)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    monkeypatch.setattr(google.auth, "default", lambda **_: (Credentials(token=TOKEN), "a-project"))
    with VertexServer() as serving:
        yield serving


@pytest.fixture(params=["tensorboard", "wandb", "vertex"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    match request.param:
        case "tensorboard":
            return OnDisk(tmp_path)
        case "wandb":
            return WeightsAndBiases(tmp_path)
        case _:
            return Vertex(request.getfixturevalue("server"))


def test_the_figures_of_every_line_are_there_by_step_and_name(kind: Kind) -> None:
    tracker = kind.open(from_step=0)
    tracker.write(0, {"held_out/loss": 5.0, "held_out/by_source/zoo/loss": 4.0})
    tracker.write(1, {"loss": 4.5, "timing/seconds": 0.25})
    tracker.write(2, {"loss": 4.25, "timing/seconds": 0.25})
    tracker.write(2, {"held_out/loss": 4.0})
    tracker.flush()
    tracker.close(finished=True)
    assert kind.curves() == {
        (0, "held_out/loss"): 5.0,
        (0, "held_out/by_source/zoo/loss"): 4.0,
        (1, "loss"): 4.5,
        (1, "timing/seconds"): 0.25,
        (2, "loss"): 4.25,
        (2, "timing/seconds"): 0.25,
        (2, "held_out/loss"): 4.0,
    }


def test_a_run_that_goes_on_from_an_earlier_step_shows_its_figures_in_place_of_the_lost_ones(kind: Kind) -> None:
    first = kind.open(from_step=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": 1.0})
    first.close(finished=False)
    second = kind.open(from_step=3)
    for step in (3, 4):
        second.write(step, {"loss": 2.0})
    second.close(finished=True)
    assert kind.curves() == {(1, "loss"): 1.0, (2, "loss"): 1.0, (3, "loss"): 2.0, (4, "loss"): 2.0}


def test_weights_and_biases_gets_one_run_of_a_fixed_id_with_the_settings_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")  # as good as the setting
    monkeypatch.setattr("sys.argv", ["wizard", "--CANARY-argument"])
    from wizard_jax.train.watching.wandb_tracker import WandBTracker

    for _ in range(2):
        tracker = WandBTracker(WandB(project="p"), run=RUN, folder=tmp_path, settings=SETTINGS)
        tracker.write(1, {"loss": 1.0})
        tracker.close(finished=True)
    written = [list(wandb_file.records(file)) for file in wandb_file.files(tmp_path)]
    assert len(written) == 2
    for run in (of_kind(records, "run") for records in written):
        assert (run.run.run_id, run.run.project, run.run.display_name) == (RUN.id, "p", "My run")
        told = {item.key: json.loads(item.value_json) for item in run.run.config.update}
        assert told.items() >= SETTINGS.items()
    assert not [file for file in (tmp_path / "wandb").rglob("*") if file.is_file() and b"CANARY" in file.read_bytes()]


def of_kind(records: list[Record], kind: str) -> Record:
    return next(record for record in records if record.WhichOneof("record_type") == kind)


def test_without_a_key_weights_and_biases_does_not_ask_for_one_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    from wizard_jax.train.watching.wandb_tracker import WandBTracker

    with pytest.raises(UserError, match=r"WANDB_API_KEY.*mode=offline"):
        WandBTracker(WandB(project="p"), run=RUN, folder=tmp_path, settings={})


def test_vertex_shows_settings_last_figures_and_whether_the_run_is_finished(server: VertexServer) -> None:
    def context() -> dict[str, Any]:
        store = "projects/a-project/locations/us-central1/metadataStores/default/contexts"
        metadata: dict[str, Any] = server.resources[f"{store}/exp-my-run-0a1b2c3d"]["metadata"]
        return metadata

    tracker = Vertex(server).open(from_step=0)
    assert context()["_state"] == "RUNNING"
    assert context()["_params"] == SETTINGS
    tracker.write(1, {"loss": 2.0, "grad_norm": 1.0})
    tracker.write(2, {"loss": 1.0})
    tracker.close(finished=False)
    assert context()["_state"] == "FAILED"
    again = Vertex(server).open(from_step=3)
    assert context()["_state"] == "RUNNING"
    again.write(3, {"loss": 0.5})
    again.close(finished=True)
    assert (context()["_state"], context()["_metrics"]) == ("COMPLETE", {"loss": 0.5, "grad_norm": 1.0})
    assert server.tokens == {f"Bearer {TOKEN}"}


def test_what_vertex_throws_back_is_said_without_the_token(server: VertexServer) -> None:
    server.status = 403
    with pytest.raises(UserError, match=r"Forbidden.*\*\*\*") as refused:
        Vertex(server).open(from_step=0)
    assert "CANARY" not in str(refused.value)


class Recording:
    """Keeps what it is given; `fails` is raised at every line of these steps."""

    def __init__(self, fails: Mapping[int, Exception] | None = None, *, seconds: float = 0.0) -> None:
        self.steps: list[int] = []
        self.closed: list[bool] = []
        self._fails, self._seconds = fails or {}, seconds

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        del figures
        time.sleep(self._seconds)
        if step in self._fails:
            raise self._fails[step]
        self.steps.append(step)

    def flush(self) -> None:
        pass

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)


def test_a_line_that_fails_is_said_once_and_the_ones_after_it_are_sent(caplog: pytest.LogCaptureFixture) -> None:
    inner = Recording({2: OSError(f"gone, {KEY}"), 3: OSError("gone again")})
    tracker = InBackground("Somebody", lambda: inner, secrets=[KEY])
    for step in (1, 2, 3, 4):
        tracker.write(step, {})
    tracker.close(finished=False)
    assert (inner.steps, inner.closed) == ([1, 4], [False])
    assert [record.message for record in caplog.records] == [
        "Somebody: OSError: gone, ***; the run goes on, with all figures in metrics.jsonl"
    ]


def test_one_that_can_not_be_opened_is_tried_again_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    inner, tries = Recording(), iter([OSError("no network"), OSError("no network"), None])

    def make() -> Tracker:
        failure = next(tries)
        if failure:
            raise failure
        return inner

    tracker = InBackground("Somebody", make)
    for step in (1, 2, 3, 4):
        tracker.write(step, {})
    tracker.close(finished=True)
    assert inner.steps == [3, 4]
    assert len(caplog.records) == 1


def test_one_that_hangs_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    until = threading.Event()

    def make() -> Tracker:
        until.wait()
        return Recording()

    tracker = InBackground("Somebody", make, most_waiting=3, last_seconds=0.1)
    began = time.monotonic()
    for step in range(100):
        tracker.write(step, {})
        tracker.flush()
    tracker.close(finished=True)
    assert time.monotonic() - began < 1
    assert [record.message.partition(": ")[2][:20] for record in caplog.records] == [
        "does not keep up, an",
        "does not come to an ",
    ]
    until.set()


def test_nothing_is_opened_or_written_where_nothing_is_asked_for(tmp_path: Path) -> None:
    before = threading.active_count()
    with open_trackers(Trackers(), tmp_path, settings={}) as opened:
        assert opened == ()
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


def test_a_tracker_whose_client_is_not_installed_is_refused_by_the_name_of_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wizard-jax\[wandb\]"):
        check_trackers(Trackers(wandb=WandB(project="p")))
    check_trackers(Trackers())


def test_a_run_and_its_restart_are_one_run_everywhere_and_a_server_that_fails_costs_it_nothing(
    tmp_path: Path, server: VertexServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    write_material(tmp_path)
    asked = Trackers(wandb=WandB(project="p", mode="offline"), vertex=experiment(server))
    config = tiny_config(tmp_path, held_out=HeldOut(every=4), trackers=asked)
    out = tmp_path / "run"

    server.status = 403
    train(config, out, progress=quiet)
    assert not server.points
    (said,) = [record.message for record in caplog.records if "Vertex AI Experiments: " in record.message]
    assert "Forbidden" in said

    server.status = 200
    (out / "complete.json").unlink()
    shutil.rmtree(out / "checkpoints" / str(STEPS))
    (out / "checkpoints" / f"{STEPS}.json").unlink()
    train(config, out, progress=quiet)
    assert len(wandb_file.files(out)) == 2
    lines = [*read_metrics(out), *read_held_out(out)]
    shown = {(line["step"], name): value for line in lines for name, value in flat(line).items() if name != "step"}
    deterministic = {at: value for at, value in shown.items() if not at[1].startswith("timing")}
    assert {step for step, _ in deterministic} == set(range(STEPS + 1))
    assert WeightsAndBiases(out).curves().items() >= deterministic.items()
    assert Vertex(server).curves().items() >= {at: v for at, v in deterministic.items() if at[0] > STEPS - 2}.items()
    ids = {of_kind(list(wandb_file.records(file)), "run").run.run_id for file in wandb_file.files(out)}
    assert ids == {json.loads((out / "trackers.json").read_text())["id"]}
    assert not [file for file in out.rglob("*") if file.is_file() and b"CANARY" in file.read_bytes()]
    assert "CANARY" not in caplog.text

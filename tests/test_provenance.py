"""A run folder says what it takes to repeat it, for every start, and nothing that is secret."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
from typing import Any

import jax
import pytest
from tiny_run import tiny_config

from wizard_jax.train.config import TrainConfig
from wizard_jax.train.watching import provenance
from wizard_jax.train.watching.provenance import record_start, source_of
from wizard_jax.train.watching.utilisation import Utilisation

MARK = "CANARY"
INPUTS = {"data_sha256": "1", "packed_sha256": "2", "held_out_sha256": None}
SPEED = Utilisation(
    flops_per_token=1e9, flops_formula="6 P", devices=8, peak_flops_per_device=1e14, peak_from="the setting peak_flops"
)


def git(root: pathlib.Path, *arguments: str) -> str:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    return subprocess.run(
        ["git", *who, *arguments], cwd=root, env=ours, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository with the code's packages and, beside and between them, what is nobody's business."""
    root = tmp_path / "code"
    (root / "wizard_jax").mkdir(parents=True)
    for name in ("wizard_jax/__init__.py", "wizard_jax/step.py", "wizard_jax/.env", "notes.txt"):
        (root / name).write_text("one\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


@pytest.fixture
def config(tmp_path: pathlib.Path) -> TrainConfig:
    return tiny_config(tmp_path, checkpoint_every=77)


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def start(run: pathlib.Path, config: TrainConfig, root: pathlib.Path, *, step: int = 0, **changes: Any) -> None:
    given: dict[str, Any] = {"inputs": INPUTS, "utilisation": SPEED} | changes
    record_start(run, config=config, step=step, root=root, **given)


def starts(run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_a_start_says_code_packages_devices_input_command_and_settings(
    run: pathlib.Path, config: TrainConfig, checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["wizard", "train", "a.gin", "--out", "run"])
    (checkout / "wizard_jax" / "step.py").write_text("two\n")
    start(run, config, checkout, step=5)
    told = json.loads((run / "environment.json").read_text())
    assert told["source"]["revision"] == git(checkout, "rev-parse", "HEAD").strip()
    assert told["source"]["modified"] is True
    assert told["packages"]["jax"] == jax.__version__
    assert told["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert told["input"] == INPUTS
    assert told["model_flops_utilisation"]["peak_flops_per_device"] == 1e14
    assert "tokens_per_second" in told["model_flops_utilisation"]["formula"]
    (line,) = starts(run)
    assert line["command"] == ["wizard", "train", "a.gin", "--out", "run"]
    assert (line["step"], line["environment"], line["changed"]) == (5, "environment", [])
    assert line["operational"]["checkpoint_every"] == "77"
    git(checkout, "checkout", "-q", ".")
    git(checkout, "apply", str(run / "source.diff"))
    assert (checkout / "wizard_jax" / "step.py").read_text() == "two\n"


def test_the_code_that_is_looked_at_is_what_runs() -> None:
    assert pathlib.Path(__file__).parents[1] == provenance.ROOT
    assert all((provenance.ROOT / path).exists() for path in provenance._CODE)


def test_the_same_again_adds_a_line_and_no_second_environment(
    run: pathlib.Path, config: TrainConfig, checkout: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (0, 3):
        start(run, config, checkout, step=step)
    assert [(line["start"], line["step"], line["environment"]) for line in starts(run)] == [
        (1, 0, "environment"),
        (2, 3, "environment"),
    ]
    assert sorted(file.name for file in run.iterdir()) == ["environment.json", "starts.jsonl"]
    assert not caplog.records


def test_other_packages_or_code_are_said_and_written_beside_the_first_and_not_over_it(
    run: pathlib.Path,
    config: TrainConfig,
    checkout: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING)
    start(run, config, checkout)
    first = (run / "environment.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_packages", lambda: {"jax": "99.9", "wizard-jax": "0.1.0"})
        start(run, config, checkout, step=3)
    assert f"packages.jax: {jax.__version__} -> 99.9" in starts(run)[1]["changed"]
    (checkout / "wizard_jax" / "step.py").write_text("two\n")
    start(run, config, checkout, step=4)
    (checkout / "wizard_jax" / "step.py").write_text("three\n")
    start(run, config, checkout, step=5)
    assert [line["environment"] for line in starts(run)] == [
        "environment",
        "environment-2",
        "environment-3",
        "environment-4",
    ]
    assert starts(run)[3]["changed"] == ["source.diff"]
    assert (run / "environment.json").read_bytes() == first
    assert not (run / "source.diff").exists()
    assert "+two" in (run / "source-3.diff").read_text()
    assert "+three" in (run / "source-4.diff").read_text()
    assert "goes on with other things than before" in caplog.text


def test_no_secret_of_the_environment_or_of_an_untracked_or_dot_env_file_is_written(
    run: pathlib.Path, config: TrainConfig, checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{MARK}-1")
    git(checkout, "remote", "add", "origin", f"https://user:{MARK}-2@host.example/code.git")
    (checkout / "wizard_jax" / ".env").write_text(f"KEY={MARK}-3\n")
    (checkout / "wizard_jax" / "untracked.py").write_text(f'key = "{MARK}-4"\n')
    (checkout / "notes.txt").write_text(f"{MARK}-5\n")
    (checkout / "wizard_jax" / "step.py").write_text("two\n")
    start(run, config, checkout)
    written = {file.name: file.read_text() for file in run.iterdir()}
    assert written.keys() == {"environment.json", "source.diff", "starts.jsonl"}
    assert not [name for name, text in written.items() if MARK in text]
    assert json.loads(written["environment.json"])["source"]["untracked"] == ["wizard_jax/untracked.py"]


def test_code_that_is_installed_and_no_checkout_is_named_by_its_version(
    checkout: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv"  # inside somebody's repository, which does not track it
    (installed / "wizard_jax").mkdir(parents=True)
    (installed / "wizard_jax" / "__init__.py").write_text("")
    assert "revision" not in source_of(installed).told
    assert "revision" not in source_of(tmp_path).told
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))  # as inside a git hook
    monkeypatch.setenv("GIT_WORK_TREE", str(checkout))
    assert "revision" not in source_of(tmp_path).told
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert "version" in source_of(checkout).told
    assert "revision" not in source_of(checkout).told


def test_a_line_that_a_kill_cut_off_spoils_no_other(
    run: pathlib.Path, config: TrainConfig, checkout: pathlib.Path
) -> None:
    start(run, config, checkout)
    with open(run / "starts.jsonl", "a") as file:
        file.write('{"start": 2, "ti')
    start(run, config, checkout, step=3)
    assert [line["step"] for line in starts(run)] == [0, 3]


def test_of_several_processes_only_the_first_writes(
    run: pathlib.Path, config: TrainConfig, checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    start(run, config, checkout)
    assert not list(run.iterdir())

"""An evaluation asks what is held out, writes every answer down, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_flow import Flow

from configs.folder import read_complete
from configs.interrupt import Interrupted
from configs.loader import load
from wizard_jax.cli import main
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.evaluate import evaluate
from wizard_jax.evaluate.statistics import wilson
from wizard_jax.evaluate.tasks.simulated_world import BANDS
from wizard_jax.runs import open_model

ROOT = Path(__file__).parents[1]
SLOW = """
import pathlib, sys, time
from configs.loader import load
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.evaluate import evaluate
config, out = load(EvalConfig, [], sys.argv[2:]), pathlib.Path(sys.argv[1])
evaluate(config, out, progress=lambda done, total, facts: time.sleep(0.3))
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "simulated_world.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluation(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "eval"
    assert main(flow.eval_command(out, "label=tiny")) == 0
    return out


def test_results_are_those_of_the_rows(flow: Flow, evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    assert results == read_complete(evaluation, stage="eval")
    answers = rows(evaluation)
    assert [row["band"] for row in answers] == [band for band in BANDS for _ in range(2)]
    for band in BANDS:
        correct = sum(row["correct"] for row in answers if row["band"] == band)
        assert results["bands"][band] == wilson(correct, 2)._asdict()
    assert all(row["correct"] == (row["extracted"] == row["target"]) for row in answers)
    assert (results["label"], results["model"], results["step"]) == ("tiny", str(flow.run), 2)
    assert (results["untraced"], results["held_out"]["unparsed"]) == ("", 0)
    checked = results["held_out"]["checked_against"]
    assert [one["folder"] for one in checked] == [str(flow.evolved)]
    assert checked[0]["records"] == read_complete(flow.evolved)["records"]
    assert checked[0]["sha256"] == read_complete(flow.evolved)["dataset_sha256"]


def test_a_finished_evaluation_is_not_done_again(flow: Flow, evaluation: Path) -> None:
    before = (evaluation / "simulated_world.jsonl").stat().st_mtime_ns
    assert main(flow.eval_command(evaluation, "label=another name", "batch_size=3")) == 0
    assert (evaluation / "simulated_world.jsonl").stat().st_mtime_ns == before


def test_killed_with_no_warning_it_goes_on_with_the_same_rows(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    settings = [word for word in flow.eval_command(out, "batch_size=1") if "=" in word]
    command = [sys.executable, "-c", SLOW, str(out)]
    child = subprocess.Popen([*command, *settings], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not (out / "simulated_world.jsonl").exists() or len(rows(out)) < 2:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    there = (out / "simulated_world.jsonl").read_text()
    assert 2 <= there.count("\n") < 8
    with (out / "simulated_world.jsonl").open("a") as file:
        file.write('{"id": "cut off')
    assert main(flow.eval_command(out, "batch_size=8")) == 0
    assert (out / "simulated_world.jsonl").read_text().startswith(there)
    assert rows(out) == rows(evaluation)


def test_rows_damaged_in_the_middle_are_asked_again(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    shutil.copytree(evaluation, out)
    (out / "complete.json").unlink()
    file = out / "simulated_world.jsonl"
    lines = file.read_bytes().splitlines()
    lines[1:5] = [b"\x00" * 40, b'{"id": "1 step', b"17", b'{"id": "\xff"}']
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert main(flow.eval_command(out, "label=tiny")) == 0
    assert sorted(rows(out), key=str) == sorted(rows(evaluation), key=str)
    assert read_complete(out) == read_complete(evaluation)


def test_told_to_stop_it_keeps_its_answers_and_ends_with_42(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = flow.eval_command(out, "batch_size=3")
    config = load(EvalConfig, [], [word for word in command if "=" in word])
    with pytest.raises(Interrupted) as stopped:
        evaluate(config, out, progress=lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped.value.exit_code == 42
    assert len(rows(out)) == 3
    assert not (out / "complete.json").exists()
    assert main(command) == 0
    assert rows(out) == rows(evaluation)


def test_answers_of_another_checkpoint_are_not_mixed_in(flow: Flow, tmp_path: Path) -> None:
    """As when a run trains on between two starts of its evaluation."""
    run, out = tmp_path / "run", tmp_path / "eval"
    shutil.copytree(flow.run, run)
    held = tmp_path / "held"
    shutil.copytree(run / "checkpoints", held)
    for left in ("2", "2.json"):
        _remove(run / "checkpoints" / left)
    assert main(flow.eval_command(out, f"model={run}")) == 0
    (out / "complete.json").unlink()
    assert {row["step"] for row in rows(out)} == {1}
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(held, run / "checkpoints")
    assert main(flow.eval_command(out, f"model={run}")) == 0
    assert [row["step"] for row in rows(out)] == [2] * 8


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_is_not_asked_before_its_own_data_is_held_out(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert main(flow.evolve_command(other, "seeds.seed=5")) == 0
    assert main(flow.eval_command(tmp_path / "eval", f"task.held_out_from=({str(other)!r},)")) == 2
    assert f"was trained on {flow.evolved}" in capsys.readouterr().err
    assert not (tmp_path / "eval" / "complete.json").exists()


def test_nor_before_the_data_of_the_run_that_its_weights_come_from(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, second = tmp_path / "other", tmp_path / "second"
    assert main(flow.evolve_command(other, "seeds.seed=5")) == 0
    train = flow.train_command(second, "init=@FromCheckpoint", f"init.path={flow.run}", f"data.dataset={other}")
    assert main([*train]) == 0
    asked = (f"model={second}", f"task.held_out_from=({str(other)!r},)")
    assert main(flow.eval_command(tmp_path / "eval", *asked)) == 2
    assert f"was trained on {flow.evolved}" in capsys.readouterr().err
    both = f"task.held_out_from=({str(other)!r}, {str(flow.evolved)!r})"
    assert main(flow.eval_command(tmp_path / "both", f"model={second}", both)) == 0


def test_an_exported_folder_gives_the_same_answers(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    assert main(["export", str(flow.run), "--out", str(hf), "--dtype", "float32"]) == 0
    assert main(flow.eval_command(tmp_path / "eval", f"model={hf}")) == 0
    assert read_complete(tmp_path / "eval")["untraced"] == str(hf)
    told = [{**row, "step": 2} for row in rows(tmp_path / "eval")]
    assert told == rows(evaluation)


def test_a_run_that_began_from_an_imported_model_names_it_as_of_unknown_training(flow: Flow, tmp_path: Path) -> None:
    hf, imported, run = tmp_path / "hf", tmp_path / "imported", tmp_path / "run"
    assert main(["export", str(flow.run), "--out", str(hf)]) == 0
    assert main(["import", str(hf), "--out", str(imported)]) == 0
    assert main(flow.train_command(run, "init=@FromCheckpoint", f"init.path={imported}")) == 0
    for path, trained_on, untraced in (
        (flow.run, (str(flow.evolved),), ""),
        (imported, (), str(imported)),
        (run, (str(flow.evolved),), str(imported)),
    ):
        model = open_model(path)
        assert (model.trained_on, model.untraced) == (trained_on, untraced)


def test_an_imported_model_that_names_no_chat_format_is_refused(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf, imported = tmp_path / "hf", tmp_path / "imported"
    assert main(["export", str(flow.run), "--out", str(hf)]) == 0
    (hf / "tokenizer_config.json").unlink()
    assert main(["import", str(hf), "--out", str(imported)]) == 0
    assert main(flow.eval_command(tmp_path / "eval", f"model={imported}")) == 2
    assert "--chat-format" in capsys.readouterr().err

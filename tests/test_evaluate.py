"""An evaluation asks what is held out, writes every answer down, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
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
from wizard_jax.evaluate.statistics.shares import wilson
from wizard_jax.evaluate.tasks.simulated_world import BANDS
from wizard_jax.progress import nobody
from wizard_jax.runs import open_model

ROOT = Path(__file__).parents[1]
SLOW = """
import pathlib, sys, time
from configs.loader import load
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.evaluate import evaluate
file, out = sys.argv[1], pathlib.Path(sys.argv[2])
def tell(done, total, facts):
    print(done, flush=True)
    time.sleep(0.3)
evaluate(load(EvalConfig, [file], sys.argv[3:]), out, progress=tell)
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def config_of(command: list[str]) -> EvalConfig:
    return load(EvalConfig, [command[1]], [word for word in command if "=" in word])


@pytest.fixture(scope="module")
def evaluation(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "eval"
    assert main(flow.eval_command(out, "models.tiny.label=the tiny one")) == 0
    return out


def test_results_are_those_of_the_rows(flow: Flow, evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    assert results == read_complete(evaluation, stage="eval")
    answers, told = rows(evaluation), results["models"]["tiny"]
    assert [row["band"] for row in answers] == [band for band in BANDS for _ in range(2)]
    for band in BANDS:
        correct = sum(row["scores"]["exact match"] for row in answers if row["band"] == band)
        assert told["bands"][band]["exact match"] == wilson(int(correct), 2)._asdict()
    assert all(row["scores"]["exact match"] == (row["extracted"] == row["target"]) for row in answers)
    assert (told["label"], told["model"], told["step"]) == ("the tiny one", str(flow.run), 2)
    assert (told["answered"], told["not_answered"], told["untraced"]) == (8, {}, "")
    held_out = results["task"]["held_out"]
    assert held_out["unparsed"] == 0
    (checked,) = held_out["checked_against"]
    assert checked["folder"] == str(flow.evolved)
    assert checked["records"] == read_complete(flow.evolved)["records"]
    assert checked["sha256"] == read_complete(flow.evolved)["dataset_sha256"]


def test_a_finished_evaluation_is_not_done_again(flow: Flow, evaluation: Path) -> None:
    before = (evaluation / "answers.jsonl").stat().st_mtime_ns
    assert main(flow.eval_command(evaluation, "models.tiny.label=another name", "models.tiny.rows=3")) == 0
    assert (evaluation / "answers.jsonl").stat().st_mtime_ns == before


def test_killed_with_no_warning_it_asks_only_for_what_is_missing(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = flow.eval_command(out, "models.tiny.rows=1")
    settings = [word for word in command if "=" in word]
    line = [sys.executable, "-c", SLOW, str(ROOT / command[1]), str(out), *settings]
    child = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while child.stdout.readline().strip() != "3":
        assert child.poll() is None
    child.kill()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert not (out / "answers.jsonl").exists()
    facts: dict[str, int | str | float] = {}
    evaluate(config_of(command), out, progress=lambda *told: facts.update(told[2]))
    assert int(facts["from the journal"]) >= 3
    assert int(facts["asked"]) == 8 - int(facts["from the journal"])
    assert rows(out) == rows(evaluation)


def test_told_to_stop_it_keeps_its_answers_and_ends_with_42(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = flow.eval_command(out, "models.tiny.rows=1")
    with pytest.raises(Interrupted) as stopped:
        evaluate(config_of(command), out, progress=lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped.value.exit_code == 42
    assert not (out / "complete.json").exists()
    facts: dict[str, int | str | float] = {}
    evaluate(config_of(command), out, progress=lambda *told: facts.update(told[2]))
    assert int(facts["from the journal"]) >= 1
    assert rows(out) == rows(evaluation)


def test_answers_of_another_checkpoint_are_not_mixed_in(flow: Flow, tmp_path: Path) -> None:
    """As when a run trains on between two starts of its evaluation."""
    run, out = tmp_path / "run", tmp_path / "eval"
    shutil.copytree(flow.run, run)
    held = tmp_path / "held"
    shutil.copytree(run / "checkpoints", held)
    for left in ("2", "2.json"):
        _remove(run / "checkpoints" / left)
    asked = []

    command = flow.eval_command(out, f"models.tiny.path={run}")
    assert evaluate(config_of(command), out, progress=nobody)["models"]["tiny"]["step"] == 1
    (out / "complete.json").unlink()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(held, run / "checkpoints")
    assert (
        evaluate(config_of(command), out, progress=lambda *told: asked.append(told[2]["asked"]))["models"]["tiny"][
            "step"
        ]
        == 2
    )
    assert asked[-1] == 8


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_several_models_answer_the_same_items_and_hosted_ones_are_asked_by_the_same_code(
    flow: Flow, evaluation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    others = ("models.again=@Local", f"models.again.path={flow.run}", "models.teacher=@Simulated")
    assert main(flow.eval_command(out, *others)) == 0
    told = read_complete(out)["models"]
    assert list(told) == ["tiny", "again", "teacher"]
    assert told["teacher"]["scores"]["exact match"]["share"] == 1.0
    by_model = {name: [{**row, "model": ""} for row in rows(out) if row["model"] == name] for name in told}
    assert by_model["tiny"] == by_model["again"] == [{**row, "model": ""} for row in rows(evaluation)]


def test_each_item_is_asked_as_often_as_there_are_samples_and_intervals_are_over_items(
    flow: Flow, tmp_path: Path
) -> None:
    """The first of several samples is what a single one would be: asked for already, it is not asked again."""
    asked = ("models.teacher=@Simulated", "models.teacher.faults.refusal=0.4", "models.tiny=None", "temperature=1.0")
    command = [word for word in flow.eval_command(tmp_path / "one", *asked) if not word.startswith("models.tiny.")]
    assert main(command) == 0
    several = [*command, "samples=6"]
    several[several.index(str(tmp_path / "one"))] = str(tmp_path / "six")
    assert main(several) == 0
    one, six = rows(tmp_path / "one"), rows(tmp_path / "six")
    assert [(row["id"], row["sample"]) for row in six] == [(row["id"], n) for row in one for n in range(6)]
    assert [row["answers"] for row in six if row["sample"] == 0] == [row["answers"] for row in one]
    by_item = [{row["answers"][0] for row in six if row["id"] == item["id"]} for item in one]
    assert max(map(len, by_item)) > 1
    told = read_complete(tmp_path / "six")["models"]["teacher"]["scores"]["exact match"]
    right = sum(row["scores"]["exact match"] for row in six)
    assert (told["trials"], told["share"]) == (8, pytest.approx(right / 48))
    assert told["low"] < told["share"] < told["high"]
    assert main([*command, "samples=2", "temperature=0.0"]) == 2


def test_a_budget_ends_an_evaluation_with_3_and_a_larger_one_goes_on(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    asked = ("models.teacher=@Simulated", "models.tiny=None")
    command = [word for word in flow.eval_command(out, *asked) if not word.startswith("models.tiny.")]
    assert main([*command, "budget.calls=3"]) == 3
    assert not (out / "complete.json").exists()
    assert main(command) == 0
    assert read_complete(out)["spent"]["calls"] == 8


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
    asked = (f"models.tiny.path={second}", f"task.held_out_from=({str(other)!r},)")
    assert main(flow.eval_command(tmp_path / "eval", *asked)) == 2
    assert f"was trained on {flow.evolved}" in capsys.readouterr().err
    both = f"task.held_out_from=({str(other)!r}, {str(flow.evolved)!r})"
    assert main(flow.eval_command(tmp_path / "both", f"models.tiny.path={second}", both)) == 0


def test_an_exported_folder_gives_the_same_answers(flow: Flow, evaluation: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    assert main(["export", str(flow.run), "--out", str(hf), "--dtype", "float32"]) == 0
    assert main(flow.eval_command(tmp_path / "eval", f"models.tiny.path={hf}")) == 0
    assert read_complete(tmp_path / "eval")["models"]["tiny"]["untraced"] == str(hf)
    assert rows(tmp_path / "eval") == rows(evaluation)


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
    assert main(flow.eval_command(tmp_path / "eval", f"models.tiny.path={imported}")) == 2
    assert "--chat-format" in capsys.readouterr().err

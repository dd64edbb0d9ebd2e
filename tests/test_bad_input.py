"""What a user can get wrong: exit code 2, one message that names it and says what to do, and nothing lost.

Each row prepares something wrong in an empty folder and gives the command that meets it, the words that the message
must hold, and the folder that must not look finished afterwards.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forged_evaluation import forge_evaluation
from tiny_flow import Flow

from data_gen.shards import read_dataset
from wizard_jax.cli import main
from wizard_jax.runs import open_model

EVOLVE = "configs/evolve/quickstart.gin"


@dataclass(frozen=True)
class Mistake:
    """A command that meets something wrong, and what it must say."""

    command: list[str]
    says: tuple[str, ...]
    out: Path
    environment: dict[str, str] = field(default_factory=dict)


Prepare = Callable[[Flow, Path], Mistake]
MISTAKES: dict[str, Prepare] = {}


def row(prepare: Prepare) -> Prepare:
    MISTAKES[prepare.__name__.replace("_", " ")] = prepare
    return prepare


# --- configs


def in_a_file(name: str, text: str, *says: str) -> None:
    def prepare(flow: Flow, folder: Path) -> Mistake:
        del flow
        (folder / "mine.gin").write_text(text)
        (folder / "other.gin").write_text("include 'mine.gin'\n")
        out = folder / "out"
        return Mistake(["evolve", str(folder / "mine.gin"), "--out", str(out)], (*says,), out)

    MISTAKES[name] = prepare


BASE = f"include '{EVOLVE.removeprefix('configs/')}'\n"
in_a_file("a setting that there is not", f"{BASE}\nroundz = 3\n", "mine.gin:3", "roundz", "did you mean rounds?")
in_a_file("a setting of the wrong type", f"{BASE}rounds = 'four'\n", "mine.gin:2", "rounds", "'four'")
in_a_file("a fraction for a whole number", f"{BASE}rounds = 2.5\n", "mine.gin:2", "rounds", "2.5")
in_a_file("a setting given twice in one file", f"{BASE}rounds = 3\nrounds = 4\n", "mine.gin:3", "rounds", "mine.gin:2")
in_a_file("a type that is none of the allowed", f"{BASE}llm = @Simulatd\n", "mine.gin:2", "Simulatd", "Simulated")
in_a_file("a macro that nothing uses", f"{BASE}ROUNDS = 3\n", "mine.gin:2", "ROUNDS", "no setting uses this macro")
in_a_file("a macro that there is not", f"{BASE}rounds = %ROUNDZ\n", "mine.gin:2", "ROUNDZ", "not defined")
in_a_file("macros in a circle", f"{BASE}A = %B\nB = %A\nrounds = %A\n", "mine.gin", "cycle", "%A -> %B -> %A")
in_a_file("files in a circle", "include 'other.gin'\n", "mine.gin", "other.gin", "cycle")
in_a_file("a file that is not there", "include 'gone.gin'\n", "mine.gin:1", "gone.gin")
in_a_file("required settings left open", "rounds = 2\n", "seeds: required", "llm: required")
in_a_file("text that is no gin", "rounds == 3\n", "mine.gin:1")
in_a_file("a value that can not be", f"{BASE}rounds = -1\n", "rounds = -1", "at least 0")


@row
def a_config_that_is_not_there(_: Flow, folder: Path) -> Mistake:
    return Mistake(["evolve", "gone.gin", "--out", str(folder / "out")], ("gone.gin",), folder / "out")


@row
def a_setting_given_twice_on_the_command_line(_: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    command = ["evolve", EVOLVE, "rounds=1", "rounds=2", "--out", str(out)]
    return Mistake(command, ("command line", "rounds", "given twice"), out)


# --- seeds


def seeds(name: str, text: str, *says: str) -> None:
    def prepare(flow: Flow, folder: Path) -> Mistake:
        del flow
        (folder / "seeds.jsonl").write_text(text)
        out = folder / "out"
        command = ["evolve", "configs/evolve/simulated_server.gin", f"seeds.path={folder / 'seeds.jsonl'}"]
        return Mistake([*command, "--out", str(out)], ("seeds.jsonl", *says), out)

    MISTAKES[name] = prepare


GOOD = '{"instruction": "Name a river."}\n'
seeds("seeds that are not JSON", f"{GOOD}Name a river.\n{GOOD}{{'a'}}\n", "rows 2, 4", "not JSON", "mend or remove")
seeds("seeds cut off in an array", f"[{GOOD}, ", "not JSON", "line 2", "mend it")
seeds("seeds of an unknown schema", f'{GOOD}{{"text": "x"}}\n', "row 2", "'text'", "Known schemas", "Alpaca")
seeds("a file of seeds that is empty", "\n", "is empty", "at least one instruction")
seeds(
    "empty instructions",
    f'{GOOD}{{"instruction": "  "}}\n{GOOD}{{"instruction": ""}}\n',
    "2 of 4 rows",
    "rows 2, 4",
    "the instruction is empty",
)


@row
def seeds_that_are_not_there(_: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    command = ["evolve", "configs/evolve/simulated_server.gin", "seeds.path=gone.jsonl", "--out", str(out)]
    return Mistake(command, ("gone.jsonl", "seeds.path must name"), out)


# --- folders of another identity


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@row
def the_folder_of_another_data_set(flow: Flow, folder: Path) -> Mistake:
    out = copied(flow.evolved, folder / "out")
    (out / "complete.json").unlink()
    return Mistake(flow.evolve_command(out, "seed=7"), (str(out), "seed: 0 -> 7", "another --out"), out)


@row
def the_folder_of_another_run(flow: Flow, folder: Path) -> Mistake:
    out = copied(flow.run, folder / "out")
    (out / "complete.json").unlink()
    return Mistake(flow.train_command(out, "seed=7"), (str(out), "seed: 0 -> 7", "another --out"), out)


@row
def the_folder_of_another_stage(flow: Flow, folder: Path) -> Mistake:
    out = copied(flow.evolved, folder / "out")
    (out / "complete.json").unlink()
    return Mistake(flow.train_command(out), (str(out), "made by wizard evolve", "another --out"), out)


@row
def a_folder_that_holds_something_else(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    return Mistake(flow.evolve_command(out), (str(out), "thesis.tex", "another --out"), out)


@row
def an_export_over_something_else(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    return Mistake(["export", str(flow.run), "--out", str(out)], (str(out), "exists already", "another folder"), out)


# --- journals


def journal(name: str, damage: Callable[[Path], None], *says: str) -> None:
    def prepare(flow: Flow, folder: Path) -> Mistake:
        out = copied(flow.evolved, folder / "out")
        (out / "complete.json").unlink()
        damage(out / "journal.sqlite")
        return Mistake(flow.evolve_command(out), ("journal.sqlite", *says), out)

    MISTAKES[name] = prepare


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def as_format_2(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 2")


def text_instead(file: Path) -> None:
    file.write_text("years of work")


journal("a flipped journal", flip, "damaged", "put back a copy", "pay anew")
journal("a truncated journal", lambda file: os.truncate(file, 10_000), "damaged", "put back a copy", "pay anew")
journal("a journal of an older format", as_format_2, "format 2", "use its version")
journal("a journal that is none", text_instead, "put back a copy", "pay anew")


# --- shards


def shard(name: str, damage: Callable[[Path], None], *says: str) -> None:
    def prepare(flow: Flow, folder: Path) -> Mistake:
        evolved, out = copied(flow.evolved, folder / "evolved"), folder / "out"
        (file,) = (evolved / "dataset").glob("*.tfrecord*")
        damage(file)
        command = flow.train_command(out, f"data.dataset={evolved}", f"pack_cache={folder / 'packed'}")
        return Mistake(command, (file.name, *says), out)

    MISTAKES[name] = prepare


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


shard("a truncated shard", truncate, "record", "at byte", "ends in the middle", "again")
shard("a flipped shard", flip, "record", "at byte", "damaged", "again")
shard("a missing shard", Path.unlink, "lacks", "again")


@row
def a_data_set_that_is_not_finished(flow: Flow, folder: Path) -> Mistake:
    evolved, out = folder / "evolved", folder / "out"
    evolved.mkdir()
    return Mistake(flow.train_command(out, f"data.dataset={evolved}"), (str(evolved), "no finished data set"), out)


# --- checkpoints


def without_weights(run: Path, *steps: int) -> Path:
    for step in steps:
        next((run / "checkpoints" / str(step) / "params").rglob("d/*")).unlink()
    return run


@row
def a_damaged_checkpoint_that_was_asked_for(flow: Flow, folder: Path) -> Mistake:
    run, out = without_weights(copied(flow.run, folder / "run"), 1), folder / "out"
    command = ["export", str(run), "--step", "1", "--out", str(out)]
    return Mistake(command, ("checkpoint 1 is damaged", "is missing", "Other steps here: 2"), out)


@row
def a_damaged_checkpoint_that_was_to_be_evaluated(flow: Flow, folder: Path) -> Mistake:
    run, out = without_weights(copied(flow.run, folder / "run"), 1), folder / "out"
    command = flow.eval_command(out, f"models.tiny.path={run}", "models.tiny.step=1")
    return Mistake(command, ("checkpoint 1 is damaged", "is missing"), out)


@row
def a_checkpoint_that_there_is_not(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    return Mistake(["export", str(flow.run), "--step", "9", "--out", str(out)], ("no checkpoint 9", "1, 2"), out)


@row
def no_complete_checkpoint_left(flow: Flow, folder: Path) -> Mistake:
    run, out = without_weights(copied(flow.run, folder / "run"), 1, 2), folder / "out"
    return Mistake(["export", str(run), "--out", str(out)], ("no complete checkpoint is left", "is missing"), out)


@row
def no_complete_checkpoint_to_go_on_from(flow: Flow, folder: Path) -> Mistake:
    run = without_weights(copied(flow.run, folder / "run"), 1, 2)
    (run / "complete.json").unlink()
    return Mistake(flow.train_command(run), ("no complete checkpoint is left", "is missing"), run)


# --- training


@row
def an_unknown_chat_format(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    says = ("unknown chat format 'vicunna'", "did you mean vicuna", "wizardlm_7b")
    return Mistake(flow.train_command(out, "data.chat_format=vicunna"), says, out)


@row
def an_unknown_chat_format_of_a_tokenizer(flow: Flow, folder: Path) -> Mistake:
    out = folder / "tokenizer.model"
    command = ["tokenizer", str(flow.evolved), "--chat-format", "Alpaka", "--out", str(out)]
    return Mistake(command, ("unknown chat format 'Alpaka'", "did you mean alpaca"), out)


@row
def an_unknown_chat_format_of_an_export(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    command = ["export", str(flow.run), "--chat-format", "gibberish", "--out", str(out)]
    return Mistake(command, ("unknown chat format 'gibberish'", "There are vicuna"), out)


@row
def an_unknown_chat_format_of_an_import(flow: Flow, folder: Path) -> Mistake:
    hf, out = folder / "hf", folder / "out"
    assert main(["export", str(flow.run), "--out", str(hf)]) == 0
    command = ["import", str(hf), "--chat-format", "vicunna", "--out", str(out)]
    return Mistake(command, ("unknown chat format 'vicunna'", "did you mean vicuna"), out)


@row
def a_conversation_that_is_too_long(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    says = ("longer than data.seq_len = 16", "record '", "data.truncation")
    return Mistake(flow.train_command(out, "data.seq_len=16"), says, out)


@row
def devices_that_the_mesh_does_not_divide(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    return Mistake(flow.train_command(out, "mesh.fsdp=3"), ("fsdp=3", "does not divide 8 device", "-1"), out)


@row
def rows_that_the_mesh_does_not_divide(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    return Mistake(flow.train_command(out, "batch.rows=6"), ("6", "8"), out)


@row
def a_tokenizer_that_is_none(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    (folder / "tokenizer.model").write_text("not a model")
    command = flow.train_command(out, f"tokenizer={folder / 'tokenizer.model'}")
    return Mistake(command, ("tokenizer.model", "not a SentencePiece model"), out)


@row
def a_missing_extra(flow: Flow, folder: Path) -> Mistake:
    extra, module = next((e, m) for e, m in (("tpu", "libtpu"), ("cuda", "jax_cuda12_plugin")) if not _installed(m))
    out = folder / "out"
    says = (module, f"pip install 'wizard-jax[{extra}]'")
    return Mistake(flow.train_command(out), says, out, environment={"JAX_PLATFORMS": extra})


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# --- evaluation and report


@row
def data_that_is_not_held_out(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    other = copied(flow.evolved, folder / "other")
    command = flow.eval_command(out, f"task.held_out_from=({str(other)!r},)")
    return Mistake(command, (str(flow.run), str(flow.evolved), "held_out_from", "add it"), out)


@row
def a_model_that_is_not_there(flow: Flow, folder: Path) -> Mistake:
    out = folder / "out"
    return Mistake(
        flow.eval_command(out, "models.tiny.path=gone"), ("gone does not exist", "a run of wizard train"), out
    )


@row
def answers_to_no_prompt_at_once(flow: Flow, folder: Path) -> Mistake:
    return Mistake(
        flow.eval_command(folder / "out", "models.tiny.rows=0"), ("models.tiny.rows is 0", "at least 1"), folder / "out"
    )


@row
def evaluations_that_asked_other_tasks(_: Flow, folder: Path) -> Mistake:
    evaluations = [str(forge_evaluation(folder / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))]
    command = ["report", *evaluations, "--out", str(folder / "report.html")]
    return Mistake(command, ("did not answer the same tasks", "task.seed"), folder / "report.html")


# --- the contract


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; the locks that stages leave are no content."""
    files = (file for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", MISTAKES)
def test_it_ends_with_2_and_one_message_and_loses_nothing(
    name: str, flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake = MISTAKES[name](flow, tmp_path)
    before = contents(tmp_path)
    for variable, value in mistake.environment.items():
        monkeypatch.setenv(variable, value)
    capsys.readouterr()
    assert main(mistake.command) == 2
    told = capsys.readouterr().err
    assert told.startswith("wizard: ")
    assert told.count("wizard: ") == 1
    assert "Traceback" not in told
    for part in mistake.says:
        assert part in told
    assert {file: data for file, data in contents(tmp_path).items() if file in before} == before
    assert not mistake.out.is_file()
    assert not (mistake.out / "complete.json").exists()
    assert not (mistake.out / "config.json").exists()
    assert not list(mistake.out.rglob("*.safetensors"))


def test_a_process_says_nothing_else_and_ends_with_2(flow: Flow, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wizard_jax", *flow.train_command(tmp_path / "out", "mesh.fsdp=3")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("wizard: mesh (slice=1, fsdp=3, tensor=1) does not divide 8 device(s)")
    assert done.stderr.count("\n") == 1


CLAIMS_NO_FOLDER = (
    "a setting of the wrong type",
    "empty instructions",
    "devices that the mesh does not divide",
    "a tokenizer that is none",
    "a data set that is not finished",
    "a missing extra",
    "an unknown chat format of an import",
    "answers to no prompt at once",
    "data that is not held out",
    "a model that is not there",
    "no complete checkpoint left",
)


@pytest.mark.parametrize("name", CLAIMS_NO_FOLDER)
def test_what_is_seen_before_work_begins_leaves_the_folder_free_for_the_right_command(
    name: str, flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake = MISTAKES[name](flow, tmp_path)
    for variable, value in mistake.environment.items():
        monkeypatch.setenv(variable, value)
    assert main(mistake.command) == 2
    assert not mistake.out.exists()


def test_an_older_checkpoint_is_taken_for_a_damaged_one_and_said(
    flow: Flow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = without_weights(copied(flow.run, tmp_path / "run"), 2)
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    assert "checkpoint 1 is taken instead of a newer one" in caplog.text
    assert "is missing" in caplog.text
    assert "Checkpoint 1 of 2 steps" in (tmp_path / "hf" / "README.md").read_text()
    assert open_model(run).step == 1
    assert main(flow.eval_command(tmp_path / "eval", f"models.tiny.path={run}")) == 0
    told = json.loads((tmp_path / "eval" / "results.json").read_text())["models"]["tiny"]
    assert told["step"] == 1
    assert "checkpoint 1 is taken" in told["notes"][0]


def test_the_shared_flow_was_left_as_it_was(flow: Flow) -> None:
    """Runs last in this file: no row may have harmed what it was shown."""
    assert list(read_dataset(flow.evolved))
    assert open_model(flow.run).step == 2

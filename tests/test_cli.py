"""The `wizard` command: quick to help, exact in its exit codes, and the same from every verb."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_flow import Flow

from configs.folder import load_config
from configs.loader import load
from data_gen.config import EvolveConfig
from wizard_jax.cli import _parse, _root, main

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WIZARD = [sys.executable, "-c", "import sys; from wizard_jax.cli import main; sys.exit(main())"]
VERBS = ("quickstart", "evolve", "tokenizer", "pack", "plan", "train", "import", "export", "eval", "report")
VERBS += ("simulate-llm", "launch", "config", "doctor")
LINE = "wizard: stopped as told; everything done so far is saved: run the same command to go on\n"


@pytest.mark.parametrize("arguments", [[], ["train"], ["config", "show"]])
def test_help_loads_no_jax_no_tensorflow_and_no_cloud_library(arguments: list[str]) -> None:
    # What Python starts with does not count: packages register empty names such as google.cloud there.
    code = "import sys; before = set(sys.modules)\nimport atexit\nfrom wizard_jax.cli import main\n"
    code += "atexit.register(lambda: print(*set(sys.modules) - before))\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "argparse" in loaded
    heavy = {
        "jax",
        "flax",
        "orbax",
        "tensorflow",
        "tensorflow_datasets",
        "google",
        "openai",
        "numpy",
        "rich",
        "pydantic",
    }
    assert not loaded & heavy


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^    {verb}\s", out, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train", "x.gin"],
        ["train", "x.gin", "--out", "y", "--stpes", "3"],
        ["train", "x.gin", "--out", "y", "steps"],
        ["report", "a", "--out", "b.html", "a.b=1", "--strange"],
        ["train", "x.gin", "--out", "gs://bucket/run"],
    ],
)
def test_what_can_not_be_read_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_settings_stand_before_and_after_options(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = ["evolve", "configs/evolve/quickstart.gin", "seeds.count=3", "--out", out, "rounds=1", "seeds.seed=9"]
    assert main(command) == 0
    config = load_config(EvolveConfig, out)
    assert (config.rounds, config.seeds) == (1, type(config.seeds)(count=3, seed=9))
    assert main(["evolve", "--out", out, "configs/evolve/quickstart.gin", *command[2:3], *command[5:]]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_told_to_stop_a_stage_saves_and_says_how_to_go_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    out = tmp_path / "evolved"
    command = ["evolve", "configs/evolve/quickstart.gin", "seeds.count=5000", "--out", str(out)]
    child = subprocess.Popen([*WIZARD, *command], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "journal.sqlite").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (code, LINE)
    assert not (out / "complete.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_told_to_stop_where_nothing_is_open_yet_it_ends_with_the_same_codes(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """A pipe that nobody writes to keeps it waiting for its seeds."""
    os.mkfifo(tmp_path / "seeds.jsonl")
    command = ["evolve", "configs/evolve/simulated_server.gin", f"seeds.path={tmp_path / 'seeds.jsonl'}"]
    child = subprocess.Popen(
        [*WIZARD, *command, "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    pipe = _reader_of(tmp_path / "seeds.jsonl", child)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code
    os.close(pipe)
    assert said.startswith("wizard: stopped")
    assert said.count("\n") == 1


def _reader_of(pipe: Path, child: subprocess.Popen[str]) -> int:
    """The writing end of a pipe, once the child has opened the other."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or child.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def test_a_missing_module_of_an_extra_is_said_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'libtpu'", name="libtpu")

    monkeypatch.setattr("wizard_jax.transfer.export_model", fail)
    assert main(["export", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "wizard: No module named 'libtpu'. It comes with an extra: pip install 'wizard-jax[tpu]'\n"
    )


def test_a_missing_module_of_no_extra_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'wizard_jaxx'", name="wizard_jaxx")

    monkeypatch.setattr("wizard_jax.transfer.export_model", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["export", "nowhere"])


OPEN = {
    "evolve": [],
    "train": ["data.dataset=evolved", "tokenizer=tokenizer.model"],
    "eval": ["models.evolved=@Local", "models.evolved.path=runs/evolved", "task.held_out_from=('evolved',)"],
}
SHIPPED = {"evolve": "evolve/quickstart", "train": "train/quickstart", "eval": "eval/simulated_world"}
CHANGED = {"evolve": ("rounds", "7"), "train": ("steps", "7"), "eval": ("max_tokens", "7")}


@pytest.mark.parametrize("stage", SHIPPED)
def test_config_show_says_every_setting_and_where_it_comes_from(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, (path, value) = f"configs/{SHIPPED[stage]}.gin", CHANGED[stage]
    assert main(["config", "show", stage, file, *OPEN[stage], f"{path}={value}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if f" {path} " in line]
    assert f" {value} " in line
    assert "command line" in line
    assert any(f"{SHIPPED[stage]}.gin:" in line for line in lines)
    assert any(" default " in line for line in lines)


@pytest.mark.parametrize("stage", SHIPPED)
def test_config_diff_says_what_differs(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, value = CHANGED[stage]
    other = tmp_path / "other.gin"
    other.write_text(f"include '{SHIPPED[stage]}.gin'\n{path} = {value}\n")
    assert main(["config", "diff", stage, f"configs/{SHIPPED[stage]}.gin", str(other), *OPEN[stage]]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(told) == 1
    assert f" {path} " in told[0]
    assert f" {value} " in told[0]


@pytest.mark.parametrize(
    ("stage", "path"), [("evolve", "llm.faults.refusal"), ("train", "optimizer.peak_lr"), ("eval", "task.per_band")]
)
def test_config_paths_lists_every_setting(stage: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "paths", stage]) == 0
    assert f" {path} " in capsys.readouterr().out


def test_pack_ahead_is_what_train_finds(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = flow.train_command(tmp_path / "run", f"pack_cache={tmp_path / 'packed'}")
    settings = [word for word in command if "=" in word]
    assert main(["pack", command[1], *settings, "--out", str(tmp_path / "packed")]) == 0
    assert "% filled" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "packed").rglob("*") if file.suffix != ".lock"}
    assert main(command) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "packed").rglob("*") if file.suffix != ".lock"}
    assert after == before


def readme_commands() -> list[list[str]]:
    """Every command that README.md shows, without the leading `wizard`; comments and what stands around it are cut."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (
        line.partition("wizard ")[2] for line in text.splitlines() if re.match("    ([A-Z_]+=[^ ]+ )?wizard ", line)
    )
    return [shlex.split(line.removesuffix("&"), comments=True) for line in lines]


def test_every_command_of_the_readme_is_one_and_its_settings_load() -> None:
    packed, packed_ahead = Path(), 0
    for command in readme_commands():
        arguments = _parse(command)
        assert callable(arguments.verb)
        if command[0] in ("evolve", "pack", "train", "eval") and hasattr(arguments, "config"):
            load(_root({"pack": "train"}.get(command[0], command[0])), [arguments.config], arguments.settings)
        if command[0] == "pack":
            packed = arguments.out
        if command[0] == "train" and arguments.out.parent == packed.parent:
            packed_ahead += 1
            assert packed == arguments.out.parent / "packed", "where train looks for packed rows"
    assert packed_ahead == 1

"""A stage's folder: whose it is, who works in it, whether it is finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.folder import (
    FolderError,
    load_config,
    open_stage,
    read_complete,
    read_identity,
    replacing,
    write_atomically,
)
from configs.loader import setting


@dataclass(frozen=True, kw_only=True)
class Small:
    width: int = setting(8)


@dataclass(frozen=True, kw_only=True)
class Large:
    width: int = setting(8)
    depth: int = setting(3)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    seed: int = setting(0)
    name: str = setting("a")
    part: Small | Large = setting(Small())
    workers: int = setting(4, operational=True)


@dataclass(frozen=True, kw_only=True)
class Needy:
    data: str = setting()
    tokenizer: str = setting()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_a_new_folder_holds_its_identity_and_its_config_and_is_not_complete(tmp_path: Path) -> None:
    with open_stage(tmp_path / "deep" / "run", Recipe(seed=3), stage="train") as folder:
        assert not folder.is_complete
        assert read_identity(folder.path).stage == "train"
        assert load_config(Recipe, folder.path) == Recipe(seed=3)


def test_the_same_settings_continue_and_leave_every_file_as_it_is(tmp_path: Path) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="train").close()
    (tmp_path / "run" / "work.txt").write_text("half done")
    before = contents(tmp_path / "run")
    open_stage(tmp_path / "run", Recipe(), stage="train").close()
    assert contents(tmp_path / "run") == before


def test_an_operational_change_continues_and_is_written_down(tmp_path: Path) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="train").close()
    open_stage(tmp_path / "run", Recipe(workers=9), stage="train").close()
    assert load_config(Recipe, tmp_path / "run") == Recipe(workers=9)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (Recipe(seed=1), ["seed: 0 -> 1"]),
        (Recipe(name="b", seed=2), ["seed: 0 -> 2", "name: 'a' -> 'b'"]),
        (Recipe(part=Large()), ["part: @Small -> @Large", "part.depth: (none) -> 3"]),
        (Small(), ["type: @Recipe -> @Small"]),
    ],
)
def test_another_identity_is_refused_by_path_and_the_folder_stays_as_it_was(
    tmp_path: Path, changed: Recipe | Small, told: list[str]
) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="train").close()
    (tmp_path / "run" / "metrics.jsonl").write_text("work\n")
    before = contents(tmp_path / "run")
    with pytest.raises(FolderError) as refused:
        open_stage(tmp_path / "run", changed, stage="train")
    for line in [*told, "--out", "config.gin"]:
        assert line in str(refused.value)
    assert "workers" not in str(refused.value)
    assert contents(tmp_path / "run") == before


def test_a_long_list_of_differences_is_cut_and_counted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_stage(run, Recipe(), stage="train").close()
    (run / "metrics.jsonl").write_text("work\n")
    told = json.loads((run / "identity.json").read_text())
    told["identity"] = "other"
    told["settings"] = {f"setting_{index}": "1" for index in range(40)}
    write_atomically(run / "identity.json", json.dumps(told))
    with pytest.raises(FolderError, match=r"and \d+ more"):
        open_stage(run, Recipe(), stage="train")


def test_another_stage_s_folder_is_refused(tmp_path: Path) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="evolve").close()
    (tmp_path / "run" / "journal.sqlite").write_text("work")
    with pytest.raises(FolderError, match="made by wizard evolve, not wizard train"):
        open_stage(tmp_path / "run", Recipe(), stage="train")


def test_a_folder_in_which_nothing_was_made_yet_takes_other_settings(tmp_path: Path) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="train").close()
    open_stage(tmp_path / "run", Small(), stage="evolve").complete({})
    assert read_identity(tmp_path / "run").stage == "evolve"
    assert load_config(Small, tmp_path / "run") == Small()


def test_a_folder_of_other_things_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"thesis\.tex"):
        open_stage(tmp_path, Recipe(), stage="train")
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_user_s_own_config_file_is_not_taken_for_a_started_stage(tmp_path: Path) -> None:
    (tmp_path / "config.gin").write_text("seed = 4\n")
    with pytest.raises(FolderError, match=r"config\.gin"):
        open_stage(tmp_path, Recipe(), stage="train")
    assert contents(tmp_path) == {"config.gin": b"seed = 4\n"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    open_stage(tmp_path, Recipe(), stage="train").close()
    assert read_identity(tmp_path).stage == "train"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FolderError, match="no folder"):
        open_stage(tmp_path / "run", Recipe(), stage="train")
    with pytest.raises(FolderError, match="can not be written"):
        open_stage(tmp_path / "run" / "below", Recipe(), stage="train")


def test_a_bucket_is_refused_while_writing_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"local --out.*gcloud storage cp"):
        open_stage("gs://bucket/run", Recipe(), stage="train")
    assert not list(tmp_path.iterdir())


def test_completion_is_the_last_word_and_gives_back_the_summary(tmp_path: Path) -> None:
    folder = open_stage(tmp_path / "run", Recipe(), stage="train")
    with pytest.raises(FolderError, match=r"not finished; run wizard train with --out .*run"):
        read_complete(tmp_path / "run")
    folder.complete({"steps": 10, "loss": 0.5})
    assert folder.is_complete
    assert read_complete(tmp_path / "run", stage="train") == {"steps": 10, "loss": 0.5}
    assert open_stage(tmp_path / "run", Recipe(), stage="train").is_complete


def test_a_finished_folder_of_another_stage_is_not_taken_for_the_one_needed(tmp_path: Path) -> None:
    open_stage(tmp_path / "run", Recipe(), stage="evolve").complete({})
    with pytest.raises(FolderError, match="made by wizard evolve"):
        read_complete(tmp_path / "run", stage="train")


def test_reading_what_no_stage_made_says_so(tmp_path: Path) -> None:
    for read in (read_complete, read_identity):
        with pytest.raises(FolderError, match="no stage's folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="no stage's folder"):
        load_config(Recipe, tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"format": 1, "stage": "train"}'])
def test_a_damaged_mark_is_named(tmp_path: Path, damage: str) -> None:
    open_stage(tmp_path, Recipe(), stage="train").complete({})
    (tmp_path / "complete.json").write_text(damage)
    with pytest.raises(FolderError, match=r"complete\.json: damaged"):
        read_complete(tmp_path)
    (tmp_path / "identity.json").write_text(damage)
    with pytest.raises(FolderError, match=r"identity\.json: damaged"):
        open_stage(tmp_path, Recipe(), stage="train")


@pytest.mark.parametrize("damage", [b"", b"seed = ", b"\x00\xff\x00", b"no such setting"])
def test_a_damaged_config_is_named_in_one_message(tmp_path: Path, damage: bytes) -> None:
    open_stage(tmp_path, Needy(data="d", tokenizer="t"), stage="train").close()
    (tmp_path / "config.gin").write_bytes(damage)
    with pytest.raises(FolderError, match=r"config\.gin: damaged") as refused:
        load_config(Needy, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_stage(tmp_path, Recipe(), stage="train").close()
    told = json.loads((tmp_path / "identity.json").read_text())
    (tmp_path / "identity.json").write_text(json.dumps({**told, "format": 2}))
    with pytest.raises(FolderError, match="format 2"):
        open_stage(tmp_path, Recipe(), stage="train")


def test_a_folder_in_use_is_refused_with_the_process_that_holds_it(tmp_path: Path) -> None:
    held = open_stage(tmp_path, Recipe(), stage="train")
    with pytest.raises(FolderError, match=f"in use by process {os.getpid()} on "):
        open_stage(tmp_path, Recipe(), stage="train")
    held.close()
    open_stage(tmp_path, Recipe(), stage="train").close()


def test_a_folder_object_that_is_gone_no_longer_holds_the_folder(tmp_path: Path) -> None:
    open_stage(tmp_path, Recipe(), stage="train")
    open_stage(tmp_path, Recipe(), stage="train").close()


def test_a_killed_process_leaves_a_folder_that_continues(tmp_path: Path) -> None:
    code = (
        "import sys, time; from configs.folder import open_stage; from tests.test_folder import Recipe\n"
        "folder = open_stage(sys.argv[1], Recipe(), stage='train'); print('open', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(FolderError, match=f"process {child.pid} "):
            open_stage(tmp_path, Recipe(), stage="train")
        child.send_signal(signal.SIGKILL)
        child.wait()
    with open_stage(tmp_path, Recipe(), stage="train") as folder:
        assert not folder.is_complete


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".identity.json.partial"]])
def test_a_start_killed_in_its_first_moments_is_begun_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{")
    open_stage(tmp_path, Recipe(), stage="train").close()
    assert load_config(Recipe, tmp_path) == Recipe()


def test_a_start_killed_before_its_config_was_written_is_begun_again(tmp_path: Path) -> None:
    open_stage(tmp_path, Recipe(), stage="train").close()
    (tmp_path / "config.gin").unlink()
    open_stage(tmp_path, replace(Recipe(), workers=2), stage="train").close()
    assert load_config(Recipe, tmp_path) == Recipe(workers=2)


def test_every_refusal_is_the_user_s_to_mend() -> None:
    assert issubclass(FolderError, UserError)


def test_a_file_that_could_not_be_written_to_its_end_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"

    def write(*lines: object) -> None:
        with replacing(file) as stream:
            for line in lines:
                stream.write(f"{1 // int(str(line))}\n")

    write(1, 1)
    with pytest.raises(ZeroDivisionError):
        write(1, 0)
    assert file.read_bytes() == b"1\n1\n"

"""Shards in processes of their own, then one data set: the same bytes as one process makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_generate import files, quiet

from configs.folder import FolderError, read_complete
from configs.loader import dump
from data_gen import shards
from data_gen.config import EvolveConfig, Faults, Measure, SeedFile, Shard, Simulated, SimulatedSeeds
from data_gen.finish import REJECTED
from data_gen.generate import SEEDS, generate
from data_gen.llm.journal import JOURNAL
from data_gen.llm.journal_file import JournalError
from data_gen.merge import MergeError, merge

FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05, truncated=0.03)
CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=24),
    llm=Simulated(faults=FAULTS),
    rounds=2,
    records_per_shard=20,
    measure=Measure(diversity_sample=0),
)
COUNT = 4


def shard(config: EvolveConfig, index: int, out: Path, *, count: int = COUNT) -> Path:
    generate(replace(config, shard=Shard(index=index, count=count)), out, progress=quiet)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merge") / "whole"
    generate(CONFIG, out, progress=quiet)
    return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four shards; not to be changed."""
    folder = tmp_path_factory.mktemp("parts")
    return [shard(CONFIG, index, folder / f"part-{index}") for index in range(COUNT)]


def copies(parts: list[Path], folder: Path) -> list[Path]:
    return [shutil.copytree(part, folder / part.name) for part in parts]


def test_four_shards_and_a_merge_give_the_bytes_of_one_process(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    summary, one = merge(parts[::-1], out), read_complete(whole)
    assert files(out) == files(whole)
    differ = {name for name in summary.keys() | one.keys() if summary.get(name) != one.get(name)}
    assert differ == {"shards"}
    assert summary["shards"] == COUNT
    assert shards.verify(out).sha256 == one["dataset_sha256"]
    assert (out / SEEDS).read_text() == (whole / SEEDS).read_text()
    for name in ("seeds", "asked", "records", "rejected", "calls"):
        assert sum(read_complete(part)[name] for part in parts) == one[name]


@pytest.mark.slow
def test_four_processes_at_once_and_a_merge_on_the_command_line_give_the_bytes_of_one(
    whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.gin").write_text(dump(CONFIG))
    wizard = [sys.executable, "-m", "wizard_jax"]
    evolve = [*wizard, "evolve", str(tmp_path / "config.gin")]
    outs = [str(tmp_path / f"part-{index}") for index in range(COUNT)]
    processes = [
        subprocess.Popen([*evolve, "--shard", f"{index}/{COUNT}", "--out", out]) for index, out in enumerate(outs)
    ]
    assert [process.wait(300) for process in processes] == [0] * COUNT

    def merging(folders: list[str], out: str) -> subprocess.CompletedProcess[str]:
        command = [*wizard, "merge", *folders, "--out", str(tmp_path / out)]
        return subprocess.run(command, capture_output=True, text=True)

    merged = merging(outs, "merged")
    assert merged.returncode == 0, merged.stderr
    assert f"{read_complete(whole)['records']:,} records" in merged.stdout
    assert files(tmp_path / "merged") == files(whole)
    less = merging(outs[:3], "less")
    assert (less.returncode, less.stderr) == (2, "wizard: shard 3/4 is missing: name the folders of all 4\n")


def test_a_merged_folder_is_a_finished_one_of_wizard_evolve(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    summary = merge(parts, out)
    assert merge(parts, out) == summary
    assert generate(CONFIG, out, progress=quiet) == summary, "nothing is begun, and nothing paid"
    assert not (out / JOURNAL).exists()


def test_a_missing_shard_is_named(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"shard 1/4, 3/4 is missing: name the folders of all 4"):
        merge([parts[2], parts[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_doubled_shard_is_named(parts: list[Path], tmp_path: Path) -> None:
    twin = shutil.copytree(parts[1], tmp_path / "twin")
    with pytest.raises(MergeError, match=r"part-1 and .*twin are both shard 1/4"):
        merge([*parts, twin], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_another_division_is_not_taken_for_the_one_of_that_number(parts: list[Path], tmp_path: Path) -> None:
    """Their settings are equal but for the division, and every number from 0 to 3 is there."""
    foreign = shard(CONFIG, 3, tmp_path / "foreign", count=5)
    with pytest.raises(MergeError, match=r"foreign is one of 5 shards, and .*part-0 one of 4"):
        merge([*parts[:3], foreign], tmp_path / "out")


@pytest.mark.parametrize("changes", [{"rounds": 1}, {"seed": 5}, {"llm": Simulated()}])
def test_a_shard_of_other_settings_is_named(changes: dict[str, Any], parts: list[Path], tmp_path: Path) -> None:
    foreign = shard(replace(CONFIG, **changes), 3, tmp_path / "foreign")
    with pytest.raises(MergeError, match=r"foreign was made with other settings than .*part-0"):
        merge([*parts[:3], foreign], tmp_path / "out")


def test_a_shard_of_other_seeds_is_named(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    rows = [{"instruction": f"Name {number} fruits."} for number in range(8)]
    seeds.write_text("\n".join(map(json.dumps, rows)))
    config = replace(CONFIG, seeds=SeedFile(path=str(seeds)), rounds=1)
    first = shard(config, 0, tmp_path / "first", count=2)
    seeds.write_text("\n".join(map(json.dumps, [*rows, {"instruction": "Name a tree."}])))
    second = shard(config, 1, tmp_path / "second", count=2)
    with pytest.raises(MergeError, match=r"second was made from other seeds than .*first"):
        merge([first, second], tmp_path / "out")


def test_an_unfinished_shard_and_what_is_no_shard_are_refused(parts: list[Path], tmp_path: Path) -> None:
    copied = copies(parts, tmp_path)
    (copied[2] / "complete.json").unlink()
    with pytest.raises(FolderError, match=r"part-2: not finished; run wizard evolve .* again"):
        merge(copied, tmp_path / "out")
    with pytest.raises(FolderError, match="no stage's folder"):
        merge([*parts[:3], tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_whose_journal_is_gone_is_named_before_anything_is_made(parts: list[Path], tmp_path: Path) -> None:
    copied = copies(parts, tmp_path)
    (copied[1] / JOURNAL).unlink()
    with pytest.raises(JournalError, match=r"part-1.*there is no journal"):
        merge(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_not_written_over(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "other"
    generate(replace(CONFIG, rounds=1), out, progress=quiet)
    before = files(out)
    with pytest.raises(FolderError, match="made with other settings"):
        merge(parts, out)
    assert files(out) == before
    assert merge(parts, whole) == read_complete(whole), "it is finished already"


def test_killed_a_merge_is_only_to_be_started_again(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    command = [sys.executable, "-m", "wizard_jax", "merge", *map(str, parts), "--out", str(out)]
    process = subprocess.Popen(command)
    while process.poll() is None and not (out / REJECTED).exists():
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert not (out / "complete.json").exists()
    merge(parts, out)
    assert files(out) == files(whole)


def test_parts_of_which_one_would_be_empty_are_refused_at_once_by_all(tmp_path: Path) -> None:
    config = replace(CONFIG, seeds=SimulatedSeeds(count=3))
    for index in range(8):
        with pytest.raises(Exception, match=r"shard.count = 8: of 3 seeds none falls to part \d"):
            shard(config, index, tmp_path / "out", count=8)
    assert not (tmp_path / "out").exists()

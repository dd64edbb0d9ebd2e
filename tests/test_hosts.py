"""Several processes make one run: the same losses, stopped together, none left hanging, whatever happens to one."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exact_steps
import grain
import jax
import numpy as np
import pytest
from host_processes import QUICK_TO_COMPILE, ROOT, Farm, farm_of_wizards, until
from tiny_run import tiny_config, write_material

from configs.loader import dump
from wizard_jax.data.config import TrainedTokensPerStep
from wizard_jax.data.packing import pack
from wizard_jax.model.lora import LoRA
from wizard_jax.model.sharding import MeshConfig
from wizard_jax.runs import open_model
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.config import FromCheckpoint, HeldOut, TrainConfig
from wizard_jax.train.source import restore_adapter
from wizard_jax.train.watching.metrics import read_held_out, read_metrics
from wizard_jax.train.watching.trackers import flat
from wizard_jax.transfer import export_model, import_model

STEPS = 24


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_of_wizards(tmp_path_factory.mktemp("farm")) as farm:
        yield farm


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    material = tmp_path_factory.mktemp("material")
    write_material(material)
    batch = TrainedTokensPerStep(tokens=120)  # two or three rows a step, which do not divide among processes
    return tiny_config(material, steps=STEPS, checkpoint_every=6, log_every=1, held_out=HeldOut(every=12), batch=batch)


def command(config: TrainConfig, out: Path, **changes: Any) -> list[str]:
    file = out.with_suffix(".gin")
    file.write_text(dump(dataclasses.replace(config, **changes)))
    return ["train", str(file), "--out", str(out)]


@pytest.fixture(scope="module")
def whole(farm: Farm, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes with two devices each that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    farm.run(command(config, out), processes=2, devices=2)
    return out


@pytest.fixture(scope="module")
def alone(farm: Farm, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of one process with four devices."""
    out = tmp_path_factory.mktemp("alone") / "run"
    farm.run(command(config, out), processes=1, devices=4)
    return out


def untimed(folder: Path, *, upto: int = STEPS) -> list[str]:
    """The lines of metrics.jsonl up to a step, without the timing that ends each."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line.partition(', "timing"')[0] for line in lines if json.loads(line)["step"] <= upto]


def assert_same_learning(out: Path, whole: Path) -> None:
    """On other devices sums are made in another order, so figures are not the same bits."""
    for name in ("trained_tokens", "loss", "grad_norm"):
        here, there = ([line[name] for line in read_metrics(folder)] for folder in (out, whole))
        np.testing.assert_allclose(here, there, rtol=1e-4, err_msg=name)
    measured, expected = read_held_out(out), read_held_out(whole)
    assert [line["step"] for line in measured] == [line["step"] for line in expected] == [0, 12, STEPS]
    for here, there in zip(measured, expected, strict=True):
        of_here, of_there = flat(here["held_out"]), flat(there["held_out"])
        assert of_here.keys() == of_there.keys()
        for name, figure in of_here.items():  # a number of tokens, or a loss
            assert figure == pytest.approx(of_there[name], rel=0 if name.endswith("tokens") else 1e-4), name


def has_made(out: Path, step: int) -> bool:
    return bool((lines := read_metrics(out)) and lines[-1]["step"] >= step)


def test_one_process_learns_what_two_do_from_steps_whose_rows_do_not_divide_among_them(
    alone: Path, whole: Path
) -> None:
    assert_same_learning(alone, whole)
    assert len({line["trained_tokens"] for line in read_metrics(whole)}) > 3


def test_ten_steps_of_two_processes_are_those_of_one(farm: Farm, tmp_path: Path) -> None:
    """Losses, gradients and weights, to roundings of float32; see exact_steps.py."""
    farm.run([str(tmp_path)], processes=2, devices=4, program="exact_steps")
    first, second = (pickle.loads((tmp_path / f"{index}.pickle").read_bytes()) for index in (0, 1))
    exact_steps.assert_same(first, exact_steps.run(exact_steps.Setup()))
    assert first.losses == second.losses


def test_killed_with_no_warning_a_process_goes_on_with_the_same_figures_bit_for_bit(
    farm: Farm, config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    group = farm.start(command(config, out), processes=1, devices=4)
    until(lambda: has_made(out, 8) and (out / "checkpoints" / "6.json").exists(), group)
    group.send(0, signal.SIGKILL)
    assert group.codes() == [-signal.SIGKILL]
    farm.run(command(config, out), processes=1, devices=4)
    assert [json.loads(line)["step"] for line in (out / "starts.jsonl").read_text().splitlines()][1] >= 6
    assert untimed(out) == untimed(alone)


def last_step(out: Path) -> int:
    with CheckpointStore(out / "checkpoints") as store:
        return store.steps()[-1]


def test_one_process_that_is_told_to_stop_stops_all_in_the_same_step_and_four_learn_the_rest_on_another_mesh(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for told, number, code, step in ((1, signal.SIGTERM, 42, 3), (0, signal.SIGINT, 130, 8)):
        group = farm.start(command(config, out), processes=2, devices=2)
        until(lambda step=step: has_made(out, step), group)
        group.send(told, number)
        assert group.codes() == [code, code], group.output()
        assert "run the same command to go on" in group.output(0)
        assert "run the same command to go on" in group.output(1)
        saved = last_step(out)
        assert step < saved < STEPS
        assert untimed(out) == untimed(whole, upto=saved)
    farm.run(command(config, out, mesh=MeshConfig(fsdp=2, tensor=2)), processes=4, devices=1)
    assert untimed(out, upto=saved) == untimed(whole, upto=saved)
    assert_same_learning(out, whole)


def test_when_one_process_is_killed_the_others_end_soon_and_say_so_and_the_run_goes_on_bit_for_bit(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for killed, step, saved in ((1, 8, 6), (0, 18, 18)):
        group = farm.start(command(config, out), processes=2, devices=2)
        # Only of a checkpoint whose list of files is written can damage be found.
        listed = out / "checkpoints" / f"{saved}.json"
        until(lambda step=step, listed=listed: has_made(out, step) and listed.exists(), group)
        group.send(killed, signal.SIGKILL)
        since = time.monotonic()
        codes = group.codes(seconds=30)
        assert time.monotonic() - since < 30
        assert codes[killed] == -signal.SIGKILL
        survivor = group.output(1 - killed)
        if killed == 1:
            assert codes[0] == 42, survivor
            assert "process 1 of 2" in survivor
            assert "gave no sign of life" in survivor
            assert "run the same command to go on" in survivor
        else:  # the coordination service is gone, and with it JAX ends the process itself, often before we can speak
            assert codes[1] in (42, -signal.SIGABRT)
            assert "leader task" in survivor
    newest = last_step(out)
    files = [path for path in sorted((out / "checkpoints" / str(newest)).rglob("d/*")) if path.stat().st_size]
    damage(files[-1], at=files[-1].stat().st_size // 2)  # found by one process, and passed over by both
    said = farm.run(command(config, out), processes=2, devices=2)
    assert said.count("is taken instead of a newer one") == 2
    assert said.count(f"{files[-1]} has other bytes than were saved") == 2
    assert untimed(out) == untimed(whole)


@pytest.mark.slow
def test_an_adapter_whose_processes_were_killed_goes_on_bit_for_bit(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    adapter = LoRA(rank=2, alpha=4.0, base="nf4")
    adapted = dataclasses.replace(config, init=FromCheckpoint(path=str(whole)), adapter=adapter, held_out=None)
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    farm.run(command(adapted, unbroken), processes=2, devices=2)
    group = farm.start(command(adapted, out), processes=2, devices=2)
    until(lambda: has_made(out, 8) and (out / "checkpoints" / "6.json").exists(), group)
    for index in (0, 1):
        group.send(index, signal.SIGKILL)
    assert group.codes() == [-signal.SIGKILL] * 2, group.output()
    assert not (out / "complete.json").exists()
    farm.run(command(adapted, out), processes=2, devices=2)
    assert untimed(out) == untimed(unbroken)
    halves, expected = (restore_adapter(one, model=config.model, adapter=adapter).trees for one in (out, unbroken))
    jax.tree.map(np.testing.assert_array_equal, halves, expected)


@pytest.mark.slow
def test_processes_that_start_from_an_imported_model_read_it_together(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    export_model(whole, tmp_path / "hf", dtype="float32", verify="nothing")
    import_model(tmp_path / "hf", tmp_path / "imported")
    started = dataclasses.replace(config, init=FromCheckpoint(path=str(tmp_path / "imported")), steps=0, held_out=None)
    farm.run(command(started, tmp_path / "run"), processes=2, devices=2)
    found, expected = (open_model(tmp_path / name).params for name in ("run", "imported"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    weights = tmp_path / "imported" / "model.safetensors"
    damage(weights, at=weights.stat().st_size - 100)
    group = farm.start(command(started, tmp_path / "damaged"), processes=2, devices=2)
    assert group.codes() == [2, 2], group.output()
    assert group.output().count(f"{weights} has other bytes than were imported (CRC-32C)") == 2


def damage(file: Path, *, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\0" * 8)


def within_one_row(file: Path, *, copy: Path) -> int:
    """Where damage makes one row unreadable, and no other."""

    def is_readable(row: int) -> bool:
        try:
            grain.sources.ArrayRecordDataSource(str(copy))[row]
        except (RuntimeError, ValueError):
            return False
        return True

    rows = len(grain.sources.ArrayRecordDataSource(str(file)))
    for place in range(rows, file.stat().st_size // 2, 50):
        shutil.copyfile(file, copy)
        damage(copy, at=place)
        if [is_readable(row) for row in range(rows)].count(False) == 1:
            return place
    raise AssertionError(f"{file}: every row survives")


def test_a_process_that_can_not_read_its_rows_stops_all_and_each_says_which_and_why(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out, cache = tmp_path / "run", tmp_path / "packed"
    shutil.copytree(str(config.pack_cache), cache)
    rows = pack(config.data, Tokenizer(config.tokenizer), cache_dir=cache).path / "rows-00000-of-00001.arrayrecord"
    place = within_one_row(rows, copy=tmp_path / "copy")
    group = farm.start(command(config, out, pack_cache=str(cache)), processes=2, devices=2)
    until(lambda: has_made(out, 5), group)
    damage(rows, at=place)
    assert group.codes() == [2, 2], group.output()
    saved = last_step(out)
    said = r"the rows of step (\d+) can not be read \((process \d of 2 on [^:]+: .+)\); .* step (\d+)"
    told = re.findall(said, group.output())
    assert len(told) == 2
    assert told[0] == told[1]
    step, who, at = told[0]
    assert (int(step), int(at)) == (saved + 1, saved)
    assert who.count(" of 2 on ") == 1
    assert untimed(out) == untimed(whole, upto=saved)
    farm.run(command(config, out), processes=1, devices=4)
    assert_same_learning(out, whole)


def test_a_process_with_other_settings_is_named_before_there_is_a_folder(
    farm: Farm, config: TrainConfig, tmp_path: Path
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    commands = [command(config, out), command(config, other, seed=5, log_every=2)]
    commands[1][-1] = str(out)
    group = farm.start(commands, processes=2, devices=2)
    assert group.codes() == [2, 2]
    for index in (0, 1):
        assert "process 1 of 2" in group.output(index)
        assert "log_every = 2, not 1" in group.output(index)
        assert "seed = 5, not 0" in group.output(index)
    assert not out.exists()


def unfinished(out: Path) -> set[str]:
    """The saves that are under way, or were when their process was killed."""
    return {path.name for path in out.glob("checkpoints/*.orbax-checkpoint-tmp*")}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2)])
def test_killed_at_any_moment_again_and_again_a_run_comes_to_the_same_end(
    farm: Farm, config: TrainConfig, tmp_path: Path, processes: int, devices: int
) -> None:
    out, rng = tmp_path / "run", random.Random(processes)
    often = dataclasses.replace(config, checkpoint_every=2)
    farm.run(command(often, tmp_path / "whole"), processes=processes, devices=devices)
    for _ in range(8):
        saved, before = list(out.glob("checkpoints/*.json")), unfinished(out)
        group = farm.start(
            command(often, out, pack_cache=str(tmp_path / "packed")), processes=processes, devices=devices
        )
        latest = time.monotonic() + rng.choice((1.0, 3.0, 30.0)) * rng.random()
        while time.monotonic() < latest and not group.ended() and unfinished(out) <= before:
            time.sleep(0.002)
        time.sleep(0.1 * rng.random())
        for index in range(processes):
            if index not in group.ended():
                group.send(index, signal.SIGKILL)
        assert set(group.codes()) <= {0, -signal.SIGKILL}, group.output()
        assert not (saved and "from the beginning" in group.output())
    farm.run(command(often, out, pack_cache=str(tmp_path / "packed")), processes=processes, devices=devices)
    assert untimed(out) == untimed(tmp_path / "whole")
    assert not unfinished(out)


@pytest.mark.slow
def test_launched_locally_a_group_goes_on_by_itself_after_one_of_it_was_killed(
    config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "run.log"
    options = ["--processes", "2", "--devices", "2", "--restarts", "2", "--log", str(log)]
    launch = [sys.executable, "-m", "wizard_jax", "launch", "local", *options, "--", *command(config, out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_TO_COMPILE}
    with subprocess.Popen(launch, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT) as launcher:
        deadline = time.monotonic() + 300
        for index, step in ((1, 8), (0, 15)):
            while not has_made(out, step):
                assert launcher.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.005)
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            os.kill(int(children[index]), signal.SIGKILL)
        assert launcher.wait(300) == 0, log.read_text()
    said = log.read_text()
    assert "launch: process 1 of 2 died by signal 9, Killed: restart 1 of 2" in said
    assert "launch: process 0 of 2 died by signal 9, Killed: restart 2 of 2" in said
    assert "[0] wizard: process 0 of 2" in said
    assert untimed(out) == untimed(whole)

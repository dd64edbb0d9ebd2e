"""Several processes make one run: the same losses, stopped together, none left hanging, whatever happens to one."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_processes import Farm, farm_of_wizards, until
from tiny_run import tiny_config, write_material

from configs.loader import dump
from wizard_jax.model.sharding import MeshConfig
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.metrics import read_metrics

STEPS = 100


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_of_wizards(tmp_path_factory.mktemp("farm")) as farm:
        yield farm


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    material = tmp_path_factory.mktemp("material")
    write_material(material)
    return tiny_config(material, steps=STEPS, checkpoint_every=25, log_every=1)


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


def untimed(folder: Path) -> list[str]:
    return [line.partition(', "timing"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def has_made(out: Path, step: int) -> bool:
    return bool((lines := read_metrics(out)) and lines[-1]["step"] >= step)


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(1, 4, MeshConfig()), (4, 1, MeshConfig(fsdp=2, tensor=2))],
)
def test_one_two_and_four_processes_learn_the_same(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path, processes: int, devices: int, mesh: MeshConfig
) -> None:
    out = tmp_path / "run"
    farm.run(command(config, out, mesh=mesh), processes=processes, devices=devices)
    np.testing.assert_allclose(losses(out), losses(whole), rtol=1e-4)


def last_step(out: Path) -> int:
    with CheckpointStore(out / "checkpoints") as store:
        return store.steps()[-1]


@pytest.mark.parametrize(("number", "code", "told"), [(signal.SIGTERM, 42, 1), (signal.SIGINT, 130, 0)])
def test_one_process_that_is_told_to_stop_stops_all_in_the_same_step(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path, number: int, code: int, told: int
) -> None:
    out = tmp_path / "run"
    group = farm.start(command(config, out), processes=2, devices=2)
    until(lambda: has_made(out, 5), group)
    group.send(told, number)
    assert group.codes() == [code, code], group.output()
    assert "run the same command to go on" in group.output(0)
    assert "run the same command to go on" in group.output(1)
    assert 5 < last_step(out) < STEPS
    assert len(losses(out)) == last_step(out)
    assert untimed(out) == untimed(whole)[: last_step(out)]
    farm.run(command(config, out), processes=2, devices=2)
    assert untimed(out) == untimed(whole)


def test_when_one_process_is_killed_the_others_end_soon_and_say_so_and_the_run_goes_on_bit_for_bit(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for killed, step in ((1, 30), (0, 60)):
        group = farm.start(command(config, out), processes=2, devices=2)
        until(lambda step=step: has_made(out, step), group)
        group.send(killed, signal.SIGKILL)
        since = time.monotonic()
        codes = group.codes(seconds=30)
        print("ended after", time.monotonic() - since, codes, group.output())
        assert codes[killed] == -signal.SIGKILL
        survivor = group.output(1 - killed)
        if killed == 1:
            assert codes[0] == 42
            assert "process 1 of 2" in survivor
            assert "gave no sign of life" in survivor
            assert "run the same command to go on" in survivor
        else:  # the coordination service is gone, and with it JAX ends the process itself
            assert codes[1] in (42, -signal.SIGABRT)
            assert "leader task" in survivor or "gave no sign of life" in survivor
    farm.run(command(config, out), processes=2, devices=2)
    assert untimed(out) == untimed(whole)


def test_a_process_that_can_not_read_its_rows_stops_all_and_each_says_which_and_why(
    farm: Farm, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out, cache = tmp_path / "run", tmp_path / "packed"
    shutil.copytree(str(config.pack_cache), cache)
    group = farm.start(command(config, out, pack_cache=str(cache)), processes=2, devices=2)
    until(lambda: has_made(out, 5), group)
    (rows,) = cache.glob("*/*.arrayrecord")
    rows.write_bytes(b"\0" * rows.stat().st_size)
    codes = group.codes()
    print(group.output())
    assert codes == [2, 2]
    for index in (0, 1):
        assert "can not be read (process" in group.output(index)
        assert f"saved at step {last_step(out)}" in group.output(index)
    assert untimed(out) == untimed(whole)[: last_step(out)]
    farm.run(command(config, out), processes=2, devices=2)
    assert untimed(out) == untimed(whole)

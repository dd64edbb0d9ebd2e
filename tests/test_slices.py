"""Every slice of the table is whole, has the names that Google Cloud gives it, and is one that libtpu knows."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slices import GENERATIONS, Slice, SliceError, find_slice, generation_of, larger, slices

ROOT = Path(__file__).parents[1]

COMPILE = """
import sys
from jax.experimental import topologies
from launch.slices import find_slice
for key in sys.argv[1:]:
    row = find_slice(key)
    asked = {"chips_per_host_bounds": row.machine.host_bounds}
    if row.generation.chip_config:
        asked["chip_config_name"] = row.generation.chip_config
    devices = topologies.get_topology_desc(platform="tpu", topology_name=row.key, **asked).devices
    assert len(devices) == row.devices, key
    assert {device.device_kind for device in devices} == {row.generation.device_kind}, key
    assert len({device.process_index for device in devices}) == row.hosts, key
print(len(sys.argv) - 1)
"""


@pytest.mark.parametrize(
    ("name", "key", "chips", "hosts", "machine"),
    [
        ("v5litepod-16", "v5e:4x4", 16, 4, "ct5lp-hightpu-4t"),
        ("v5e-16", "v5e:4x4", 16, 4, "ct5lp-hightpu-4t"),
        ("V5E:4x4", "v5e:4x4", 16, 4, "ct5lp-hightpu-4t"),
        ("v5litepod-1", "v5e:1x1", 1, 1, "ct5lp-hightpu-1t"),
        ("v5litepod-8", "v5e:2x4", 8, 1, "ct5lp-hightpu-8t"),
        ("v6e-8", "v6e:2x4", 8, 1, "ct6e-standard-8t"),
        ("v6e-256", "v6e:16x16", 256, 64, "ct6e-standard-4t"),
        ("v5p-8", "v5p:2x2x1", 4, 1, "ct5p-hightpu-4t"),
        ("v5p-128", "v5p:4x4x4", 64, 16, "ct5p-hightpu-4t"),
        ("v5p-512", "v5p:4x8x8", 256, 64, "ct5p-hightpu-4t"),
        ("v4-8", "v4:2x2x1", 4, 1, "ct4p-hightpu-4t"),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 1, "tpu7x-standard-4t"),
        ("tpu7x-4x4x4", "tpu7x:4x4x4", 64, 16, "tpu7x-standard-4t"),
    ],
)
def test_names_are_those_of_google_cloud(name: str, key: str, chips: int, hosts: int, machine: str) -> None:
    row = find_slice(name)
    assert (row.key, row.chips, row.hosts, row.machine.name) == (key, chips, hosts, machine)
    assert find_slice(row.name) == find_slice(row.key) == row


def test_every_row_is_made_of_whole_machines() -> None:
    for row in slices():
        assert row.machines, row.key
        for machine in row.machines:
            vms = row.chips // machine.chips
            assert vms * machine.chips == math.prod(row.topology) == row.chips, row.key
            assert math.prod(machine.host_bounds) == machine.chips
        assert row.chips <= row.generation.max_chips
        assert find_slice(row.name) == find_slice(row.short_name) == row


def test_a_slice_has_the_name_that_people_say_and_one_that_is_its_own() -> None:
    assert [find_slice(name).short_name for name in ("v5litepod-16", "v5p:2x2x1")] == ["v5e-16", "v5p-8"]
    assert find_slice("v5p:4x4x16").short_name == "v5p:4x4x16"  # v5p-512 is 4x8x8


def test_eight_chips_are_one_machine_or_two() -> None:
    assert [machine.name for machine in find_slice("v6e-8").machines] == ["ct6e-standard-8t", "ct6e-standard-4t"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-17", "no slice 'v5e-17'; did you mean v5e-16 "),
        ("v5litepod16", "did you mean v5litepod-16"),
        ("v5p-100", r"did you mean v5p-\d+"),
        ("v6e:4x5", "did you mean v6e:4x"),
        ("h100-8", "the generations are v4, v5e, v5p, v6e, tpu7x"),
        ("tpu7x-2048", "the name of 4 slices: write tpu7x:8x8x16 or .*tpu7x:4x4x64"),
    ],
)
def test_a_name_of_no_slice_or_of_several_is_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(SliceError, match=message):
        find_slice(name)


def test_generations_are_found_by_what_jax_calls_their_devices() -> None:
    assert [generation_of(one.device_kind) for one in GENERATIONS] == list(GENERATIONS)
    assert generation_of("cpu") is None


def test_a_program_never_has_much_more_than_is_published() -> None:
    for one in GENERATIONS:
        assert 0.9 * one.hbm_gib < one.usable_gib * one.devices_per_chip < 1.01 * one.hbm_gib


def test_larger_slices_come_in_the_order_of_their_chips() -> None:
    sizes = [row.chips for row in larger(find_slice("v6e-16"))]
    assert sizes == [32, 64, 128, 256]
    assert larger(find_slice("v5p-64"))[0] == find_slice("v5p-128")


def known_to_libtpu(rows: list[Slice]) -> None:
    settings = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMPILE, *(row.key for row in rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(len(rows))


def test_libtpu_knows_every_topology_of_up_to_512_chips_with_its_devices_and_hosts() -> None:
    known_to_libtpu([row for row in slices() if row.chips <= 512])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_libtpu_knows_every_topology(part: int) -> None:
    known_to_libtpu(list(slices()[part::40]))

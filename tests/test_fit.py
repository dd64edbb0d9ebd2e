"""A slice, a mesh and a model that do not go together are refused before anything is compiled or made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_flow import Flow

from configs.errors import UserError
from configs.loader import ConfigError, load
from launch.slices import find_slice
from wizard_jax.cli import main
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.plan.plan import trace_step
from wizard_jax.plan.tpu_compiler import tpu_devices, use_tpu_compiler
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.fit import FitError, check_divides, fitting_mesh, least_memory, left_whole
from wizard_jax.train.step import make_steps

MODEL = ModelConfig(vocab_size=96, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=80)
MESH = "mesh.tensor=2"
SETTINGS = ["tokenizer=-", "data.dataset=-", "data.seq_len=64", "batch=@RowsPerStep", "batch.rows=8"]


def config(*settings: str) -> TrainConfig:
    return load(TrainConfig, ["configs/train/quickstart.gin"], [*SETTINGS, *settings])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["slice=v5e-17"], "no slice 'v5e-17'; did you mean v5e-16"),
        (["slice=tpu7x-2048"], "name of 4 slices"),
        (["slices=2"], "slices is 2, and slice says of what"),
        (["slices=0"], "slices is 0"),
    ],
)
def test_a_slice_that_is_none_is_a_mistake_of_the_config(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["slice=v5e-8"], "slice is v5e-8, 8 x TPU v5 lite, and here are 8 x cpu"),
        (["slice=v6e-4", "slices=2"], "slice is v6e-4, 2 of 4 x TPU v6 lite"),
        (["model.max_positions=32"], "data.seq_len is 64 and model.max_positions"),
        (["mesh.tensor=8"], "mesh.tensor is 8 and does not divide model.n_heads = 4: set it to 1, 2 or 4"),
        (["model.d_model=60"], r"mesh.fsdp is 8 and does not divide model.d_model = 60: set it to 1, 2, 3, 4, 5 or 6"),
        (["mesh.tensor=3"], "does not divide 8 device"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_would(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitting_mesh(config(*settings), jax.devices())


def test_training_on_other_devices_than_the_slice_ends_with_2_before_there_is_a_folder(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flow.train_command(tmp_path / "run", "slice=v5e-16")) == 2
    assert "slice is v5e-16, 16 x TPU v5 lite, and here are 8 x cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def dumped(folder: Path) -> Iterator[None]:
    """Meanwhile JAX writes every program that it compiles into `folder`."""
    settings = {"jax_dump_ir_to": str(folder), "jax_include_debug_info_in_dumps": False}
    before = {name: jax.config.read(name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_plan_is_of_the_very_program_that_training_compiles(flow: Flow, tmp_path: Path) -> None:
    command = flow.train_command(tmp_path / "run", "z_loss=0.001", "gradient_accumulation=2", "batch.rows=8", MESH)
    with dumped(tmp_path / "programs"):
        assert main(command) == 0
    (trained,) = (tmp_path / "programs").glob("*jit_train_*")
    told = load(TrainConfig, [command[1]], [word for word in command if "=" in word])
    make_steps.cache_clear()  # the plan's own, and not the run's
    planned = trace_step(told, fitting_mesh(told, jax.devices()), rows=8).lower().as_text()
    assert planned == trained.read_text()


def test_what_the_mesh_leaves_whole_is_told() -> None:
    mesh = make_mesh(MeshConfig(tensor=4))
    check_divides(MODEL, mesh)
    assert left_whole(MODEL, mesh) == ["layers/k over tensor", "layers/v over tensor"]
    assert left_whole(dataclasses.replace(MODEL, n_kv_heads=4), mesh) == []


def test_the_least_memory_of_a_state_is_that_of_its_arrays() -> None:
    told = config("model.remat=full", "model.scan_unroll=1")
    mesh = fitting_mesh(told, jax.devices())
    least = least_memory(told, mesh, rows=16)
    steps = make_steps(told.model, optimizer=told.optimizer, total_steps=1, gradient_accumulation=1, mesh=mesh)
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
    here: Any = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    assert least.arguments == sum(here) + 2 * (64 * 5 + 1) * 4
    assert least.gradients == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    assert least.kept == told.model.n_layers * 2 * 64 * told.model.d_model * 4


def test_a_state_that_is_larger_than_the_devices_is_refused() -> None:
    use_tpu_compiler()
    devices = tpu_devices(find_slice("v5e-16"))
    seven, seventy = (
        load(TrainConfig, [f"configs/train/wizardlm_{size}.gin"], ["data.dataset=-", "slice=v5e-16"])
        for size in ("7b", "70b")
    )
    assert fitting_mesh(seven, devices).size == 16
    with pytest.raises(
        FitError, match=r"takes at least \d\d\.\d\d GiB on each of 16 .* 15.75 GiB on a TPU v5 lite: it is short"
    ):
        fitting_mesh(seventy, devices)

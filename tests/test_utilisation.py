"""Utilisation is a share of a peak that somebody states, and of no other."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from tiny_run import quiet, tiny_config, write_material

from configs.errors import UserError
from configs.loader import paths
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.flops import token_flops
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.metrics import read_metrics
from wizard_jax.train.trackers import flat
from wizard_jax.train.train import train
from wizard_jax.train.utilisation import Utilisation, utilisation_of

ROOT = pathlib.Path(__file__).parents[1]
LLAMA_7B = ModelConfig(
    vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, d_ff=11_008
)


class Chip:
    def __init__(self, kind: str) -> None:
        self.device_kind = kind


class Mesh:
    """As far as utilisation looks at one."""

    def __init__(self, kind: str, count: int) -> None:
        self.devices = np.array([Chip(kind)] * count)
        self.size = count


def test_a_7b_model_on_16_chips_of_v5e() -> None:
    found = utilisation_of(LLAMA_7B, seq_len=2048, mesh=Mesh("TPU v5 lite", 16))  # type: ignore[arg-type]
    assert found is not None
    # By hand: 6.607e9 parameters in matrix products; attention 12 x 32 x 4096 x 2049 / 2.
    assert found.flops_per_token == pytest.approx(6 * 6.607e9 + 12 * 32 * 4096 * 1024.5, rel=1e-3)
    assert found.of(37_000) == pytest.approx(37_000 * 41.25e9 / (16 * 197e12), rel=1e-3)


def test_a_chip_of_two_devices_has_half_its_peak_in_each() -> None:
    found = utilisation_of(LLAMA_7B, seq_len=2048, mesh=Mesh("TPU7x", 8))  # type: ignore[arg-type]
    assert found is not None
    assert found.peak_flops_per_device == 2307e12 / 2


def test_nothing_is_said_of_a_device_that_nobody_knows_and_a_given_peak_is_taken() -> None:
    mesh = make_mesh(MeshConfig())
    assert utilisation_of(LLAMA_7B, seq_len=2048, mesh=mesh) is None
    assert utilisation_of(LLAMA_7B, seq_len=2048, mesh=Mesh("NVIDIA H200", 1)) is None  # type: ignore[arg-type]
    found = utilisation_of(LLAMA_7B, seq_len=2048, mesh=mesh, peak_flops=1e10)
    assert found is not None
    assert (found.devices, found.peak_flops_per_device, found.peak_from) == (8, 1e10, "the setting peak_flops")


def test_a_run_logs_it_and_states_the_formula_with_its_figures(tmp_path: pathlib.Path) -> None:
    write_material(tmp_path)
    config = tiny_config(tmp_path, steps=3, peak_flops=1e9, profile_steps=(2, 1))
    summary = train(config, tmp_path / "run", progress=quiet)
    lines = [line["timing"] for line in read_metrics(tmp_path / "run")]
    each = token_flops(config.model, seq_len=128).total
    for timing in lines:
        assert timing["model_flops_utilisation"] == pytest.approx(each * timing["tokens_per_second"] / (8 * 1e9))
    assert summary["model_flops_utilisation"] == sorted(t["model_flops_utilisation"] for t in lines)[1]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    told = environment["model_flops_utilisation"]
    assert Utilisation(**told).of(1.0) == each / 8e9
    assert environment["input"]["data_sha256"]
    assert environment["source"].keys() & {"revision", "version"}
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1

    page = (ROOT / "docs" / "watching.md").read_text()
    shown = {name.replace("/", ".") for line in read_metrics(tmp_path / "run") for name in flat(line)}
    assert not [name for name in shown if f"`{name}`" not in page]


def test_the_settings_that_the_page_names_are_settings() -> None:
    page = (ROOT / "docs" / "watching.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in page.splitlines() if line.startswith("    wizard train FILE")]
    assert len(commands) == 4
    known = {info.path for info in paths(TrainConfig)}
    for words in commands:
        settings = {word.partition("=")[0] for word in words if "=" in word}
        assert settings
        assert settings <= known


@pytest.mark.parametrize("peak", [0.0, -1.0, float("inf")])
def test_a_peak_that_is_none_is_refused(tmp_path: pathlib.Path, peak: float) -> None:
    with pytest.raises(UserError, match="peak_flops"):
        tiny_config(tmp_path, peak_flops=peak)

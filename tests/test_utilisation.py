"""Utilisation is a share of a peak that somebody states, and of no other."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from tiny_run import tiny_config

from configs.errors import UserError
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.watching.utilisation import utilisation_of

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


@pytest.mark.parametrize("peak", [0.0, -1.0, float("inf")])
def test_a_peak_that_is_none_is_refused(tmp_path: pathlib.Path, peak: float) -> None:
    with pytest.raises(UserError, match="peak_flops"):
        tiny_config(tmp_path, peak_flops=peak)

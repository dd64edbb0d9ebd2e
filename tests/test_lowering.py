"""The step of the largest model is ready for the compiler in seconds: only abstract arrays, each layer traced once."""

from __future__ import annotations

import time

import jax
import pytest

from configs.loader import load
from wizard_jax.model.decoder import count_params
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.optimizer import Adafactor, AdamW, Optimizer
from wizard_jax.train.step import abstract_batch, make_steps


@pytest.mark.parametrize("optimizer", [AdamW(peak_lr=1.0), Adafactor(peak_lr=1.0)], ids=lambda one: type(one).__name__)
def test_the_70b_step_is_traced_and_lowered_in_less_than_ten_seconds(optimizer: Optimizer) -> None:
    config = load(TrainConfig, ["configs/train/wizardlm_70b.gin"], ["init.path=weights", "tokenizer=tokenizer.model"])
    assert count_params(config.model) > 65e9
    mesh = make_mesh(MeshConfig(tensor=2))
    began = time.process_time()
    with jax.set_mesh(mesh):
        steps = make_steps(config.model, optimizer=optimizer, total_steps=9, gradient_accumulation=2, mesh=mesh)
        program = steps.train.lower(steps.abstract, abstract_batch(rows=64, seq_len=2048, mesh=mesh)).as_text()
    seconds = time.process_time() - began
    assert seconds < 10, f"{seconds:.1f} s of processor time"
    assert "stablehlo.while" in program, "the layers are a loop"

"""The shipped files of models describe the published networks."""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import pytest

from configs.loader import load, setting
from wizard_jax.convert.architectures import write_config
from wizard_jax.model.config import ModelConfig, ModelConfigError
from wizard_jax.model.decoder import abstract_params, count_params
from wizard_jax.model.rope import LinearScaling

MODELS = pathlib.Path(__file__).parents[1] / "configs" / "models"
TINY = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=12)


@dataclass(frozen=True, kw_only=True)
class Root:
    """As a stage's config holds a model."""

    model: ModelConfig = setting()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama_7b", 6_738_415_616),
        ("llama_13b", 13_015_864_320),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("codellama_13b", 13_016_028_160),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_2_1b", 1_235_814_400),
        ("mistral_7b", 7_241_732_096),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen3_8b", 8_190_735_360),
        ("opt_6_7b", 6_658_473_984),
        ("starcoder_15b", 15_517_456_384),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    model = load(Root, [MODELS / f"{name}.gin"]).model
    assert count_params(model) == parameters
    write_config(model)  # or it raises: its family in Hugging Face computes all of it


def test_tied_embeddings_have_one_table() -> None:
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    assert "unembed" not in abstract_params(tied)
    assert count_params(TINY) - count_params(tied) == TINY.vocab_size * TINY.d_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads"),
        ({"head_dim": 3}, "must be even"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"scan_unroll": 3}, "more than n_layers = 2"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"sliding_window": 0}, "sliding_window = 0"),
        ({"biases": ("q", "q")}, "name each of its linear layers once"),
        ({"biases": ("gate",), "mlp": "relu"}, r"\(q, k, v, o, up, down\)"),
        ({"position_offset": 2}, "rotary positions have no table"),
        ({"positions": "learned", "position_offset": -1}, "must be 0 or above"),
        ({"positions": "learned", "rope_scaling": LinearScaling(factor=2.0)}, "no rotary frequencies"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        dataclasses.replace(TINY, **change)

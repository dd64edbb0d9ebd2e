"""The formula of FLOPs is what the traced step multiplies."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest

from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params, count_params
from wizard_jax.model.flops import formula, matrix_params, token_flops
from wizard_jax.train.step import batch_loss

ROWS, LENGTH = 2, 24
SIZES: dict[str, Any] = {"vocab_size": 96, "d_model": 32, "n_layers": 3, "head_dim": 8, "d_ff": 80}


def products(jaxpr: Any) -> float:
    """Multiplications and additions of every dot_general of a jaxpr, those of a scan once for each of its turns."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracting)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner) * equation.params.get("length", 1)
    return total


NETWORKS: dict[str, dict[str, Any]] = {
    "grouped queries": {"n_kv_heads": 2},
    "a key for each query": {"n_kv_heads": 4},
    "as OPT 350m": {
        "n_kv_heads": 4,
        "mlp": "relu",
        "norm": "layer",
        "norm_place": "after",
        "positions": "learned",
        "biases": ("q", "k", "v", "o", "up", "down"),
        "tied_embeddings": True,
        "d_embed": 16,
    },
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("remat", get_args(get_type_hints(ModelConfig)["remat"]))
def test_the_formula_counts_the_matrix_products_of_a_traced_gradient(remat: Any, network: str) -> None:
    model = ModelConfig(**SIZES, n_heads=4, **NETWORKS[network], remat=remat)
    batch = {name: jnp.zeros((ROWS, LENGTH), jnp.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
    batch["loss_weights"] = jnp.ones((ROWS, LENGTH))
    traced = jax.jit(jax.grad(lambda params: batch_loss(params, batch, model=model).total)).trace(
        abstract_params(model)
    )
    flops = token_flops(model, seq_len=LENGTH)
    # The reference multiplies the masked half of the scores too, which the formula does not count.
    whole = 2 * LENGTH / (LENGTH + 1)
    forward = flops.attention / 3
    again = forward if remat in ("dots", "full", "offload") else 0.0
    scores_again = 0.0 if again or remat == "none" else forward / 2  # no kernel, so it kept no log-sum of them
    expected = flops.matrices + flops.recomputed - again + whole * (flops.attention + again + scores_again)
    assert products(traced.jaxpr.jaxpr) / (ROWS * LENGTH) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("window", [1, 7, 24, 30])
def test_a_window_takes_its_share_of_attention(window: int) -> None:
    model = ModelConfig(**SIZES, n_heads=4, n_kv_heads=2)
    windowed = dataclasses.replace(model, sliding_window=window)
    seen = sum(min(position, window) for position in range(1, LENGTH + 1)) / LENGTH
    found, whole = (token_flops(one, seq_len=LENGTH) for one in (windowed, model))
    assert found.attention / whole.attention == pytest.approx(seen / ((LENGTH + 1) / 2))
    assert found.matrices == whole.matrices
    assert ("W" in formula(windowed, seq_len=LENGTH, adapter=None)) == (window < LENGTH)


def test_parameters_in_products_are_all_but_the_embedding_and_the_norms() -> None:
    model = ModelConfig(**SIZES, n_heads=4, n_kv_heads=2)
    beside = model.vocab_size * model.d_model + (2 * model.n_layers + 1) * model.d_model
    assert matrix_params(model) == count_params(model) - beside
    tied = ModelConfig(**SIZES, n_heads=4, n_kv_heads=2, tied_embeddings=True)
    assert matrix_params(tied) == matrix_params(model)


def test_a_token_of_llama2_7b_takes_what_is_published_of_such_models() -> None:
    """6 N T is the usual estimate; at L 2048 attention adds 4 %."""
    model = ModelConfig(
        vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, d_ff=11_008, remat="full"
    )
    flops = token_flops(model, seq_len=2048)
    assert flops.total == pytest.approx(6 * 6.738e9, rel=0.03)
    assert flops.attention / flops.total == pytest.approx(0.039, abs=0.001)
    assert 0.25 < flops.recomputed_share < 0.33

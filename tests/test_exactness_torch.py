"""Ten steps are those of `transformers`' LLaMA under PyTorch's AdamW, on the same tokens and masks.

There, every conversation is a row of its own and nothing is sharded or accumulated; here they are packed two in a row,
on 4 x 2 devices, in two microbatches. Tolerances: two programs order every sum differently, so each differs from the
true value by roundings of 6e-8 of what was added. Observed were gradients within 1.4e-6 of the largest in their
tensor (clipping adds 1e-6 to the norm there), and weights after ten steps within 1.5e-6; seven times that is allowed.
"""

from __future__ import annotations

import copy
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_steps import LENGTH, MODEL, OPTIMIZER, STEPS, Setup, batch_of, conversations, run
from hf_tensors import hf_tensors
from torch_steps import torch, torch_run

from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

SHARDED = {"devices": 8, "mesh": MeshConfig(tensor=2), "gradient_accumulation": 2}


class Case(NamedTuple):
    """A network of theirs, and the same one here."""

    theirs: Any
    model: ModelConfig
    params: decoder.Params


@pytest.fixture(scope="module", params=["untied", pytest.param("tied", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The network of exact_steps with norms that are not all one; it has grouped-query attention."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.d_model,
        intermediate_size=MODEL.d_ff,
        num_hidden_layers=MODEL.n_layers,
        num_attention_heads=MODEL.n_heads,
        num_key_value_heads=MODEL.n_kv_heads,
        head_dim=MODEL.head_dim,
        max_position_embeddings=64,
        initializer_range=MODEL.initializer_range,
        tie_word_embeddings=request.param == "tied",
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.2)
    folder = tmp_path_factory.mktemp("torch") / "model"
    theirs.save_pretrained(folder)
    return _case(theirs, folder)


def _case(theirs: Any, folder: pathlib.Path) -> Case:
    model = read_model_config(folder)
    assert model.n_heads > model.n_kv_heads
    return Case(theirs, model, jax.device_get(load_hf_params(folder, model)))


def test_packed_logits_are_those_of_every_conversation_by_itself(case: Case) -> None:
    @jax.jit
    def logits(params: decoder.Params, columns: dict[str, jax.Array]) -> jax.Array:
        hidden = decoder.hidden_states(params, **columns, config=case.model)
        return decoder.logits(params, hidden, config=case.model)

    columns = {name: jnp.asarray(batch_of(0)[name]) for name in ("tokens", "positions", "segment_ids")}
    found_BxLxV = np.asarray(logits(case.params, columns))
    assert found_BxLxV.shape[1] == LENGTH
    for index, (tokens, _) in enumerate(conversations(0)):
        with torch.no_grad():
            expected = case.theirs(torch.tensor(tokens[None, :-1])).logits[0].numpy()
        row, place = divmod(index, 2)
        start = 0 if place == 0 else len(conversations(0)[index - 1][0]) - 1
        found = found_BxLxV[row, start : start + len(tokens) - 1]
        # of logits up to 2; observed 1e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_ten_sharded_steps_on_packed_rows_are_those_of_pytorch(case: Case) -> None:
    start = hf_tensors(case.params, case.model)
    change: dict[str, Any] = {**SHARDED, "model": case.model, "optimizer": OPTIMIZER}
    found = run(Setup(**change), weights=case.params)
    expected = torch_run(copy.deepcopy(case.theirs), OPTIMIZER, steps=STEPS)

    assert OPTIMIZER.clip_norm is not None
    assert expected.grad_norms[0] > OPTIMIZER.clip_norm, "the gradients that are compared have been clipped"
    np.testing.assert_allclose(found.losses, expected.losses, rtol=3e-6)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=3e-6)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        np.testing.assert_allclose(found.gradients[name], gradient, rtol=0, atol=1e-5 * largest, err_msg=name)
    # without the mask, decay would take 1.5e-3 off every scale of a norm
    for name, weight in expected.weights.items():
        assert np.abs(weight - start[name]).max() > 5e-3, f"{name} has hardly moved"
        np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=1e-5, err_msg=name)

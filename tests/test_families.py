"""Every family comes in whole, computes and learns what `transformers` does, and goes out as it came.

Tolerances as in test_exactness_torch.py. Adam's epsilon is larger here: a bias of keys without rotation shifts all
scores of a query alike, so its gradient is zero but for rounding, which Adam would otherwise blow up.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_steps import OPTIMIZER, Setup, run
from model_families import FAMILIES, LONGEST, VARIANTS, VOCABULARY
from safetensors.numpy import load_file
from torch_steps import torch, torch_run

from wizard_jax.convert.architectures import FAMILIES as KNOWN
from wizard_jax.convert.export import export_hf
from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.convert.peft import export_adapter
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.generate.sampler import Sampling, generate
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.lora import LoRA, each_array, init_adapter, merge, with_adapter
from wizard_jax.model.sharding import MeshConfig

STEPS = 3
SETTINGS = dataclasses.replace(OPTIMIZER, eps=1e-5, warmup_steps=1)


class Case(NamedTuple):
    """A network of theirs, its folder, and the same one here."""

    theirs: Any
    folder: pathlib.Path
    model: ModelConfig
    params: decoder.Params


def case_of(make: Any, folder: pathlib.Path) -> Case:
    theirs = make()
    theirs.save_pretrained(folder)
    model = read_model_config(folder)
    return Case(theirs, folder, model, jax.device_get(load_hf_params(folder, model)))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(FAMILIES[request.param], tmp_path_factory.mktemp("family") / "model")


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(VARIANTS[request.param], tmp_path_factory.mktemp("variant") / "model")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    from tokenizers import Tokenizer, models

    plain = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY - 2)}, unk_token="w0"))
    plain.add_special_tokens(["<s>", "</s>"])
    plain.save(str(path))
    return path


@functools.partial(jax.jit, static_argnames="model")
def logits_of(params: decoder.Params, tokens_BxL: Any, *, model: ModelConfig) -> jax.Array:
    columns = {
        "tokens": jnp.asarray(tokens_BxL),
        "positions": jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape),
        "segment_ids": jnp.ones(tokens_BxL.shape, jnp.int32),
    }
    return decoder.logits(params, decoder.hidden_states(params, **columns, config=model), config=model)


def check_logits(case: Case) -> None:
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (2, LONGEST)).astype(np.int32)
    with torch.no_grad():
        expected = case.theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(expected).max() > 1  # else closeness would mean nothing
    np.testing.assert_allclose(logits_of(case.params, tokens, model=case.model), expected, atol=1e-4, rtol=0)


def check_there_and_back(case: Case, tokenizer_path: pathlib.Path, out: pathlib.Path) -> None:
    export_hf(case.params, case.model, tokenizer_path, out, chat_format="vicuna", card="", dtype="float32")
    expected, found = load_file(case.folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name
    assert read_model_config(out) == case.model
    architectures = [json.loads((folder / "config.json").read_text())["architectures"] for folder in (case.folder, out)]
    assert architectures[0] == architectures[1]


def test_logits_are_those_of_transformers(case: Case) -> None:
    check_logits(case)


def test_logits_of_what_else_a_config_may_say_are_those_of_transformers(variant: Case) -> None:
    check_logits(variant)


def test_there_and_back_is_bit_identical(case: Case, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    check_there_and_back(case, tokenizer_path, tmp_path / "hf")


def test_what_else_a_config_may_say_is_written_again(
    variant: Case, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    check_there_and_back(variant, tokenizer_path, tmp_path / "hf")


def test_the_exported_folder_is_read_by_transformers_as_the_same_model(
    case: Case, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = export_hf(
        case.params, case.model, tokenizer_path, tmp_path / "hf", chat_format="vicuna", card="", dtype="float32"
    )
    again = type(case.theirs).from_pretrained(out, attn_implementation="eager")
    tokens = torch.arange(3, 3 + 40)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, case.theirs(tokens).logits)


def test_three_sharded_steps_on_packed_rows_are_those_of_pytorch(case: Case) -> None:
    setup = Setup(
        devices=8,
        mesh=MeshConfig(tensor=2),
        gradient_accumulation=2,
        model=case.model,
        optimizer=SETTINGS,
        steps=STEPS,
    )
    found = run(setup, weights=case.params)
    expected = torch_run(copy.deepcopy(case.theirs), SETTINGS, steps=STEPS)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        atol = 1e-5 * max(np.abs(gradient).max(), 1e-2)
        np.testing.assert_allclose(found.gradients[name], gradient, rtol=0, atol=atol, err_msg=name)
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=1e-5, err_msg=name)


def test_greedy_answers_are_those_of_transformers(case: Case) -> None:
    random = np.random.default_rng(1)
    groups = [random.integers(3, VOCABULARY, (5, length)).astype(np.int32) for length in (3, 8, 17, 40)]
    prompts = [prompt for group in groups for prompt in group]
    sampling = Sampling(max_new_tokens=12)
    found = generate(case.params, prompts, config=case.model, sampling=sampling, eos_id=2, batch_size=8)
    expected = []
    for group in groups:
        told = torch.tensor(group, dtype=torch.long)
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        whole = case.theirs.generate(told, attention_mask=torch.ones_like(told), **settings)
        expected += [row[: row.index(2)] if 2 in row else row for row in whole[:, group.shape[1] :].tolist()]
    assert [answer.tolist() for answer in found] == expected


def test_an_adapter_of_every_linear_layer_is_trained_and_merged(case: Case) -> None:
    adapter = LoRA(rank=2, alpha=4.0, base="float32")
    tokens = np.random.default_rng(2).integers(3, VOCABULARY, (2, 12)).astype(np.int32)
    halves = jax.tree.map(lambda leaf: leaf + 0.05, init_adapter(case.model, adapter=adapter))
    assert halves["layers"].keys() == set(case.model.linear_layers)
    beside = with_adapter(case.params, halves, adapter=adapter)
    in_one = each_array(case.params, functools.partial(merge, trained=halves, adapter=adapter))
    found = logits_of(beside, tokens, model=case.model)
    assert not np.allclose(found, logits_of(case.params, tokens, model=case.model), atol=1e-2)
    np.testing.assert_allclose(found, logits_of(in_one, tokens, model=case.model), rtol=0, atol=1e-4)


def test_an_update_of_a_part_of_a_stored_layer_is_not_written_for_peft(
    tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    case = case_of(FAMILIES["starcoder"], tmp_path / "model")
    adapter = LoRA(rank=2, alpha=4.0)
    trained = init_adapter(case.model, adapter=adapter)
    told = {"base_model": "starcoder", "chat_format": "vicuna", "card": ""}
    with pytest.raises(ConversionError, match=r"stores k, q, v as parts of one layer.*leave --format peft out"):
        export_adapter(trained, case.model, adapter, tokenizer_path, tmp_path / "peft", **told)
    few = LoRA(rank=2, alpha=4.0, targets=("o", "up"))
    out = export_adapter(
        init_adapter(case.model, adapter=few), case.model, few, tokenizer_path, tmp_path / "peft", **told
    )
    assert json.loads((out / "adapter_config.json").read_text())["target_modules"] == ["attn.c_proj", "c_fc"]


def test_every_family_is_here() -> None:
    assert {make().config.model_type for make in FAMILIES.values()} == KNOWN.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "llama", "qk_norm": True}, "qk_norm = True where it has False"),
        ({"family": "mistral", "biases": ("q",)}, r"biases = \('q',\) where it has \(\)"),
        ({"family": "gpt_bigcode"}, "no tensor for layers/gate"),
        ({"family": "gpt5"}, "it may be llama, mistral"),
    ],
    ids=str,
)
def test_a_model_that_its_family_does_not_compute_is_not_written(
    tokenizer_path: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    tiny = ModelConfig(vocab_size=96, d_model=16, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=4, d_ff=8)
    model = dataclasses.replace(tiny, **changes)
    params = decoder.init_params(model, key=jax.random.key(0))
    with pytest.raises(ConversionError, match=message):
        export_hf(params, model, tokenizer_path, tmp_path / "hf", chat_format="vicuna", card="", dtype="float32")
    assert not (tmp_path / "hf").exists()

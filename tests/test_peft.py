"""An adapter is what `peft` makes of it: the same gradients, the same steps, and the same model once it is exported."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from wizard_jax.convert.export import export_hf
from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.convert.peft import export_adapter
from wizard_jax.model import decoder
from wizard_jax.model.config import LINEAR_LAYERS, ModelConfig
from wizard_jax.model.lora import LoRA, each_array, init_adapter, merge, with_adapter
from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
from wizard_jax.tokenizer import train_tokenizer
from wizard_jax.train.optimizer import AdamW
from wizard_jax.train.step import batch_loss, make_steps

torch = pytest.importorskip("torch", reason="PyTorch is installed beside the lock file, by `make`")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

    peft = pytest.importorskip("peft", reason="peft is installed beside the lock file, by `make`")

# peft asks transformers by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTER = LoRA(rank=4, alpha=6.0, base="float32")
ROWS, LENGTH = 8, 24


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A random LLaMA with grouped-query attention, as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    folder = tmp_path_factory.mktemp("base") / "hf"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(hf_folder: pathlib.Path) -> tuple[ModelConfig, decoder.Params]:
    config = read_model_config(hf_folder)
    return config, load_hf_params(hf_folder, config)


@pytest.fixture(scope="module")
def trained(base: tuple[ModelConfig, decoder.Params]) -> decoder.Params:
    """An A and a B that are both far from zero."""
    return drawn(base[0], adapter=ADAPTER)


def drawn(model: ModelConfig, *, adapter: LoRA) -> decoder.Params:
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(scale=0.2, size=leaf.shape), jnp.float32),
        init_adapter(model, adapter=adapter),
    )


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["sort the list and reverse it", "count the words, then add one"] * 9, path, vocab_size=300)
    return path


def columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 300, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH)),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "loss_weights": (random.random((ROWS, LENGTH)) < 0.5).astype(np.float32),
    }


def torch_loss(model: Any) -> Any:
    """The mean over trained tokens, as `batch_loss` gives it."""
    told = columns()
    scores = model(torch.tensor(told["tokens"], dtype=torch.long)).logits
    losses = torch.nn.functional.cross_entropy(
        scores.reshape(-1, scores.shape[-1]),
        torch.tensor(told["targets"].reshape(-1), dtype=torch.long),
        reduction="none",
    )
    weights = torch.tensor(told["loss_weights"].reshape(-1))
    return (losses * weights).sum() / weights.sum()


@pytest.fixture(scope="module")
def exported(
    base: tuple[ModelConfig, decoder.Params],
    trained: decoder.Params,
    tokenizer_path: pathlib.Path,
    hf_folder: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    return export_adapter(
        trained,
        base[0],
        ADAPTER,
        tokenizer_path,
        tmp_path_factory.mktemp("exported") / "peft",
        base_model=str(hf_folder),
        chat_format="vicuna",
        card="# An adapter",
        dtype="float32",
    )


def load_peft(hf_folder: pathlib.Path, adapter: pathlib.Path, *, is_trainable: bool = False) -> Any:
    plain = transformers.LlamaForCausalLM.from_pretrained(hf_folder, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(plain, adapter, is_trainable=is_trainable)


def test_peft_computes_our_logits_with_the_adapter_that_is_exported_and_transformers_with_the_merged_model(
    base: Any,
    trained: decoder.Params,
    hf_folder: pathlib.Path,
    exported: pathlib.Path,
    tokenizer_path: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    config, params = base
    told = {name: jnp.asarray(column) for name, column in columns().items()}
    seen = {name: told[name] for name in ("tokens", "positions", "segment_ids")}

    def logits(tree: decoder.Params) -> jax.Array:
        return decoder.logits(tree, decoder.hidden_states(tree, **seen, config=config), config=config)

    found = logits(with_adapter(params, trained, adapter=ADAPTER))
    model = load_peft(hf_folder, exported)
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(told["tokens"]), dtype=torch.long)).logits.numpy()
    assert np.abs(np.asarray(logits(params)) - expected).max() > 0.1, "the adapter must matter"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    whole = each_array(params, functools.partial(merge, trained=trained, adapter=ADAPTER))
    folder = export_hf(
        whole, config, tokenizer_path, tmp_path / "merged", chat_format="vicuna", card="# Merged", dtype="float32"
    )
    merged = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        in_one = merged(torch.tensor(np.asarray(told["tokens"]), dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(in_one, expected, atol=1e-4, rtol=0)


def test_the_folder_names_its_base_and_every_target(hf_folder: pathlib.Path, exported: pathlib.Path) -> None:
    told = json.loads((exported / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["r"], told["lora_alpha"]) == (str(hf_folder), 4, 6)
    assert len(load_file(exported / "adapter_model.safetensors")) == 2 * 7 * 2
    config = peft.LoraConfig.from_pretrained(exported)
    projections = {f"{name}_proj" for name in LINEAR_LAYERS}
    assert set(config.target_modules) == projections
    template = json.loads((exported / "tokenizer_config.json").read_text())["chat_template"]
    assert "USER" in template


def gradients_of(tree: decoder.Params, config: ModelConfig, params: decoder.Params, adapter: LoRA) -> decoder.Params:
    told = {name: jnp.asarray(column) for name, column in columns().items()}

    def loss(halves: decoder.Params) -> jax.Array:
        total = batch_loss(with_adapter(params, halves, adapter=adapter), told, model=config)
        return total.total / total.weight

    return jax.jit(jax.grad(loss))(tree)


def named(tree: decoder.Params, config: ModelConfig, folder: pathlib.Path, tokenizer: pathlib.Path) -> dict[str, Any]:
    """Our tree under peft's names, by way of our exporter."""
    out = export_adapter(
        tree, config, ADAPTER, tokenizer, folder, base_model="", chat_format="vicuna", card="", dtype="float32"
    )
    return load_file(out / "adapter_model.safetensors")


def torch_halves(model: Any, *, gradient: bool) -> dict[str, Any]:
    return {
        name.replace(".default", ""): (weight.grad if gradient else weight.detach()).numpy()
        for name, weight in model.named_parameters()
        if "lora_" in name
    }


def test_gradients_of_a_and_b_equal_those_of_peft(
    base: Any,
    trained: decoder.Params,
    hf_folder: pathlib.Path,
    exported: pathlib.Path,
    tokenizer_path: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    model = load_peft(hf_folder, exported, is_trainable=True)
    torch_loss(model).backward()
    expected = torch_halves(model, gradient=True)
    ours = gradients_of(trained, *base, ADAPTER)
    found = named(ours, base[0], tmp_path / "gradients", tokenizer_path)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-4 * np.abs(gradient).max(), rtol=0, err_msg=name)


def test_five_steps_equal_those_of_peft_and_torch_s_adamw(
    base: Any, hf_folder: pathlib.Path, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """From A as it is drawn and B of zero, on several devices, with clipping and decay."""
    config, params = base
    optimizer = AdamW(peak_lr=5e-3, schedule="constant", weight_decay=0.1, clip_norm=0.5)
    mesh = make_mesh(MeshConfig(tensor=2), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        steps = make_steps(
            config, optimizer=optimizer, total_steps=5, gradient_accumulation=2, mesh=mesh, adapter=ADAPTER
        )
        where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.frozen)
        state = steps.start(jax.device_put(params, where))
        started = named(jax.device_get(state.params), config, tmp_path / "start", tokenizer_path)
        batch = jax.device_put({**columns(), "halt": np.zeros(ROWS, np.int32)}, batch_sharding(mesh))
        losses = []
        for _ in range(5):
            state, metrics = steps.train(state, batch)
            losses.append(float(metrics.loss))
        found = named(jax.device_get(state.params), config, tmp_path / "end", tokenizer_path)

    model = load_peft(hf_folder, tmp_path / "start", is_trainable=True)
    halves = [weight for name, weight in model.named_parameters() if "lora_" in name]
    theirs = torch.optim.AdamW(halves, lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    expected_losses = []
    for _ in range(5):
        theirs.zero_grad()
        loss = torch_loss(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(halves, 0.5)
        theirs.step()
        expected_losses.append(loss.item())
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    assert losses[-1] < 0.99 * losses[0]
    for name, expected in torch_halves(model, gradient=False).items():
        assert np.abs(expected - started[name]).max() > 1e-3, name
        # Adam divides by the root of a square: the smallest gradients are the least certain.
        np.testing.assert_allclose(found[name], expected, atol=2e-4, rtol=0, err_msg=name)


def test_an_adapter_of_some_layers_is_loaded_too(
    base: Any, hf_folder: pathlib.Path, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config, params = base
    adapter = dataclasses.replace(ADAPTER, targets=("o", "down"), alpha=2.5)
    halves = drawn(config, adapter=adapter)
    out = export_adapter(
        halves, config, adapter, tokenizer_path, tmp_path / "peft", base_model="", chat_format="vicuna", card=""
    )
    told = {name: jnp.asarray(column) for name, column in columns().items()}
    ours = batch_loss(with_adapter(params, halves, adapter=adapter), told, model=config)
    with torch.no_grad():
        theirs = torch_loss(load_peft(hf_folder, out)).item()
    np.testing.assert_allclose(float(ours.total / ours.weight), theirs, rtol=1e-5)
    assert optax.tree.norm(halves) > 1

"""GPTQ loses less than rounding to the nearest, and GPTQModel computes with its folders what we say it does."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_models import MODELS, Tiny
from safetensors.numpy import load_file
from tiny_run import quiet, tiny_config, write_material

from configs.folder import load_config
from wizard_jax.cli import main
from wizard_jax.convert.gptq.calibrated import RoundedLayer, check_groups, rounded_layers
from wizard_jax.convert.gptq.export import write_folder
from wizard_jax.convert.gptq.layout import packed
from wizard_jax.convert.gptq.rounding import Codes, gptq, nearest
from wizard_jax.convert.new_folder import new_folder
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.data.pipeline import Batch
from wizard_jax.deployment.source import reader
from wizard_jax.evaluate.perplexity import perplexity, run_batches
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.runs import open_model
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.train import train

GROUP = 32
STEPS = 150


def correlated(rows: int, inputs: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and inputs of which few directions matter, as those of a trained network."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((512, inputs)) * np.geomspace(1, 0.01, inputs)
    inputs_NxI = mixed @ np.linalg.qr(random.standard_normal((inputs, inputs)))[0]
    return random.standard_normal((rows, inputs)).astype(np.float32), inputs_NxI


def test_outputs_change_less_than_by_rounding_to_the_nearest() -> None:
    weight, inputs = correlated(48, 128)
    expected = inputs @ weight.T

    def lost(codes: Codes) -> float:
        return float(np.square(inputs @ codes.values().T - expected).mean())

    assert lost(gptq(weight, inputs.T @ inputs, group=GROUP)) < 0.5 * lost(nearest(weight, group=GROUP))


def test_inputs_that_tell_nothing_of_one_another_give_rounding_to_the_nearest() -> None:
    weight, _ = correlated(16, 64)
    for gram in (np.eye(64), np.zeros((64, 64))):
        found, expected = gptq(weight, gram, group=GROUP), nearest(weight, group=GROUP)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(found.scales, expected.scales)


def test_codes_scales_and_zeros_lie_where_the_layout_has_them() -> None:
    weight, _ = correlated(16, 64)
    weight[3] = 0.0
    codes = nearest(weight, group=GROUP)
    tensors = packed("x", codes)
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "x.qweight": ("int32", (8, 16)),
        "x.qzeros": ("int32", (2, 2)),
        "x.scales": ("float16", (2, 16)),
        "x.g_idx": ("int32", (64,)),
    }
    words = tensors["x.qweight"].view(np.uint32)
    for output, input_ in ((0, 0), (5, 9), (15, 63)):
        assert (words[input_ // 8, output] >> (4 * (input_ % 8))) & 15 == codes.codes[output, input_]
    assert (tensors["x.qzeros"].view(np.uint32) == 0x77777777).all()
    assert tensors["x.g_idx"].tolist() == [0] * 32 + [1] * 32
    assert (codes.codes[3] == 8).all()
    assert (np.abs(codes.values() - weight) <= np.repeat(codes.scales.T, GROUP, axis=1) * 0.501).mean() > 0.95


@functools.cache
def rounded(name: str) -> tuple[Tiny, list[Any], Tiny]:
    """A tiny model, its layers in 4 bits, and the model with the values of those."""
    tiny = dataclasses.replace(MODELS[name], config=dataclasses.replace(MODELS[name].config, d_ff=128))
    random, length = np.random.default_rng(0), 48
    positions, segments = np.tile(np.arange(length, dtype=np.int32), (4, 1)), np.ones((4, length), np.int32)
    segments[:, 40:] = 0
    rows = [random.integers(3, 400, (4, length)).astype(np.int32) for _ in range(2)]
    calibration = [{"tokens": tokens, "positions": positions, "segment_ids": segments} for tokens in rows]
    layers = list(rounded_layers(tiny.read, tiny.config, calibration, round_=functools.partial(gptq, group=GROUP)))
    after = dataclasses.replace(tiny)
    vars(after)["params"] = with_layers(tiny.params, layers)
    return tiny, layers, after


def with_layers(params: decoder.Params, layers: list[RoundedLayer]) -> decoder.Params:
    stacked = {key: jnp.asarray(np.stack([layer.arrays[key] for layer in layers])) for key in layers[0].arrays}
    return {**params, "layers": stacked}


def exported(name: str, folder: pathlib.Path) -> pathlib.Path:
    tiny, layers, _ = rounded(name)
    told: dict[str, Any] = {"chat_format": tiny.chat_format, "group": GROUP, "damping": 0.01}
    with new_folder(folder / "out") as out:
        write_folder(out, tiny.read, layers, tiny.config, tiny.tokenizer(folder), **told)
    return folder / "out"


def test_the_folder_has_every_tensor_and_names_the_method(tmp_path: pathlib.Path) -> None:
    out = exported("qwen2", tmp_path)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    held = {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert held == index
    assert {name.rpartition(".")[2] for name in held if ".q_proj." in name} == {
        *("qweight", "qzeros", "scales", "g_idx", "bias"),
    }
    config = json.loads((out / "config.json").read_text())
    told = config["quantization_config"]
    assert (told["quant_method"], told["bits"], told["group_size"], told["sym"]) == ("gptq", 4, GROUP, True)
    assert json.loads((out / "quantize_config.json").read_text()) == told
    assert config["dtype"] == "float16"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="gptqmodel is not installed")
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "starcoder", "mistral"])
def test_gptqmodel_computes_what_our_values_do(name: str, tmp_path: pathlib.Path) -> None:
    """In float16, by its kernel for CPUs."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(
        str(exported(name, tmp_path)), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    assert "TorchLinear" in {type(module).__name__ for module in loaded.model.modules()}
    tokens = np.random.default_rng(1).integers(3, 400, 48).tolist()
    with torch.no_grad():
        theirs = torch.log_softmax(loaded.model(torch.tensor([tokens])).logits[0].float(), -1).numpy()
    ours = rounded(name)[2].logprobs(tokens)
    divergence = (np.exp(ours) * (ours - theirs)).sum(-1)
    assert divergence.max() < 1e-3  # that of the whole model is 0.1 to 0.5


@pytest.mark.parametrize("group", [128, 48, 0])
def test_groups_that_do_not_fit_are_refused_with_the_layers_sizes(group: int) -> None:
    with pytest.raises(ConversionError, match=rf"groups of {group} do not fit: .*q_proj.weight has 64 inputs and 64"):
        check_groups(MODELS["llama"].config, group=group)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that has learnt to repeat, also what it was never trained on."""
    folder = tmp_path_factory.mktemp("trained")
    write_material(folder)
    sizes: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64}
    config = tiny_config(folder, model=ModelConfig(vocab_size=320, **sizes), steps=STEPS, checkpoint_every=STEPS)
    train(config, folder / "run", progress=quiet)
    return folder / "run"


def divergence(params: Any, other: Any, model: ModelConfig, batches: list[Batch]) -> float:
    """Kullback-Leibler, in nats of a trained token: how far `other` is from what `params` foresee."""
    total = weights = 0.0
    for batch in batches:
        columns = {name: jnp.asarray(getattr(batch, name)) for name in ("tokens", "positions", "segment_ids")}
        theirs, ours = (
            jax.nn.log_softmax(
                decoder.logits(tree, decoder.hidden_states(tree, **columns, config=model), config=model), axis=-1
            )
            for tree in (other, params)
        )
        total += float(((jnp.exp(ours) * (ours - theirs)).sum(-1) * batch.loss_weights).sum())
        weights += float(batch.loss_weights.sum())
    return total / weights


def test_a_trained_model_changes_less_on_held_out_text_than_by_rounding_to_the_nearest(trained: pathlib.Path) -> None:
    model, run = open_model(trained), load_config(TrainConfig, trained)
    fitted, apart = (list(run_batches(trained, run, model.tokenizer, part=part)) for part in ("train", "held_out"))
    columns = [batch._asdict() for batch in fitted]
    rounds: list[Any] = [
        functools.partial(gptq, group=GROUP),
        lambda weight, _: nearest(weight, group=GROUP),
    ]
    by_gptq, by_nearest = (
        divergence(model.params, with_layers(model.params, layers), model.config, apart)
        for layers in (
            list(rounded_layers(reader(model.params), model.config, columns, round_=round_)) for round_ in rounds
        )
    )
    assert 0 < by_gptq < 0.7 * by_nearest


def test_the_card_has_the_perplexity_before_and_after(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "--format", "gptq", "--group-size", "32", "--out", str(out)]) == 0
    found = re.search(
        r"Perplexity on ([\d,]+) held-out tokens: ([\d.]+) as it was, ([\d.]+) with",
        (out / "README.md").read_text(),
    )
    assert found
    model = open_model(trained)
    apart = run_batches(trained, load_config(TrainConfig, trained), model.tokenizer, part="held_out")
    expected = perplexity(model.params, model.config, apart)
    assert (int(found[1].replace(",", "")), float(found[2])) == (
        expected.tokens,
        pytest.approx(expected.value, abs=1e-4),
    )
    assert float(found[3]) == pytest.approx(expected.value, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "gptq"], "groups of 128 do not fit"),
        (["--format", "gptq", "--dtype", "float32"], "--dtype and --quantisation have no effect with --format gptq"),
        (["--group-size", "16"], "--group-size and --calibration say how GPTQ rounds: they go with --format gptq"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(
    trained: pathlib.Path, options: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_import_is_calibrated_on_a_file_of_texts(
    trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--no-verify", "--out", str(tmp_path / "hf")]) == 0
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "in")]) == 0
    command = ["export", str(tmp_path / "in"), "--format", "gptq", "--group-size", "16", "--out", str(tmp_path / "out")]
    texts = tmp_path / "texts"
    for content, message in (
        (None, "says of no data that it was trained on: give texts .* by --calibration FILE"),
        (b"one\n\n", "texts: has 1 texts: give at least 2"),
        (b"a\xff\nb\nc", "texts: is not UTF-8"),
    ):
        if content is not None:
            texts.write_bytes(content)
        assert main([*command, *(["--calibration", str(texts)] if content is not None else [])]) == 2
        assert re.search(message, capsys.readouterr().err)
    texts.write_text("\n".join(f"Take this list and reverse it: plum fig {number}" for number in range(20)))
    assert main([*command, "--calibration", str(texts)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Calibrated on 17 rows of {texts}." in card
    assert "held-out tokens: " in card

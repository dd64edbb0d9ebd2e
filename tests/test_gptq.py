"""GPTQ loses less than rounding to the nearest, and GPTQModel computes with its folders what we say it does."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizers import like_starcoder
from gguf_models import MODELS, Tiny
from safetensors.numpy import load_file, save_file
from tiny_run import quiet, tiny_config, write_material

from configs.folder import load_config
from wizard_jax.cli import main
from wizard_jax.convert import peer
from wizard_jax.convert.gptq import reading
from wizard_jax.convert.gptq.calibrated import RoundedLayer, check_groups, rounded_layers
from wizard_jax.convert.gptq.export import write_folder
from wizard_jax.convert.gptq.layout import packed
from wizard_jax.convert.gptq.reading import verify_file
from wizard_jax.convert.gptq.rounding import Codes, gptq, nearest
from wizard_jax.convert.importing import read_model_config
from wizard_jax.convert.new_folder import new_folder
from wizard_jax.convert.tensors import Array, ConversionError, Place
from wizard_jax.convert.verify import VerificationError
from wizard_jax.data.packing import pack
from wizard_jax.data.pipeline import Batch, batches
from wizard_jax.data.steps import step_rows
from wizard_jax.deployment import measuring
from wizard_jax.deployment.calibration import find_material
from wizard_jax.deployment.gptq import export_gptq_model
from wizard_jax.deployment.source import reader
from wizard_jax.evaluate.perplexity import perplexity, run_batches
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.runs import find_model, open_model
from wizard_jax.tokenizer import Tokenizer, tokenizer_file
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
def tiny_model(name: str) -> Tiny:
    """One that GGUF has too, or one of the family OPT."""
    if name in MODELS:
        return dataclasses.replace(MODELS[name], config=dataclasses.replace(MODELS[name].config, d_ff=128))
    from model_families import FAMILIES  # it needs torch

    with tempfile.TemporaryDirectory() as folder:
        FAMILIES[name](vocabulary=424, ffn_dim=64).config.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config | {"architectures": ["OPTForCausalLM"]}))
        return Tiny(config=read_model_config(folder), like=like_starcoder, chat_format="alpaca")


@functools.cache
def rounded(name: str) -> tuple[Tiny, list[Any], Tiny]:
    """A tiny model, its layers in 4 bits, and the model with the values of those."""
    tiny = tiny_model(name)
    layers = list(rounded_layers(tiny.read, tiny.config, calibration(), round_=functools.partial(gptq, group=GROUP)))
    after = dataclasses.replace(tiny)
    around = jax.tree.map(
        lambda array: array.astype(np.float16).astype(np.float32),
        {name: array for name, array in tiny.params.items() if name != "layers"},
    )
    vars(after)["params"] = with_layers(around, layers)
    return tiny, layers, after


def calibration() -> list[dict[str, np.ndarray]]:
    random, length = np.random.default_rng(0), 48
    positions, segments = np.tile(np.arange(length, dtype=np.int32), (4, 1)), np.ones((4, length), np.int32)
    segments[:, 40:] = 0
    rows = [random.integers(3, 400, (4, length)).astype(np.int32) for _ in range(2)]
    return [{"tokens": tokens, "positions": positions, "segment_ids": segments} for tokens in rows]


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


def test_a_layer_is_not_read_before_the_one_before_it_is_done() -> None:
    tiny = MODELS["llama"]
    read: list[int | None] = []

    def watched(place: Place) -> Array:
        read.append(place.layer)
        return tiny.read(place)

    round_ = functools.partial(gptq, group=GROUP)
    for number, _ in enumerate(rounded_layers(watched, tiny.config, calibration(), round_=round_)):
        assert set(read) == {None, *range(number + 1)}
    assert read.count(None) == 1, "the head and the final norm are no part of it"


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("up", np.nan, "layers.1.mlp.up_proj.weight: holds values that are not finite"),
        ("up", 1e7, "layers.1.mlp.up_proj.weight: holds values that are too large for the scales"),
        ("mlp_norm", 1e5, "layers.1.post_attention_layernorm.weight: holds values that are not finite in float16"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_tensor(array: str, value: float, message: str) -> None:
    tiny = MODELS["llama"]

    def read(place: Place) -> Array:
        found = tiny.read(place).copy()
        if (place.path, place.layer) == (("layers", array), 1):
            found[..., 5] = value
        return found

    with pytest.raises(ConversionError, match=message):
        list(rounded_layers(read, tiny.config, calibration(), round_=functools.partial(gptq, group=GROUP)))


def unpacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the whole model, float32, as the layout's description says."""

    def codes(words: np.ndarray) -> np.ndarray:
        """Along the first axis."""
        return np.stack([(words.astype(np.int64) >> 4 * place) & 15 for place in range(8)], 1).reshape(
            -1, words.shape[1]
        )

    found = {name: array.astype(np.float32) for name, array in tensors.items() if array.dtype == np.float16}
    for name in [name for name in found if name.endswith(".scales")]:
        stem, scales = name.removesuffix(".scales"), found.pop(name)
        zeros = codes(tensors[f"{stem}.qzeros"].T).T + 1
        group = tensors[f"{stem}.g_idx"]
        found[f"{stem}.weight"] = ((codes(tensors[f"{stem}.qweight"]) - zeros[group]) * scales[group]).T
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [
        *("qwen2", "galactica"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt 350m", "llama 3.1", "starcoder", "mistral")),
    ],
)
def test_transformers_computes_what_our_values_do_once_its_codes_are_multiplied_out(
    name: str, tmp_path: pathlib.Path
) -> None:
    """Names, biases, positions and codes by a reader that is not ours and needs no kernels."""
    out, whole = exported(name, tmp_path), tmp_path / "whole"
    whole.mkdir()
    tensors: dict[str, np.ndarray] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    save_file(unpacked(tensors), whole / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["bits"] == 4
    (whole / "config.json").write_text(json.dumps(config))
    tokens = np.random.default_rng(1).integers(3, 400, 48)
    (theirs,) = peer.transformers_logits(whole, [tokens])
    np.testing.assert_allclose(
        jax.nn.log_softmax(theirs, axis=-1), rounded(name)[2].logprobs(tokens.tolist()), atol=2e-4
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gptqmodel", "optimum"))), reason="gptqmodel and optimum are not installed"
)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "galactica"])
def test_transformers_itself_computes_what_our_values_do(name: str, tmp_path: pathlib.Path) -> None:
    """By the kernel that it takes for CPUs, in float16. (Of the family GPT-BigCode transformers 5.23 opens no folder in
    4 bits: it initialises `c_proj.weight`, which a quantised layer has not. GPTQModel does.)"""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(exported(name, tmp_path)), dtype=torch.float16, device_map="cpu"
    )
    tokens = np.random.default_rng(1).integers(3, 400, 48).tolist()
    with torch.no_grad():
        theirs = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1).numpy()
    ours = rounded(name)[2].logprobs(tokens)
    assert (np.exp(ours) * (ours - theirs)).sum(-1).max() < 1e-3


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


def divergence(params: Any, other: Any, model: ModelConfig, rows: list[Batch]) -> float:
    """Kullback-Leibler, in nats of a trained token: how far `other` is from what `params` foresee."""
    total = weights = 0.0
    for batch in rows:
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


def test_the_card_has_the_perplexity_before_and_after_and_the_same_export_is_not_made_twice(
    trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    files = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    command = ["export", str(trained), "--format", "gptq", "--out", str(out), "--group-size"]
    assert main([*command, "32"]) == 0
    said = capsys.readouterr().out
    assert f"{out} holds this export already; when it was made:\nall 63 tensors were read back from the disk" in said
    assert found[0] in said[said.index("perplexity") - 1 :].replace("perplexity", "Perplexity")
    assert main([*command, "16"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == files


def test_what_memory_does_not_allow_is_left_out_and_said(
    trained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*_: Any, **__: Any) -> Any:
        raise AssertionError("the whole model is opened")

    monkeypatch.setattr(measuring, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(measuring, "open_model", whole)
    exported = export_gptq_model(trained, tmp_path / "out", group=32)
    assert exported.checks[1] == "perplexity was not measured: that takes 2 GB of memory, and there was less"


def test_it_is_calibrated_on_the_rows_of_the_first_steps(trained: pathlib.Path) -> None:
    """And not on the first of the packed rows, which lie by length."""
    found = find_model(trained)
    run = found.run
    assert run is not None
    rows = find_material(found, None).calibration
    packed = pack(run.data, found.tokenizer, cache_dir=pathlib.Path(str(run.pack_cache)), part="train")
    assert sum(int(batch.segment_ids.any(axis=1).sum()) for batch in rows) == min(128, packed.rows)
    first = next(batches(packed, rows=step_rows(run.batch, stats=packed.stats), seed=run.seed))
    for name, column in first._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(batch, name) for batch in rows[:2]]), column)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("scales", lambda array: array * np.float16(1.01)),
        ("qweight", lambda array: array ^ 1),
        ("qzeros", lambda array: array ^ 16),
        ("g_idx", lambda array: array[::-1].copy()),
        ("qweight", lambda array: array.astype(np.int64)),
        ("scales", lambda array: array[:1]),
        ("scales", None),
    ],
)
def test_a_file_with_another_value_part_or_type_is_found(
    part: str, change: Callable[[np.ndarray], np.ndarray] | None, tmp_path: pathlib.Path
) -> None:
    weight, _ = correlated(16, 64)
    codes, file = nearest(weight, group=GROUP), tmp_path / "x.safetensors"
    tensors = packed("x", codes)
    save_file(tensors, file)
    assert verify_file(file, {"x.weight": codes.values()}) == 4
    with pytest.raises(
        VerificationError, match=r"^x.safetensors holds other values than were written to it, of: y.weight"
    ):
        verify_file(file, {"x.weight": codes.values(), "y.weight": codes.values()})
    array = tensors.pop(f"x.{part}")
    save_file(tensors if change is None else {**tensors, f"x.{part}": change(array)}, file)
    with pytest.raises(VerificationError, match=r"x(\.|$)"):
        verify_file(file, {"x.weight": codes.values()})


def test_a_folder_that_differs_never_gets_its_name(
    trained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(file: pathlib.Path) -> None:  # what a disk does
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(reading, "drop_cached", broken)
    command = ["export", str(trained), "--format", "gptq", "--group-size", "32", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert re.search(r"out: not written, as it would not be .*run: model-00001-of", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "gptq"], "groups of 128 do not fit: model.layers.0"),
        (["--format", "gptq"], "(of 32 would fit the inputs)"),
        (["--format", "gptq", "--dtype", "float32"], "--dtype and --quantisation have no effect with --format gptq"),
        (["--format", "gptq", "--no-verify"], "--no-verify has no effect with --format gptq: what it writes is always"),
        (["--group-size", "16"], "--group-size and --calibration say how GPTQ rounds: they go with --format gptq"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(
    trained: pathlib.Path, options: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_import_whose_vocabulary_grew_is_calibrated_on_a_file_of_texts(
    trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--no-verify", "--out", str(tmp_path / "hf")]) == 0
    grown = ["--add-tokens=<new>", "--pad-vocabulary-to", "64"]
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "in"), *grown]) == 0
    command = ["export", str(tmp_path / "in"), "--format", "gptq", "--group-size", "16", "--out", str(tmp_path / "out")]
    texts = tmp_path / "texts"
    for content, message in (
        (None, "says of no data that it was trained on: give texts .* by --calibration FILE"),
        (b"one\n\n", "texts: has 1 texts: give at least 2"),
        (b"a\xff\nb\nc", "texts: is not UTF-8"),
        ("gone", "gone: no such file: give one of texts, one in each line"),
    ):
        if isinstance(content, bytes):
            texts.write_bytes(content)
        file = tmp_path / content if isinstance(content, str) else texts
        assert main([*command, *(["--calibration", str(file)] if content is not None else [])]) == 2
        assert re.search(message, capsys.readouterr().err)
    texts.write_text("\n".join(f"Take this list and reverse it: plum fig {number}" for number in range(20)))
    assert main([*command, "--calibration", str(texts)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"calibrated on 17 rows of {texts}." in card
    assert "held-out tokens: " in card
    assert "given the special tokens `<new>`" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 384
    assert load_file(tmp_path / "out" / "model-00003-of-00003.safetensors")["lm_head.weight"].shape == (384, 32)
    assert Tokenizer(tokenizer_file(tmp_path / "out")).piece(320) == "<new>"

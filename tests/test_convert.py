"""Hugging Face folders are taken whole and exactly, or refused with every reason."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wizard_jax.chat import get_format
from wizard_jax.convert.architectures import places
from wizard_jax.convert.export import export_hf
from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh, shardings
from wizard_jax.tokenizer import train_tokenizer

TINY = ModelConfig(vocab_size=300, d_model=16, n_layers=3, n_heads=8, n_kv_heads=2, head_dim=4, d_ff=24)
TIED = dataclasses.replace(TINY, tied_embeddings=True)
SHARD = 20_000


@pytest.fixture(scope="module")
def params() -> decoder.Params:
    return decoder.init_params(TINY, key=jax.random.key(0))


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["Sort the words. Then reverse the words."], path, vocab_size=300)
    return path


@pytest.fixture(scope="module")
def original(
    params: decoder.Params, tokenizer_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    return export_hf(
        params,
        TINY,
        tokenizer_path,
        out,
        chat_format="alpaca",
        card="# A card\n",
        dtype="float32",
        max_shard_bytes=SHARD,
    )


@pytest.fixture
def folder(original: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(original, tmp_path / "hf"))


def edit(path: pathlib.Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def one_file(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")


def assert_same(found: decoder.Params, expected: decoder.Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_exported_folder_is_complete_and_comes_back_bit_for_bit(
    original: pathlib.Path, params: decoder.Params, tokenizer_path: pathlib.Path
) -> None:
    config = read_model_config(original)
    assert config == TINY
    assert_same(load_hf_params(original, config), params)
    assert (original / "README.md").read_text() == "# A card\n"
    assert (original / "tokenizer.model").read_bytes() == tokenizer_path.read_bytes()
    assert (
        json.loads((original / "tokenizer_config.json").read_text())["chat_template"] == get_format("alpaca").template
    )
    assert json.loads((original / "generation_config.json").read_text())["do_sample"] is False
    assert not list(original.parent.glob(".*"))


def test_files_stay_under_the_limit_and_the_index_lists_every_tensor(original: pathlib.Path) -> None:
    files = sorted(original.glob("*.safetensors"))
    index = json.loads((original / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    stored = {name: file.name for file in files for name in load_file(file)}
    assert stored == index["weight_map"]
    assert stored.keys() == places(TINY).keys()
    totals = [sum(array.nbytes for array in load_file(file).values()) for file in files]
    assert max(totals) <= SHARD
    assert sum(totals) == index["metadata"]["total_size"] == decoder.count_params(TINY) * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_folders_hold_the_rounded_values(
    params: decoder.Params, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path, dtype: Any
) -> None:
    out = export_hf(params, TINY, tokenizer_path, tmp_path / "hf", chat_format="vicuna", card="", dtype=dtype)
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    assert_same(load_hf_params(out, TINY, dtype=dtype), rounded)
    found = load_hf_params(out, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_same(found, jax.tree.map(lambda leaf: leaf.astype("float32"), rounded))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(slice=2, fsdp=2, tensor=2)], ids=str)
def test_a_sharded_import_equals_the_whole_one(
    original: pathlib.Path, params: decoder.Params, mesh: MeshConfig
) -> None:
    placed = shardings(decoder.logical_axes(TINY), make_mesh(mesh), shapes=decoder.abstract_params(TINY))
    found = load_hf_params(original, TINY, shardings=placed)
    assert_same(found, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == placed
    assert not found["layers"]["o"].is_fully_replicated


def test_any_part_of_an_array_can_be_read_by_itself(original: pathlib.Path, params: decoder.Params) -> None:
    stored = weights(original)
    for name, (place,) in places(TINY).items():
        whole = np.asarray(
            params[place.path[0]] if place.layer is None else params["layers"][place.path[1]][place.layer]
        )
        index = tuple(slice(size // 4, size // 4 + max(1, size // 2)) for size in place.shape)
        np.testing.assert_array_equal(place.read(stored[name], index), whole[index], err_msg=name)
        np.testing.assert_array_equal(place.to_stored(whole), stored[name], err_msg=name)


def test_a_sharded_model_exports_as_the_whole_one(
    original: pathlib.Path, params: decoder.Params, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    placed = jax.device_put(params, shardings(decoder.logical_axes(TINY), make_mesh(MeshConfig(fsdp=4, tensor=2))))
    out = export_hf(placed, TINY, tokenizer_path, tmp_path / "hf", chat_format="vicuna", card="", dtype="float32")
    assert [file.name for file in out.glob("*.safetensors*")] == ["model.safetensors"]
    expected = weights(original)
    for name, array in weights(out).items():
        np.testing.assert_array_equal(array, expected[name])


def test_every_wrong_tensor_is_listed(folder: pathlib.Path) -> None:
    tensors = weights(folder)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((16, 24), np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
    one_file(folder, tensors)
    with pytest.raises(ConversionError) as caught:
        load_hf_params(folder, TINY)
    for line in (
        "missing: model.norm.weight",
        "unknown: model.layers.0.self_attn.q_proj.bias [32]",
        "shape [16, 24] where the config says [24, 16]: model.layers.1.mlp.up_proj.weight",
        "dtype I8, not one of F32, F16, BF16: lm_head.weight",
    ):
        assert line in str(caught.value)


def test_a_tensor_in_two_files_is_refused(folder: pathlib.Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    save_file(load_file(files[0]) | load_file(files[1]), files[1])
    with pytest.raises(ConversionError, match=rf"set twice, in {files[0].name} and {files[1].name}: "):
        load_hf_params(folder, TINY)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConversionError, match="set twice"):
        load_hf_params(folder, TINY)


def test_an_index_that_is_not_the_truth_is_refused(folder: pathlib.Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    tensors = load_file(files[1])
    gone = next(iter(tensors))
    save_file({name: array for name, array in tensors.items() if name != gone}, files[1])
    with pytest.raises(ConversionError, match=f"listed in .*index.json but not in its file: {gone}"):
        load_hf_params(folder, TINY)
    files[1].unlink()
    with pytest.raises(ConversionError, match=f"but absent: {files[1].name}"):
        load_hf_params(folder, TINY)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConversionError, match="remove the one that is not meant"):
        load_hf_params(folder, TINY)


def test_old_rotary_buffers_are_passed_over(folder: pathlib.Path, params: decoder.Params) -> None:
    tensors = weights(folder)
    one_file(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)})
    assert_same(load_hf_params(folder, TINY), params)


def test_a_tied_folder_may_hold_its_embedding_twice_but_nothing_else(folder: pathlib.Path) -> None:
    tensors = weights(folder)
    one_file(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert "unembed" not in load_hf_params(folder, TIED)
    one_file(folder, tensors)
    with pytest.raises(ConversionError, match="tie_word_embeddings is true, yet lm_head"):
        load_hf_params(folder, TIED)


def test_a_truncated_file_is_named(folder: pathlib.Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConversionError, match=f"{file.name}: truncated"):
        load_hf_params(folder, TINY)


def test_pickles_are_never_opened(folder: pathlib.Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ConversionError, match=r"holds no \*.safetensors"):
        load_hf_params(folder, TINY)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ConversionError, match=r"pickled weights \(pytorch_model.bin\).*save_pretrained"):
        load_hf_params(folder, TINY)
    with pytest.raises(ConversionError, match="no such folder"):
        load_hf_params(folder / "elsewhere", TINY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "architectures is .*Mixtral.*the nearest is MistralForCausalLM"),
        ({"architectures": None}, "architectures is None; these can be imported: LlamaForCausalLM, Mistral"),
        ({"attention_bias": "yes"}, "attention_bias = 'yes': must be true or false"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "rope_parameters differ in rope_type"),
        ({"rope_parameters": {"type": "dynamic", "factor": 8.0}}, "rope_type = 'dynamic'; rope_type may be default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "of type 'linear' lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale": 1}}, "mscale = 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor = 0.0: must be above 0"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta = 'big'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 5}, "n_heads = 5 is not a multiple"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"vocab_size": None}, "vocab_size = None"),
    ],
    ids=str,
)
def test_settings_that_are_not_computed_here_are_refused_by_name(
    folder: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ConversionError, match=message):
        read_model_config(folder)


def test_the_configs_of_transformers_4_and_5_and_of_llama_1_are_read(folder: pathlib.Path) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    four = {name: value for name, value in raw.items() if name != "rope_parameters"}
    path.write_text(json.dumps(four | {"rope_theta": 5e5}))
    assert read_model_config(folder).rope_theta == 5e5
    five = {name: value for name, value in raw.items() if name not in ("rope_theta", "rope_scaling")}
    path.write_text(json.dumps(five | {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}))
    assert read_model_config(folder).rope_theta == 7e5
    for name in ("num_key_value_heads", "head_dim", "rope_parameters", "rope_theta"):
        del raw[name]
    path.write_text(json.dumps(raw))
    first = read_model_config(folder)
    assert (first.n_kv_heads, first.head_dim, first.rope_theta) == (8, 2, 10_000.0)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_config_that_is_no_json_object_is_refused(folder: pathlib.Path, text: str | None) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=r"config\.json: "):
        read_model_config(folder)


def test_nothing_appears_under_the_name_when_an_export_fails(
    params: decoder.Params, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "hf"
    broken = params | {"final_norm": params["final_norm"].at[0].set(1e6)}
    with pytest.raises(ConversionError, match=r"model.norm.weight: .* not finite in float16"):
        export_hf(broken, TINY, tokenizer_path, out, chat_format="vicuna", card="", dtype="float16")
    assert not out.exists()
    export_hf(params, TINY, tokenizer_path, out, chat_format="vicuna", card="")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    with pytest.raises(ConversionError, match="exists already"):
        export_hf(params, TINY, tokenizer_path, out, chat_format="vicuna", card="")


def test_a_tokenizer_that_the_model_has_no_room_for_is_refused(
    params: decoder.Params, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    small = dataclasses.replace(TINY, vocab_size=100)
    with pytest.raises(ConversionError, match="the model only 100"):
        export_hf(params, small, tokenizer_path, tmp_path / "hf", chat_format="vicuna", card="")

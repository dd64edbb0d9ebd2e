"""What a `config.json` may hold: it is read as transformers reads it, or refused in a sentence, whatever it is."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

from wizard_jax.convert.architectures import FAMILIES, read_config
from wizard_jax.convert.importing import read_model_config
from wizard_jax.convert.inventory import read_tensors
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.safetensors_file import file_header
from wizard_jax.convert.tensors import ConversionError
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.rope import Llama3Scaling, YarnScaling

SIZES: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
OPT: Mapping[str, Any] = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "activation_function": "relu"}
BIGCODE: Mapping[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "original_max_position_embeddings": 16}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**SIZES, "attention_bias": True, "rope_scaling": YARN, "tie_word_embeddings": True},
    "mistral": {**SIZES, "sliding_window": 7, "head_dim": 6, "rope_parameters": YARN},
    "qwen2": {**SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0, "layer_types": None},
    "qwen3": {**SIZES, "layer_types": None, "rope_theta": 1e6},
    "opt": {**OPT, "do_layer_norm_before": False, "layer_norm_elementwise_affine": True, "enable_bias": True},
    "gpt_bigcode": {**BIGCODE, "n_inner": None, "activation_function": "gelu", "multi_query": True},
}
ANYTHING: tuple[Any, ...] = (None, "x", "2", 1.5, -1, 0, True, [], {}, [[1]], {"a": 1}, 10**9, 10**400)
ANYTHING += (float("nan"), float("inf"), ["sliding_attention", "sliding_attention"])


def read(family: str, **changes: Any) -> ModelConfig:
    named = {"architectures": [FAMILIES[family].architecture], "model_type": family}
    return read_config(RawConfig({**named, **CONFIGS[family], **changes}, path=pathlib.Path("config.json")))


def refusal(family: str, **changes: Any) -> str:
    """'' where it is taken."""
    try:
        read(family, **changes)
    except ConversionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", CONFIGS)
def test_a_setting_of_any_kind_is_taken_or_refused(family: str) -> None:
    names = ("architectures", "model_type", "hidden_act", *CONFIGS[family])
    refused = [told for name, value in itertools.product(names, ANYTHING) if (told := refusal(family, **{name: value}))]
    assert len(refused) > 3 * len(names)
    assert all(told.startswith("config.json: ") for told in refused)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "dynamic", "default"])
def test_a_scaling_of_any_kind_is_taken_or_refused(kind: str) -> None:
    scaling = {**YARN, "rope_type": kind}
    for name, value in itertools.product((*YARN, "type", "rope_theta", "partial_rotary_factor"), ANYTHING):
        told = refusal("llama", rope_scaling={**scaling, name: value})
        assert told.startswith("config.json: ") or (told == "" and kind == "yarn"), (name, value)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"architectures": [["LlamaForCausalLM"]]}, "these can be imported: LlamaForCausalLM"),
        ("llama", {"model_type": "mistral"}, "whose model_type is 'llama', yet model_type is 'mistral'"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear': must be an object"),
        ("llama", {"rope_scaling": None, "rope_parameters": 0}, "rope_parameters = 0: must be an object"),
        ("llama", {"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type = \['yarn'\]; rope_type may be default"),
        ("llama", {"rope_scaling": {**YARN, "original_max_position_embeddings": "4k"}}, "'4k': must be a number"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "lacks factor, low_freq_factor, high_freq_factor"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps = 1000.*: must be a number"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types = .*for each of 2 layers"),
        ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types = .*for each of 2 layers"),
        ("qwen2", {"max_window_layers": 1}, "1 of 2 layers have a sliding window"),
        ("opt", {"activation_function": ["relu"]}, r"activation_function = \['relu'\]"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "quantised, and only whole ones are read"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read(family, **changes)


def test_what_a_config_does_not_say_is_what_transformers_takes_for_it() -> None:
    without = {name: value for name, value in YARN.items() if name != "original_max_position_embeddings"}
    assert read("llama", rope_scaling=without).rope_scaling == YarnScaling(factor=4.0, original_positions=64)
    llama3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = read("llama", rope_scaling=llama3).rope_scaling
    assert isinstance(found, Llama3Scaling)
    assert found.original_positions == 64
    assert read("llama", rope_scaling={**YARN, "attention_factor": None}) == read("llama")
    assert read("llama").n_kv_heads == 8
    assert read("mistral", num_attention_heads=16).n_kv_heads == 8
    assert read("mistral", num_attention_heads=16, num_key_value_heads=None).n_kv_heads == 16


def test_more_layers_than_there_are_tensors_are_refused_at_once(tmp_path: pathlib.Path) -> None:
    named = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 10**12}
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **named}))
    (tmp_path / "model.safetensors").write_bytes(file_header({"model.norm.weight": ("F32", [0])}))
    with pytest.raises(ConversionError, match=r"says 1,000,000,000,000 layers, and there are 1 tensors"):
        read_tensors(tmp_path, read_model_config(tmp_path))


def test_a_number_of_more_digits_than_python_reads_is_no_json(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": ' + "9" * 5000 + "}")
    with pytest.raises(ConversionError, match="is not JSON"):
        read_model_config(tmp_path)

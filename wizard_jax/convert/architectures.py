"""The families of models that come in and go out: one file each, with a config reader, its inverse and a table."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from configs.schema import fields_of
from wizard_jax.convert.families.family import Family
from wizard_jax.convert.families.gpt_bigcode import GPT_BIGCODE
from wizard_jax.convert.families.llama import LLAMA
from wizard_jax.convert.families.mistral import MISTRAL
from wizard_jax.convert.families.opt import OPT
from wizard_jax.convert.families.qwen2 import QWEN2
from wizard_jax.convert.families.qwen3 import QWEN3
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.tensors import Array, ConversionError, Place, at, placed
from wizard_jax.model.config import ModelConfig, ModelConfigError
from wizard_jax.model.decoder import Params, abstract_params

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, OPT, GPT_BIGCODE)}
)


def read_config(raw: RawConfig) -> ModelConfig:
    """The model of a `config.json`. Raises ConversionError: an architecture or a setting that is not known here."""
    architectures = raw.values.get("architectures")
    known = {family.architecture: family for family in FAMILIES.values()}
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConversionError(
            f"{raw.path}: architectures is {architectures!r}; these can be imported: {', '.join(known)}{hint}"
        )
    kind = raw.values.get("model_type")
    if kind not in (None, known[name].name):  # by which transformers goes
        raise ConversionError(
            f"{raw.path}: architectures is {architectures!r}, whose model_type is {known[name].name!r}, yet model_type "
            f"is {kind!r}: correct the one that is wrong"
        )
    if raw.values.get("quantization_config") is not None:
        raise ConversionError(
            f"{raw.path}: quantization_config: its weights are quantised, and only whole ones are read: give the "
            "model that they were made of, or dequantise them where you have what reads them"
        )
    try:
        return known[name].read(raw)
    except ModelConfigError as error:
        raise ConversionError(f"{raw.path}: {error}") from error


def write_config(model: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, without what its tokenizer decides.

    Raises ConversionError: its family computes something else, or does not exist.
    """
    family = family_of(model)
    written = {"architectures": [family.architecture], "model_type": family.name, **family.write(model)}
    read = family.read(RawConfig(written, path=pathlib.Path("config.json")))
    differ = [
        f"{name} = {getattr(model, name)!r} where it has {getattr(read, name)!r}"
        for name, field in fields_of(ModelConfig).items()
        if field.role == "identity" and getattr(read, name) != getattr(model, name)
    ]
    if differ:
        raise ConversionError(
            f"no {family.architecture} of Hugging Face computes what this model does: {'; '.join(differ)}; set "
            "model.family to another of " + ", ".join(FAMILIES)
        )
    return written


def family_of(model: ModelConfig) -> Family:
    """Raises ConversionError: there is no such family."""
    if model.family not in FAMILIES:
        raise ConversionError(f"model.family = {model.family!r}: it may be {', '.join(FAMILIES)}")
    return FAMILIES[model.family]


def places(model: ModelConfig) -> dict[str, tuple[Place, ...]]:
    """Every tensor of a model as Hugging Face stores it, and where its rows live in our tree."""
    return placed(family_of(model).table, abstract_params(model), layers=model.n_layers)


def tree_of(model: ModelConfig, stored: Iterable[tuple[str, Array]]) -> Params:
    """The parameters, float32, of all tensors of a model by name as Hugging Face stores them."""
    params: Params = jax.tree.map(lambda array: np.empty(array.shape, np.float32), abstract_params(model))
    where = places(model)
    for name, values in stored:
        for place in where[name]:
            whole: Any = at(params, place.path)
            target = whole if place.layer is None else whole[place.layer]
            target[...] = place.read(values, tuple(slice(0, size) for size in place.shape))
    return params

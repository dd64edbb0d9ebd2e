"""A Hugging Face folder whose linear layers are in 4 bits, one file for each layer."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert import architectures
from wizard_jax.convert.export import CARD, write_configs, write_tokenizer
from wizard_jax.convert.gptq.calibrated import RoundedLayer
from wizard_jax.convert.gptq.layout import packed, settings
from wizard_jax.convert.inventory import INDEX
from wizard_jax.convert.new_folder import new_folder, write_bytes, write_json
from wizard_jax.convert.tensors import Array, ConversionError, at, to_stored
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params
from wizard_jax.tokenizer import Tokenizer


def export_gptq(
    params: Params,
    layers: Iterable[RoundedLayer],
    model: ModelConfig,
    tokenizer: Tokenizer,
    out: str | os.PathLike[str],
    *,
    chat_format: str,
    group: int,
    damping: float,
    card: Callable[[], str],
) -> pathlib.Path:
    """Writes `out`, which appears under its name when it is complete; what has no codes is float16.

    `card` gives the text of its README.md, and is asked when all layers are written.

    Raises ConversionError: `out` is there already, or a value is not finite in float16.
    """
    check_tokenizer(get_format(chat_format), tokenizer)
    files = [f"model-{number:05d}-of-{model.n_layers + 1:05d}.safetensors" for number in range(1, model.n_layers + 2)]
    weight_map: dict[str, str] = {}
    with new_folder(out) as folder:
        for number, layer in enumerate(layers):
            tensors = _layer_tensors(layer, number, model=model)
            weight_map |= _save(folder, files[number], tensors)
        weight_map |= _save(folder, files[-1], _other_tensors(params, model=model))
        total = sum((folder / file).stat().st_size for file in files)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        end = write_tokenizer(folder, tokenizer, model=model, chat_format=chat_format)
        told: dict[str, Any] = settings(group=group, damping=damping)
        write_configs(folder, model, tokenizer, end=end, dtype="float16", quantization_config=told)
        write_json(folder / "quantize_config.json", told)
        write_bytes(folder / CARD, card().encode())
    return pathlib.Path(out)


def _layer_tensors(layer: RoundedLayer, number: int, *, model: ModelConfig) -> dict[str, Array]:
    for stem, codes in layer.codes.items():
        if not np.isfinite(codes.scales).all():
            raise ConversionError(f"{stem}.weight: holds values that are not finite, or too large for float16")
    tensors = {name: array for stem, codes in layer.codes.items() for name, array in packed(stem, codes).items()}
    for name, rows in architectures.places(model).items():
        if rows[0].layer == number and name.removesuffix(".weight") not in layer.codes:
            tensors[name] = _half(name, to_stored(rows, [np.asarray(layer.arrays[place.path[-1]]) for place in rows]))
    return tensors


def _other_tensors(params: Params, *, model: ModelConfig) -> dict[str, Array]:
    return {
        name: _half(name, to_stored(rows, [np.asarray(at(params, place.path)) for place in rows]))
        for name, rows in architectures.places(model).items()
        if rows[0].layer is None
    }


def _half(name: str, array: Array) -> Array:
    with np.errstate(over="ignore"):  # an overflow is found by its infinity
        half = np.ascontiguousarray(array.astype(np.float16))
    if not np.isfinite(half).all():
        raise ConversionError(f"{name}: holds values that are not finite in float16")
    return half


def _save(folder: pathlib.Path, file: str, tensors: Mapping[str, Array]) -> dict[str, str]:
    save_file(dict(tensors), folder / file, metadata={"format": "pt"})
    with (folder / file).open("rb") as written:
        os.fsync(written.fileno())
    return dict.fromkeys(tensors, file)

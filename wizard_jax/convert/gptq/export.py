"""A Hugging Face folder whose linear layers are in 4 bits, one file for each layer."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from configs.folder import naming
from wizard_jax.convert import architectures
from wizard_jax.convert.export import write_configs, write_tokenizer
from wizard_jax.convert.gptq.calibrated import RoundedLayer
from wizard_jax.convert.gptq.layout import half, packed, settings
from wizard_jax.convert.gptq.reading import read_index, verify_file
from wizard_jax.convert.inventory import INDEX
from wizard_jax.convert.new_folder import write_json
from wizard_jax.convert.safetensors_file import file_header
from wizard_jax.convert.tensors import Array, Read, to_stored
from wizard_jax.convert.verify import VerificationError, verify_config
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer

_FORMAT = {"int32": "I32", "float16": "F16"}
"""The safetensors format's names of dtypes."""


def write_folder(
    folder: pathlib.Path,
    read: Read,
    layers: Iterable[RoundedLayer],
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    chat_format: str,
    group: int,
    damping: float,
) -> str:
    """Writes all files of a folder but its card, and reads each back; returns what was verified.

    What has no codes is float16. `read` gives what is around the layers; one layer is in memory, or that.

    Raises ConversionError: a value is not finite in float16; VerificationError: the disk holds something else.
    """
    files = [f"model-{number:05d}-of-{model.n_layers + 1:05d}.safetensors" for number in range(1, model.n_layers + 2)]
    weight_map: dict[str, str] = {}
    end = write_tokenizer(folder, tokenizer, model=model, chat_format=chat_format)
    for number, layer in enumerate(layers):
        expected = _expected(layer, number, model=model)
        tensors = {name: array for stem, codes in layer.codes.items() for name, array in packed(stem, codes).items()}
        for name, array in expected.items():
            if name.removesuffix(".weight") not in layer.codes:
                tensors[name] = half(name, array)
        weight_map |= _save(folder / files[number], tensors, expected)
    around = _around(read, model=model)
    weight_map |= _save(folder / files[-1], around, {name: array.astype(np.float32) for name, array in around.items()})
    total = sum((folder / file).stat().st_size for file in files)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    told: dict[str, Any] = settings(group=group, damping=damping)
    write_configs(folder, model, tokenizer, end=end, dtype="float16", quantization_config=told)
    write_json(folder / "quantize_config.json", told)
    return _verified(folder, model, weight_map)


def _expected(layer: RoundedLayer, number: int, *, model: ModelConfig) -> dict[str, Array]:
    """The values of a layer's tensors, by the names that they have in the whole model."""
    return {
        name: to_stored(rows, [layer.arrays[place.path[-1]] for place in rows])
        for name, rows in architectures.places(model).items()
        if rows[0].layer == number
    }


def _around(read: Read, *, model: ModelConfig) -> dict[str, Array]:
    """Embedding, final norm and what else is in no layer: float16."""
    return {
        name: half(name, to_stored(rows, [read(place) for place in rows]))
        for name, rows in architectures.places(model).items()
        if rows[0].layer is None
    }


def _save(file: pathlib.Path, tensors: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, str]:
    """Writes a file and reads it back; returns its part of the index."""
    header = file_header({name: (_FORMAT[array.dtype.name], array.shape) for name, array in tensors.items()})
    with naming(file), file.open("wb") as opened:
        opened.write(header)
        for array in tensors.values():
            opened.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        opened.flush()
        os.fsync(opened.fileno())
    found = verify_file(file, expected)
    if found != len(tensors):
        raise VerificationError(f"{file.name} holds {found} tensors where {len(tensors)} were written")
    return dict.fromkeys(tensors, file.name)


def _verified(folder: pathlib.Path, model: ModelConfig, weight_map: Mapping[str, str]) -> str:
    verify_config(folder, model, beside=("quantization_config",))
    if read_index(folder) != weight_map:
        raise VerificationError(f"{INDEX} does not come back as it was written")
    return (
        f"all {len(weight_map):,} tensors were read back from the disk by the safetensors package, and their codes "
        "give the values that the model was calibrated with"
    )

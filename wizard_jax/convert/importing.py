"""Reading folders of Hugging Face, slice by slice into (sharded) arrays. Safetensors only: pickles run code."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from wizard_jax.chat import CHAT_FORMATS
from wizard_jax.convert import architectures
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.tensors import Array, ConversionError, Path, Place, stored_shape
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = ("F32", "F16", "BF16")


def read_model_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The ModelConfig of a folder's `config.json`. Raises ConversionError."""
    path = pathlib.Path(folder) / "config.json"
    return architectures.read_config(RawConfig(_read_json(path), path=path))


def read_chat_format(folder: str | os.PathLike[str]) -> str:
    """The name of the chat format whose template a folder's tokenizer carries; '' for none or another's.

    Raises ConversionError.
    """
    file = pathlib.Path(folder) / "tokenizer_config.json"
    template = _read_json(file).get("chat_template") if file.exists() else None
    return next((name for name, known in CHAT_FORMATS.items() if known.template == template), "")


def load_hf_params(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    *,
    shardings: Any = None,
    dtype: str = "float32",
) -> decoder.Params:
    """The parameters of a folder in `dtype`, placed by `shardings` (a tree like the parameters').

    Each device's part is read by itself, one layer's tensor at a time. Raises ConversionError, which lists all
    tensors that are missing, unknown, doubly set, or of another shape than `config` says.
    """
    stored = _inventory(pathlib.Path(folder))
    places = architectures.places(config)
    _check(stored, places, config=config, folder=folder)
    sources: dict[Path, list[tuple[_Stored, Place]]] = {}
    for name, rows in places.items():
        for place in rows:
            sources.setdefault(place.path, []).append((stored[name], place))

    def load(path: Path, array: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> Array:
            return _read(sources[path], index=index or (), shape=array.shape, dtype=dtype)

        if sharding is None:
            return jnp.asarray(part(None))
        return jax.make_array_from_callback(array.shape, sharding, part, dtype=jnp.dtype(dtype))

    def walk(node: Any, placed: Any, path: Path) -> Any:
        if not isinstance(node, dict):
            return load(path, node, placed)
        return {
            name: walk(child, None if placed is None else placed[name], (*path, name)) for name, child in node.items()
        }

    params: decoder.Params = walk(decoder.abstract_params(config), shardings, ())
    return params


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A tensor in a file, opened only while it is read: what is mapped counts as this process's memory."""

    name: str
    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str

    def read(self, place: Place, index: tuple[slice, ...]) -> Array:
        with safe_open(self.file, framework="numpy") as opened:
            return place.read(opened.get_slice(self.name), index)


def _read(
    sources: list[tuple[_Stored, Place]], *, index: tuple[slice, ...], shape: tuple[int, ...], dtype: str
) -> Array:
    """The part `index` of one of our arrays, from its tensor or, where it is stacked, from one per layer."""
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
    if sources[0][1].layer is None:
        stored, place = sources[0]
        return np.ascontiguousarray(stored.read(place, bounds).astype(dtype))
    part = np.empty([one.stop - one.start for one in bounds], dtype)
    for row, layer in enumerate(range(bounds[0].start, bounds[0].stop)):
        stored, place = sources[layer]
        part[row] = stored.read(place, bounds[1:]).astype(dtype)
    return part


def _inventory(folder: pathlib.Path) -> dict[str, _Stored]:
    """Every tensor of the folder by name."""
    listed = _files(folder)
    stored: dict[str, _Stored] = {}
    wrong = []
    for file in sorted(set(listed.values()) if isinstance(listed, dict) else listed):
        for tensor in _tensors(file):
            if tensor.name in stored:
                wrong.append(f"set twice, in {stored[tensor.name].file.name} and {file.name}: {tensor.name}")
            elif isinstance(listed, dict) and listed.get(tensor.name, file) != file:
                wrong.append(f"in {file.name}, where {INDEX} does not list it: {tensor.name}")
            stored[tensor.name] = tensor
    if isinstance(listed, dict):
        wrong += [f"listed in {INDEX} but not in its file: {name}" for name in listed if name not in stored]
    if wrong:
        raise ConversionError(_lines(folder, wrong))
    return stored


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path] | list[pathlib.Path]:
    """The files with weights: by tensor where there is an index, else the one file, else all of them."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder; give one with config.json and *.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if index.exists():
        if folder / SINGLE in files:
            raise ConversionError(f"{folder}: has {SINGLE} and {INDEX}: remove the one that is not meant")
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConversionError(f"{index}: has no weight_map")
        absent = sorted({file for file in weight_map.values() if folder / file not in files})
        if absent:
            raise ConversionError(_lines(folder, [f"listed in {INDEX} but absent: {file}" for file in absent]))
        return {name: folder / file for name, file in weight_map.items()}
    if folder / SINGLE in files:
        return [folder / SINGLE]
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ConversionError(
            f"{folder}: holds only pickled weights ({', '.join(pickles)}), which run code when they are opened; "
            "convert them to safetensors where you trust them (transformers: model.save_pretrained(folder))"
        )
    raise ConversionError(f"{folder}: holds no *.safetensors")


def _tensors(file: pathlib.Path) -> Iterator[_Stored]:
    try:
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                part = opened.get_slice(name)
                yield _Stored(name=name, file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
    except SafetensorError as error:
        raise ConversionError(f"{file}: truncated or no safetensors file ({error}); fetch it again") from error


def _check(
    stored: dict[str, _Stored],
    places: dict[str, tuple[Place, ...]],
    *,
    config: ModelConfig,
    folder: str | os.PathLike[str],
) -> None:
    family = architectures.family_of(config)
    tied_head = family.tensor_of("unembed") if config.tied_embeddings else None
    wrong = [f"missing: {name}" for name in places if name not in stored]
    for name, tensor in stored.items():
        if name not in places:
            if not name.endswith(family.buffers) and name != tied_head:
                wrong.append(f"unknown: {name} {list(tensor.shape)}")
        elif tensor.shape != (shape := stored_shape(places[name])):
            wrong.append(f"shape {list(tensor.shape)} where the config says {list(shape)}: {name}")
        elif tensor.dtype not in DTYPES:
            wrong.append(f"dtype {tensor.dtype}, not one of {', '.join(DTYPES)}: {name}")
    if wrong:
        raise ConversionError(_lines(folder, wrong))
    if tied_head in stored:
        _check_tie(stored, embed=family.tensor_of("embed"), head=tied_head, folder=folder)


def _check_tie(stored: dict[str, _Stored], *, embed: str, head: str, folder: str | os.PathLike[str]) -> None:
    """A tied model may still store its head, if that is the embedding."""
    tables = []
    for name in (embed, head):
        with safe_open(stored[name].file, framework="numpy") as opened:
            tables.append(opened.get_tensor(name))
    if not np.array_equal(*tables):
        raise ConversionError(
            f"{folder}: tie_word_embeddings is true, yet {head} is not {embed}: set it to false in config.json, or "
            f"remove {head}"
        )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: no such file; give a Hugging Face folder of a model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ConversionError(f"{path}: is not a JSON object")
    return raw


def _lines(folder: str | os.PathLike[str], wrong: list[str]) -> str:
    return "\n  ".join([f"{folder}: {len(wrong)} tensor(s) can not be taken as they are:", *wrong])

"""Which tensors a Hugging Face folder holds, and whether they are those of its model: every fault is told at once."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from wizard_jax.convert import architectures
from wizard_jax.convert.safetensors_file import FLOATS, Stored, read_header
from wizard_jax.convert.tensors import ConversionError, stored_shape
from wizard_jax.model.config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

Folder = str | os.PathLike[str]


def read_tensors(folder: Folder, config: ModelConfig) -> dict[str, Stored]:
    """Every tensor of a folder by name; all of the model are there, as `config` has them.

    Raises ConversionError, which lists all that are missing, unknown, doubly set, or of another shape or dtype.
    """
    at = epath.Path(folder)
    stored, wrong = _inventory(at)
    if config.n_layers > len(stored):  # whose names alone could fill the memory
        raise ConversionError(
            f"{at}: config.json says {config.n_layers:,} layers, and there are {len(stored):,} tensors"
        )
    places = architectures.places(config)
    family = architectures.family_of(config)
    tied_head = family.tensor_of("unembed") if config.tied_embeddings else None
    wrong += [f"missing: {name}" for name in places if name not in stored]
    for name, tensor in stored.items():
        if name not in places:
            if not name.endswith(family.buffers) and name != tied_head:
                wrong.append(f"unknown: {name} {list(tensor.shape)}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"dtype {tensor.dtype}, not one of {', '.join(FLOATS)}: {name}")
        elif tensor.shape != (shape := stored_shape(places[name])):
            wrong.append(f"shape {list(tensor.shape)} where the config says {list(shape)}: {name}")
    if wrong:
        raise ConversionError(_lines(at, wrong))
    if tied_head in stored:
        _check_tie(stored[family.tensor_of("embed")], stored[tied_head], folder=at)
    return stored


def weight_files(stored: Mapping[str, Stored]) -> list[epath.Path]:
    """The files that hold the tensors."""
    return sorted({tensor.file for tensor in stored.values()})


def read_json(path: epath.Path) -> dict[str, Any]:
    """Raises ConversionError: there is no such file, or it is no JSON object."""
    check_own(path.parent, [path.name])
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: no such file; give a Hugging Face folder of a model") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ConversionError(f"{path}: is not a JSON object")
    return raw


def check_own(folder: epath.Path, names: Iterable[str]) -> None:
    """Raises ConversionError where a file is a link that leads out of its folder: it would bring in anything.

    The files of a snapshot in the cache of `huggingface_hub` are links to `blobs` of the same repository.
    """
    if "://" in os.fspath(folder):
        return
    home = pathlib.Path(folder).resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for name in names:
        target = (home / name).resolve()
        if not any(target.is_relative_to(one) for one in homes):
            raise ConversionError(
                f"{folder / name}: is a link to {target}, out of the folder: put the file itself there"
            )


def _inventory(folder: epath.Path) -> tuple[dict[str, Stored], list[str]]:
    """Every tensor of the folder by name, and what is wrong with their order."""
    listed = _files(folder)
    files = sorted(set(listed.values()) if isinstance(listed, dict) else listed)
    check_own(folder, [file.name for file in files])
    stored: dict[str, Stored] = {}
    wrong = []
    for file in files:
        for tensor in read_header(file):
            if tensor.name in stored:
                wrong.append(f"set twice, in {stored[tensor.name].file.name} and {file.name}: {tensor.name}")
            elif isinstance(listed, dict) and listed.get(tensor.name, file) != file:
                wrong.append(f"in {file.name}, where {INDEX} does not list it: {tensor.name}")
            stored[tensor.name] = tensor
    if isinstance(listed, dict):
        wrong += [f"listed in {INDEX} but not in its file: {name}" for name in listed if name not in stored]
    return stored, wrong


def _files(folder: epath.Path) -> dict[str, epath.Path] | list[epath.Path]:
    """The files with weights: by tensor where there is an index, else the one file, else all of them."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder; give one with config.json and *.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if index.exists():
        if folder / SINGLE in files:
            raise ConversionError(f"{folder}: has {SINGLE} and {INDEX}: remove the one that is not meant")
        return _listed(index, files)
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


def _listed(index: epath.Path, files: list[epath.Path]) -> dict[str, epath.Path]:
    """The file of each tensor, as the index has it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index}: has no weight_map")
    folder = index.parent
    wrong = []
    for file in sorted({str(file) for file in weight_map.values()}):
        if pathlib.PurePath(file).name != file:
            wrong.append(f"listed in {INDEX}, and no name of a file beside it: {file}")
        elif folder / file not in files:
            wrong.append(f"listed in {INDEX} but absent: {file}")
    if wrong:
        raise ConversionError("\n  ".join([f"{folder}: {len(wrong)} file(s) can not be taken:", *wrong]))
    return {name: folder / file for name, file in weight_map.items()}


def _check_tie(embed: Stored, head: Stored, *, folder: epath.Path) -> None:
    """A tied model may still store its head, if that is the embedding."""
    alike = (embed.shape, embed.dtype) == (head.shape, head.dtype)
    if not alike or not all(np.array_equal(a, b) for (_, a), (_, b) in zip(embed.parts(), head.parts(), strict=True)):
        raise ConversionError(
            f"{folder}: tie_word_embeddings is true, yet {head.name} is not {embed.name}: set it to false in "
            f"config.json, or remove {head.name}"
        )


def _lines(folder: epath.Path, wrong: list[str]) -> str:
    return "\n  ".join([f"{folder}: {len(wrong)} tensor(s) can not be taken as they are:", *wrong])

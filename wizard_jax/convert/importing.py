"""Reading folders of Hugging Face, slice by slice into (sharded) arrays. Safetensors only: pickles run code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from wizard_jax.chat import CHAT_FORMATS
from wizard_jax.convert import architectures
from wizard_jax.convert.inventory import Folder, check_own, read_json, read_tensors
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.safetensors_file import Stored
from wizard_jax.convert.tensors import Array, Path, Place
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig

TEMPLATE = "chat_template.jinja"

Convert = Callable[[Path, jax.Array], Any]
"""What becomes of an array, by its path."""


def read_model_config(folder: Folder) -> ModelConfig:
    """The ModelConfig of a folder's `config.json`. Raises ConversionError."""
    path = epath.Path(folder) / "config.json"
    return architectures.read_config(RawConfig(read_json(path), path=path))


def read_chat_format(folder: Folder) -> str:
    """The name of the chat format whose template a folder's tokenizer carries; '' for none or another's.

    As in transformers, the template's own file goes before tokenizer_config.json. Raises ConversionError.
    """
    at = epath.Path(folder)
    config, file = at / "tokenizer_config.json", at / TEMPLATE
    template = read_json(config).get("chat_template") if config.exists() else None
    if isinstance(template, list):  # of several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if file.exists():
        check_own(at, [TEMPLATE])
        template = file.read_bytes().decode(errors="replace")
    return next((name for name, known in CHAT_FORMATS.items() if known.template == template), "")


def load_hf_params(
    folder: Folder,
    config: ModelConfig,
    *,
    shardings: Any = None,
    dtype: str = "float32",
    convert: Convert | None = None,
) -> decoder.Params:
    """The parameters of a folder in `dtype`, placed by `shardings` (a tree like the parameters').

    Each device's part is read by itself, one layer's tensor at a time. With `convert`, each array becomes what
    `convert(path, array)` makes of it before the next is read. Raises ConversionError as `read_tensors` does.
    """
    stored = read_tensors(folder, config)
    sources: dict[Path, list[tuple[Stored, Place]]] = {}
    for name, rows in architectures.places(config).items():
        for place in rows:
            sources.setdefault(place.path, []).append((stored[name], place))

    def load(path: Path, array: jax.ShapeDtypeStruct, sharding: Any) -> Any:
        def part(index: tuple[slice, ...] | None) -> Array:
            return _read(sources[path], index=index or (), shape=array.shape, dtype=dtype)

        if sharding is None:
            loaded = jnp.asarray(part(None))
        else:
            loaded = jax.make_array_from_callback(array.shape, sharding, part, dtype=jnp.dtype(dtype))
        if convert is None:
            return loaded
        return jax.block_until_ready(convert(path, loaded))  # type: ignore[no-untyped-call]  # jax leaves it so

    def walk(node: Any, placed: Any, path: Path) -> Any:
        if not isinstance(node, Mapping):
            return load(path, node, placed)
        return {
            name: walk(child, None if placed is None else placed[name], (*path, name)) for name, child in node.items()
        }

    params: decoder.Params = walk(decoder.abstract_params(config), shardings, ())
    return params


def _read(
    sources: Sequence[tuple[Stored, Place]], *, index: tuple[slice, ...], shape: tuple[int, ...], dtype: str
) -> Array:
    """The part `index` of one of our arrays, from its tensor or, where it is stacked, from one per layer."""
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
    if sources[0][1].layer is None:
        stored, place = sources[0]
        return np.ascontiguousarray(place.read(stored, bounds).astype(dtype))
    part = np.empty([one.stop - one.start for one in bounds], dtype)
    for row, layer in enumerate(range(bounds[0].start, bounds[0].stop)):
        stored, place = sources[layer]
        part[row] = place.read(stored, bounds[1:]).astype(dtype)
    return part

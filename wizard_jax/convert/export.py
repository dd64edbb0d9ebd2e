"""Writing a folder that `transformers` (4 and 5) and this project load: weights, configs, tokenizer, model card."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from wizard_jax.chat import ChatFormat, end_id, get_format
from wizard_jax.convert import architectures
from wizard_jax.convert.imported import check_room
from wizard_jax.convert.inventory import INDEX, SINGLE
from wizard_jax.convert.new_folder import new_folder, write_bytes, write_json
from wizard_jax.convert.safetensors_file import Stored, Written
from wizard_jax.convert.tensors import Array, ConversionError, Path, Place, at, stored_shape
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import JSON, SENTENCEPIECE, Tokenizer
from wizard_jax.tokenizer_files import as_decoder
from wizard_jax.tokenizer_json import tokenizer_json

Dtype = Literal["float32", "bfloat16", "float16"]
Places: TypeAlias = Mapping[str, tuple[Place, ...]]
Weights: TypeAlias = Callable[[Places, Written], None]
"""Puts every tensor of the places, in any order."""
ReadLayer: TypeAlias = Callable[[Path, int | None], Array]
"""An array of our tree by its path, or one layer of a stacked one."""

CARD = "README.md"
GIB = 1 << 30


def export_hf(
    params: decoder.Params,
    config: ModelConfig,
    tokenizer_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    chat_format: str,
    card: str,
    dtype: Dtype = "bfloat16",
    max_shard_bytes: int = 5 * GIB,
) -> pathlib.Path:
    """Write a Hugging Face folder of parameters; `card` is the text of its README.md.

    The folder appears under its name when it is complete, and not before. Raises ConversionError: it is there
    already, the tokenizer does not fit, or a value is not finite in `dtype`. Raises ChatError: the tokenizer lacks what
    the chat format needs.
    """
    tokenizer = Tokenizer(tokenizer_path)
    with new_folder(out) as folder:
        weights = from_params(params)
        write_model(
            folder,
            weights,
            config,
            tokenizer,
            chat_format=chat_format,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
        write_bytes(folder / CARD, card.encode())
    return pathlib.Path(out)


def write_model(
    folder: pathlib.Path,
    weights: Weights,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    chat_format: str,
    dtype: Dtype,
    max_shard_bytes: int = 5 * GIB,
    read_back: bool = True,
) -> Written:
    """Write all files of a Hugging Face folder but its card, with as much in memory as `weights` puts at a time.

    Returns what was put, so that it can be compared with what is there. Raises as `export_hf`.
    """
    end = write_tokenizer(folder, tokenizer, model=config, chat_format=chat_format)
    places = architectures.places(config)
    shards = _plan_shards(places, dtype=dtype, limit=max_shard_bytes)
    total = sum(_bytes(shape, dtype) for shard in shards.values() for shape in shard.values())
    check_room(folder, total)
    with Written(folder, shards, dtype=dtype, read_back=read_back) as written:
        weights(places, written)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in shards.items() for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_configs(folder, config, tokenizer, end=end, dtype=dtype)
    return written


def write_configs(
    folder: pathlib.Path, config: ModelConfig, tokenizer: Tokenizer, *, end: int, dtype: Dtype, **more: Any
) -> None:
    """`config.json`, with `more` settings, and `generation_config.json`."""
    told = _model_config(config, tokenizer=tokenizer, end=end, dtype=dtype)
    write_json(folder / "config.json", {**told, **more})
    write_json(folder / "generation_config.json", _generation_config(tokenizer, end=end))


def from_layers(read: ReadLayer) -> Weights:
    """Weights that are read one layer's array at a time, in the order of the tensors."""

    def put(places: Places, written: Written) -> None:
        for name, rows in places.items():
            for place in rows:
                _put(name, place, read(place.path, place.layer), written)

    return put


def from_params(params: decoder.Params) -> Weights:
    """The weights of a tree of parameters."""

    def read(path: Path, layer: int | None) -> Array:
        array = at(params, path)
        return np.asarray(array if layer is None else array[layer])

    return from_layers(read)


def from_tensors(stored: Mapping[str, Stored]) -> Weights:
    """The tensors of a Hugging Face folder, in bounded parts."""

    def put(places: Places, written: Written) -> None:
        for name in places:
            for row, part in stored[name].parts():
                written.put(name, part, row=row)

    return put


def put_array(path: Path, array: Array, *, places: Places, written: Written) -> None:
    """Puts all that is stored of one of our arrays, of all layers where it is stacked."""
    for name, rows in places.items():
        for place in rows:
            if place.path == path:
                _put(name, place, array if place.layer is None else array[place.layer], written)


def _put(name: str, place: Place, array: Array, written: Written) -> None:
    if array.shape != place.shape:
        raise ConversionError(f"{name}: parameters have shape {array.shape}, the config says {place.shape}")
    written.put(name, place.to_stored(array), row=place.row)


def write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer, *, model: ModelConfig, chat_format: str) -> int:
    """The tokenizer's files, with the template of the chat format; returns what ends an answer.

    Raises ConversionError: it does not fit the model; ChatError: it lacks what the chat format needs.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConversionError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: "
            "give the tokenizer that it was trained with"
        )
    chat = get_format(chat_format)
    end = end_id(chat, tokenizer)
    files = dict(tokenizer.files)
    if SENTENCEPIECE in files:
        as_json = tokenizer_json(files[SENTENCEPIECE], tokenizer.added)
        files |= {} if as_json is None else {JSON: as_json}
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(model, tokenizer, chat_format=chat, end=end))
    write_json(folder / "special_tokens_map.json", _special_tokens(tokenizer, end=end))
    return end


def _plan_shards(places: Places, *, dtype: Dtype, limit: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Files of tensors and their shapes, in order, a new one whenever the next tensor would pass the limit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, rows in places.items():
        shape = stored_shape(rows)
        if shards[-1] and filled + _bytes(shape, dtype) > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _bytes(shape, dtype)
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _model_config(config: ModelConfig, *, tokenizer: Tokenizer, end: int, dtype: Dtype) -> dict[str, Any]:
    """Transformers 4 reads `torch_dtype`, 5 `dtype`."""
    return {
        **architectures.write_config(config),
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_id,
    }


def _generation_config(tokenizer: Tokenizer, *, end: int) -> dict[str, Any]:
    """Generation stops at what ends an answer, and at EOS where that is another token."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end if end == tokenizer.eos_id else [end, tokenizer.eos_id],
        "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
    }


def _tokenizer_config(
    config: ModelConfig, tokenizer: Tokenizer, *, chat_format: ChatFormat, end: int
) -> dict[str, Any]:
    """`legacy` puts a space before the text after a special token, as `Tokenizer.encode` does."""
    kinds: dict[str, dict[str, Any]] = {
        SENTENCEPIECE: {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "sp_model_kwargs": {},
            **({"added_tokens_decoder": as_decoder(tokenizer.added)} if tokenizer.added else {}),
        },
        JSON: {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    return {
        **next(kinds[name] for name in tokenizer.files if name in kinds),
        **_special_tokens(tokenizer, end=end),
        "model_max_length": config.max_positions,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_format.template,
    }


def _special_tokens(tokenizer: Tokenizer, *, end: int) -> dict[str, str]:
    """What ends an answer is called EOS, as in Llama 3 Instruct, so that every program stops there."""
    tokens = {"bos_token": tokenizer.bos_id, "eos_token": end, "pad_token": tokenizer.pad_id}
    named = {key: tokenizer.piece(token) for key, token in tokens.items() if token is not None}
    return {**named, "unk_token": "<unk>"} if SENTENCEPIECE in tokenizer.files else named

"""Writing a folder that `transformers` (4 and 5) and this project load: weights, configs, tokenizer, model card."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from wizard_jax.chat import ChatFormat, end_id, get_format
from wizard_jax.convert import architectures
from wizard_jax.convert.importing import INDEX, SINGLE
from wizard_jax.convert.tensors import Array, ConversionError, Place, at, stored_shape, to_stored
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import JSON, SENTENCEPIECE, Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
Rows = tuple[Place, ...]
Shard = list[tuple[str, Rows]]


class Tensor(NamedTuple):
    """What is to be stored; its values are made when it is written."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Array]


CODES: dict[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
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
    """Write a Hugging Face folder, one tensor in memory at a time; `card` is the text of its README.md.

    The folder appears under its name when it is complete, and not before. Raises ConversionError: it is there
    already, the tokenizer does not fit, or a value is not finite in `dtype`. Raises ChatError: the tokenizer lacks what
    the chat format needs.
    """
    with new_folder(out) as folder:
        tokenizer, end = write_tokenizer(folder, tokenizer_path, model=config, chat_format=chat_format)
        _write_weights(params, folder, config=config, dtype=dtype, max_shard_bytes=max_shard_bytes)
        write_json(folder / "config.json", _model_config(config, tokenizer=tokenizer, end=end, dtype=dtype))
        write_json(folder / "generation_config.json", _generation_config(tokenizer, end=end))
        write_bytes(folder / "README.md", card.encode())
    return pathlib.Path(out)


@contextlib.contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write to, which gets the name `out` once all is written. Raises ConversionError: `out` is taken."""
    target = pathlib.Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConversionError(f"{target}: exists already; remove it or export to another folder")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.replace(target)


def write_tokenizer(
    folder: pathlib.Path, tokenizer_path: str | os.PathLike[str], *, model: ModelConfig, chat_format: str
) -> tuple[Tokenizer, int]:
    """The tokenizer's files, with the template of the chat format; the tokenizer, and what ends an answer.

    Raises ConversionError: it does not fit the model; ChatError: it lacks what the chat format needs.
    """
    tokenizer = Tokenizer(tokenizer_path)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConversionError(
            f"{tokenizer_path}: has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: "
            "give the tokenizer that it was trained with"
        )
    chat = get_format(chat_format)
    end = end_id(chat, tokenizer)
    for name, content in tokenizer.files.items():
        write_bytes(folder / name, content)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(model, tokenizer, chat_format=chat, end=end))
    write_json(folder / "special_tokens_map.json", _special_tokens(tokenizer, end=end))
    return tokenizer, end


def _write_weights(
    params: decoder.Params, folder: pathlib.Path, *, config: ModelConfig, dtype: Dtype, max_shard_bytes: int
) -> None:
    shards = _plan_shards(architectures.places(config), dtype=dtype, limit=max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        tensors = [
            Tensor(tensor, stored_shape(rows), functools.partial(_stored, tensor, rows, params=params))
            for tensor, rows in shard
        ]
        write_shard(folder / name, tensors, dtype=dtype)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor, _ in shard}
        total = sum(_bytes(stored_shape(rows), dtype) for shard in shards for _, rows in shard)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _plan_shards(places: dict[str, Rows], *, dtype: Dtype, limit: int) -> list[Shard]:
    """Tensors in order, a new file whenever the next one would pass the limit."""
    shards: list[Shard] = [[]]
    filled = 0
    for name, rows in places.items():
        size = _bytes(stored_shape(rows), dtype)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, rows))
        filled += size
    return shards


def _bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def write_shard(path: pathlib.Path, tensors: Sequence[Tensor], *, dtype: Dtype) -> None:
    """The safetensors format: header length, JSON header, then the tensors without gaps.

    (`safetensors.numpy.save_file` needs all tensors of a file in memory at once.)
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _bytes(tensor.shape, dtype)
        header[tensor.name] = {"dtype": CODES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            with np.errstate(over="ignore"):  # an overflow is found by its infinity
                array = tensor.values().astype(dtype)
            if not np.isfinite(array).all():
                raise ConversionError(f"{tensor.name}: holds values that are not finite in {dtype}")
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
        _sync(file)


def _stored(name: str, rows: Rows, *, params: decoder.Params) -> Array:
    arrays = [_of_layer(at(params, place.path), place.layer) for place in rows]
    for array, place in zip(arrays, rows, strict=True):
        if array.shape != place.shape:
            raise ConversionError(f"{name}: parameters have shape {array.shape}, the config says {place.shape}")
    return to_stored(rows, arrays)


def _of_layer(array: Any, layer: int | None) -> Array:
    return np.asarray(array if layer is None else array[layer])


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


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    """So that the rename, which says that the folder is complete, can not outlive its contents."""
    file.flush()
    os.fsync(file.fileno())

"""More rows for the embedding and the unembedding of a model that is imported, each the mean of those it was given.

By the mean a new token is no likelier than the others are on average, where random rows may take all the probability:
John Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021,
https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wizard_jax.convert.architectures import family_of
from wizard_jax.convert.safetensors_file import FLOATS, PART, Stored, file_header
from wizard_jax.convert.tensors import Array, ConversionError
from wizard_jax.model.config import ModelConfig

Chunk = tuple[Stored | None, bytes]
"""Bytes of a file, and the tensor that they are of; None: they are its header."""

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What becomes of the tensors that have a row for every token."""

    tensors: frozenset[str]
    rows: int
    """That they have in the end."""
    averaged: int
    """Their first rows, whose mean each new one is: those of the tokens that the tokenizer came with. A row behind
    them was never trained, and stays as it is."""

    def of(self, tensor: Stored) -> Stored:
        """The tensor with the shape that it gets."""
        if tensor.name not in self.tensors:
            return tensor
        return dataclasses.replace(tensor, shape=(self.rows, *tensor.shape[1:]))

    def touches(self, tensors: Sequence[Stored]) -> bool:
        return any(tensor.name in self.tensors for tensor in tensors)


def vocabulary_growth(stored: Mapping[str, Stored], model: ModelConfig, *, rows: int, averaged: int) -> Growth:
    """Of the model as it is stored; a head that is stored although it is tied grows with the embedding."""
    family = family_of(model)
    names = {family.tensor_of("embed"), family.tensor_of("unembed")}
    return Growth(tensors=frozenset(names & stored.keys()), rows=rows, averaged=averaged)


def padded_size(tokens: int, *, multiple: int) -> int:
    """The next multiple. Raises ConversionError: there is none."""
    if multiple < 1:
        raise ConversionError(f"--pad-vocabulary-to {multiple}: the size becomes a multiple of it: give 1 or more")
    return math.ceil(tokens / multiple) * multiple


def grown_size(tensors: Sequence[Stored], growth: Growth) -> int:
    """Bytes of the file that `grown_file` makes."""
    return len(_header(tensors, growth)) + sum(growth.of(tensor).nbytes for tensor in tensors)


def grown_file(tensors: Sequence[Stored], growth: Growth) -> Iterator[Chunk]:
    """A file of the same tensors in the same order and dtypes, about 4 MiB at a time.

    Every byte of the old rows is as it was; the mean is taken in float64 and rounded once to the stored dtype.
    """
    yield None, _header(tensors, growth)
    for tensor in tensors:
        chunks = _grown(tensor, growth) if tensor.name in growth.tensors else _as_it_is(tensor)
        for chunk in chunks:
            yield tensor, chunk


def grown_config(content: bytes, model: ModelConfig) -> bytes:
    """A `config.json` that says the size of the vocabulary, which every family calls the same."""
    return _json({**json.loads(content), "vocab_size": model.vocab_size})


def grown_index(content: bytes, stored: Mapping[str, Stored], growth: Growth) -> bytes:
    """An index that says how many bytes the tensors are."""
    raw = json.loads(content)
    metadata = raw.get("metadata") if isinstance(raw.get("metadata"), dict) else {}
    total = sum(growth.of(tensor).nbytes for tensor in stored.values())
    return _json({**raw, "metadata": {**metadata, "total_size": total}})


def _header(tensors: Sequence[Stored], growth: Growth) -> bytes:
    return file_header({tensor.name: (tensor.dtype, growth.of(tensor).shape) for tensor in tensors})


def _grown(tensor: Stored, growth: Growth) -> Iterator[bytes]:
    """The rows, then the new ones."""
    total = np.zeros(tensor.shape[1:], np.float64)
    for first, rows in tensor.parts():
        known = rows[: max(0, growth.averaged - first)]
        with np.errstate(invalid="ignore"):  # whoever writes the rows says which are not finite
            total += known.sum(axis=0, dtype=np.float64)
        yield rows.tobytes()
    row = rounded(total / growth.averaged, FLOATS[tensor.dtype]).tobytes()
    left, step = growth.rows - tensor.shape[0], max(1, PART // max(len(row), 1))
    for first in range(0, left, step):
        yield row * min(step, left - first)


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Of float64, to the nearest in `dtype`.

    bfloat16 is reached by way of float32, where what is not exact gets an odd last bit: rounded a second time, the
    value is then the nearest to the first (Boldo and Melquiond, "When double rounding is odd", 2005).
    """
    if dtype.itemsize == 4 or dtype == np.float16:
        return values.astype(dtype)
    with np.errstate(invalid="ignore"):
        single = values.astype(np.float32)
    bits = single.view(np.uint32)
    bits -= np.abs(single.astype(np.float64)) > np.abs(values)
    bits |= single.astype(np.float64) != values
    return single.astype(dtype)


def _as_it_is(tensor: Stored) -> Iterator[bytes]:
    left = tensor.nbytes
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.start)
        while left:
            chunk = opened.read(min(_CHUNK, left))
            if not chunk:
                raise ConversionError(f"{tensor.file}: became shorter while it was read; start again when it is whole")
            left -= len(chunk)
            yield chunk


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

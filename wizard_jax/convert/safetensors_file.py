"""The safetensors format, read in parts and written in any order: no more than a part is ever in memory.

(The `safetensors` package maps files, and what is mapped counts as memory in use; it takes all tensors of a file at
once to write it; and of a name that a header sets twice it keeps the last without a word.)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
from etils import epath

from configs.folder import naming
from wizard_jax.convert.read_back import ReadBack
from wizard_jax.convert.tensors import Array, ConversionError

FLOATS: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
)
"""The dtypes of parameters, by the format's names."""

CODES: Mapping[str, str] = MappingProxyType({dtype.name: code for code, dtype in FLOATS.items()})

_BITS: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4,
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        **dict.fromkeys(("BOOL", "U8", "I8"), 8),
        **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    }
)
_LONGEST_HEADER = 100_000_000  # bytes, as the format's own reader has it
PART = 1 << 22
"""Bytes that are in memory at a time, where the row of a tensor is not longer."""
_BLOCK = 1 << 19  # bytes that stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file, which is opened only while it is read."""

    name: str
    file: epath.Path
    shape: tuple[int, ...]
    dtype: str
    """The format's name of it."""
    start: int
    """Its first byte in the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BITS[self.dtype] // 8

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        """A part; slices have bounds. All columns of its rows are read."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        if all(one.stop - one.start == size for one, size in zip(rest, self.shape[1:], strict=False)):
            return self.rows(rows.start, rows.stop)
        part = np.empty([one.stop - one.start for one in (rows, *rest)], FLOATS[self.dtype])
        at = 0
        for _, read in self._parts(rows.start, rows.stop):
            part[at : at + len(read)] = read[(slice(None), *rest)]
            at += len(read)
        return part

    def rows(self, first: int, last: int) -> Array:
        """The rows of the first axis from `first` up to `last`."""
        shape = (last - first, *self.shape[1:])
        array = np.empty(math.prod(shape), FLOATS[self.dtype])
        _read_into(self.file, self.start + first * self._row_bytes, array.view(np.uint8))
        return array.reshape(shape)

    def parts(self) -> Iterator[tuple[int, Array]]:
        """(first row, rows) from the first row to the last, about `PART` bytes at a time."""
        return self._parts(0, self.shape[0])

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, Array]]:
        step = max(1, PART // max(self._row_bytes, 1))
        for row in range(first, last, step):
            yield row, self.rows(row, min(row + step, last))

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * FLOATS[self.dtype].itemsize


def read_header(file: epath.Path) -> list[Stored]:
    """The tensors of a file, in the order of their bytes. Raises ConversionError: it is not a whole file."""
    size = int(file.stat().length)
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise _Malformed(f"a header of {length:,} bytes in {size:,}")
            text = opened.read(length)
        told = json.loads(text, object_pairs_hook=_once)
        if not isinstance(told, dict):
            raise _Malformed("the header is no JSON object")
        tensors = [_stored(name, entry, file=file, data=8 + length) for name, entry in told.items() if name != _META]
        return _gapless(tensors, data=8 + length, size=size)
    except (_Malformed, ValueError, RecursionError) as error:
        raise ConversionError(f"{file}: truncated or no safetensors file ({error}); fetch it again") from error


_META = "__metadata__"


class _Malformed(Exception):
    """What is wrong with a header."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise _Malformed(f"its header sets twice: {', '.join(twice)}")
    return dict(pairs)


def _stored(name: str, entry: Any, *, file: epath.Path, data: int) -> tuple[Stored, int]:
    """A tensor, and where it ends."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (LookupError, TypeError, ValueError) as error:
        raise _Malformed(f"{name}: no dtype, shape and data_offsets") from error
    if any(type(number) is not int or number < 0 for number in (*shape, first, last)):
        raise _Malformed(f"{name}: shape {list(shape)}, data_offsets {[first, last]}")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Malformed(f"{name}: dtype {dtype!r}, which is not read here")
    tensor = Stored(name=name, file=file, shape=shape, dtype=dtype, start=data + first)
    if last - first != tensor.nbytes:
        raise _Malformed(f"{name}: {last - first:,} bytes for {dtype} {list(shape)}")
    return tensor, data + last


def _gapless(tensors: list[tuple[Stored, int]], *, data: int, size: int) -> list[Stored]:
    """The format's rule: the tensors' bytes follow one another, and fill the file."""
    ordered = sorted(tensors, key=lambda one: (one[0].start, one[1]))
    for (tensor, _), before in zip(ordered, [data, *(end for _, end in ordered)], strict=False):
        if tensor.start != before:
            raise _Malformed(f"{tensor.name}: begins at byte {tensor.start:,}, where byte {before:,} is next")
    end = ordered[-1][1] if ordered else data
    if end != size:
        raise _Malformed(f"{size:,} bytes, of {end:,}")
    return [tensor for tensor, _ in ordered]


def _read_into(file: epath.Path, start: int, into: Array) -> None:
    with file.open("rb") as opened:
        opened.seek(start)
        view = memoryview(into.data)
        while len(view):
            read = opened.readinto(view[:PART])
            if not read:
                raise ConversionError(f"{file}: ends before byte {start + into.nbytes:,}; fetch it again")
            view = view[read:]


def all_finite(array: Array) -> bool:
    """Whether no value is infinite or no number, by the bits of the exponents, a cache's block at a time."""
    bits = {2: np.uint16, 4: np.uint32}[array.itemsize]
    info: Any = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
    exponents = bits(((1 << info.nexp) - 1) << info.nmant)
    flat = array.reshape(-1).view(bits)
    step = _BLOCK // array.itemsize
    return all((flat[at : at + step] & exponents).max() < exponents for at in range(0, flat.size, step))


def file_header(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> bytes:
    """How a file begins that holds tensors of given dtypes (the format's names) and shapes, one after another."""
    told: dict[str, Any] = {_META: {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * _BITS[dtype] // 8
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where the bytes of a tensor go."""

    file: Path
    start: int
    shape: tuple[int, ...]


class Written:
    """Safetensors files of given tensors, whose rows are put in any order, each once.

    Use it as a context manager. All is on the disk when it is left without an error, and most of it read back.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, Mapping[str, Sequence[int]]], *, dtype: str, read_back: bool = True
    ) -> None:
        """`files`: of each the shapes of its tensors, by name."""
        self._dtype = np.dtype(FLOATS[CODES[dtype]])
        self._slots: dict[str, _Slot] = {}
        self._put: dict[str, list[tuple[int, int]]] = {}
        self._open: dict[Path, int] = {}
        self._headers = {folder / name: self._header(folder / name, tensors) for name, tensors in files.items()}
        self._backs = {file: ReadBack(file) for file in self._headers if read_back}
        self._differing: list[str] = []

    def _header(self, file: Path, tensors: Mapping[str, Sequence[int]]) -> bytes:
        header = file_header({name: (CODES[self._dtype.name], shape) for name, shape in tensors.items()})
        start = len(header)
        for name, shape in tensors.items():
            self._slots[name] = _Slot(file=file, start=start, shape=tuple(shape))
            start += math.prod(shape) * self._dtype.itemsize
        return header

    def __enter__(self) -> Self:
        for file, header in self._headers.items():
            self._open[file] = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self._write(file, header, at=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._check_all_put()
                for file, descriptor in self._open.items():
                    with naming(file):
                        os.fsync(descriptor)
                self._differing = [name for back in self._backs.values() for name in back.differing()]
        finally:
            for back in self._backs.values():
                back.close()
            for descriptor in self._open.values():
                os.close(descriptor)

    def put(self, name: str, values: Array, *, row: int = 0) -> None:
        """Rows of a tensor, from `row` on. Raises ConversionError: values that are not finite in the files' dtype."""
        slot = self._slots[name]
        assert values.shape[1:] == slot.shape[1:], (name, values.shape, slot.shape)
        with np.errstate(over="ignore"):  # an overflow is found by its infinity
            array = np.ascontiguousarray(values.astype(self._dtype, copy=False))
        if not all_finite(array):
            raise ConversionError(f"{name}: holds values that are not finite in {self._dtype.name}")
        start = slot.start + row * math.prod(slot.shape[1:]) * self._dtype.itemsize
        data = memoryview(array.reshape(-1).view(np.uint8).data)
        self._put.setdefault(name, []).append((start, len(data)))
        self._write(slot.file, data, at=start)
        if slot.file in self._backs:
            self._backs[slot.file].wrote(name, start, data)

    def _write(self, file: Path, data: bytes | memoryview, *, at: int) -> None:
        view = memoryview(data)
        with naming(file):
            while len(view):
                written = os.pwrite(self._open[file], view, at)
                view, at = view[written:], at + written

    def _check_all_put(self) -> None:
        for name, slot in self._slots.items():
            at = slot.start
            for start, length in sorted(self._put.get(name, ())):
                assert start == at, (name, start, at)
                at += length
            assert at == slot.start + math.prod(slot.shape) * self._dtype.itemsize, (name, at)

    @property
    def tensors(self) -> int:
        """How many there are."""
        return len(self._slots)

    def differing(self) -> list[str]:
        """The tensors whose bytes on the disk are not those that were put, once all are; without a read-back none."""
        return self._differing

"""Reading a GPTQ folder back: by the `safetensors` package, and by arithmetic that shares nothing with the writing."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from wizard_jax.convert.inventory import INDEX
from wizard_jax.convert.read_back import drop_cached
from wizard_jax.convert.tensors import Array
from wizard_jax.convert.verify import VerificationError

_CODED = {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16, "g_idx": np.int32}


def verify_file(file: Path, expected: Mapping[str, Array]) -> int:
    """Reads a file back from the disk; returns how many tensors it holds.

    `expected`: by the names that they have in whole models, the values that the model was calibrated with. Raises
    VerificationError: the file is no more, no less and nothing else than them.
    """
    drop_cached(file)
    found = dict(stored_values(file))
    wrong = sorted({*found} ^ {*expected})
    wrong += [name for name in found if name in expected and not np.array_equal(found[name], expected[name])]
    if wrong:
        raise VerificationError(f"{file.name} holds other values than were written to it, of: {', '.join(wrong)}")
    with safe_open(file, framework="numpy") as opened:
        return len(opened.keys())


def stored_values(file: Path) -> Iterator[tuple[str, Array]]:
    """Every tensor of a file as it is computed with, float32, by its name in the whole model.

    Raises VerificationError: parts of a linear layer are missing, or anything has another dtype or shape.
    """
    with safe_open(file, framework="numpy") as opened:
        coded: dict[str, dict[str, Array]] = collections.defaultdict(dict)
        for name in opened.keys():  # noqa: SIM118  (it is no mapping)
            stem, _, part = name.rpartition(".")
            if part in _CODED:
                coded[stem][part] = opened.get_tensor(name)
                if len(coded[stem]) == len(_CODED):
                    yield f"{stem}.weight", _dequantised(stem, coded.pop(stem))
                continue
            array = opened.get_tensor(name)
            if array.dtype != np.float16:
                raise VerificationError(f"{name} was read back as {array.dtype}, and not as float16")
            yield name, array.astype(np.float32)
    if coded:
        raise VerificationError(f"{file.name} holds only parts of {', '.join(sorted(coded))}")


def folder_values(folder: Path) -> Iterator[tuple[str, Array]]:
    """Those of all files that the index names."""
    for file in sorted(set(read_index(folder).values())):
        yield from stored_values(folder / file)


def read_index(folder: Path) -> dict[str, str]:
    """The file of every tensor."""
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return weight_map


def _dequantised(stem: str, parts: Mapping[str, Array]) -> Array:
    """(code - zero) x scale: float32 [out, in]."""
    inputs, outputs = parts["qweight"].shape[0] * 8, parts["qweight"].shape[1]
    groups = parts["scales"].shape[0]
    shapes = {"qzeros": (groups, outputs // 8), "scales": (groups, outputs), "g_idx": (inputs,)}
    for name, dtype in _CODED.items():
        if parts[name].dtype != dtype or parts[name].shape != shapes.get(name, parts[name].shape):
            raise VerificationError(
                f"{stem}.{name} was read back as {parts[name].dtype} {list(parts[name].shape)}, which is not the layout"
            )
    group = parts["g_idx"]
    codes_OxI = _nibbles(parts["qweight"].T)
    zeros_OxI = _nibbles(parts["qzeros"]).T[:, group] + 1.0
    values: Array = (codes_OxI - zeros_OxI) * parts["scales"].astype(np.float32).T[:, group]
    return values


def _nibbles(words: Array) -> Array:
    """Numbers of 4 bits, the lowest first, along the last axis: float32 [rows, 8 x words]."""
    octets = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    both = np.stack([octets & 15, octets >> 4], axis=-1)
    return both.reshape(len(words), -1).astype(np.float32)

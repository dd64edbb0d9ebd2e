"""Checkpoints of which one layer of a stacked array can be read without the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

LAYERS = "layers"

ReadLayer = Callable[[tuple[str, ...], int | None], npt.NDArray[Any]]
"""An array by its path, or one layer of a stacked one."""

_Storage = ocp.options.ArrayOptions.Saving.StorageOptions


def saved_by_layer() -> ocp.Context:
    """Options under which a stacked array is saved in chunks of one layer.

    (Orbax saves what a device holds as one chunk, and of a chunk nothing can be read by itself, as it is compressed:
    of a model of 7B, one array is 5.8 GB.)
    """
    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = _storage
    return context


def _storage(path: Any, value: Any) -> Any:
    stacked = bool(path) and getattr(path[0], "key", None) == LAYERS and len(getattr(value, "shape", ())) > 1
    return _Storage(shard_axes=(0,)) if stacked else None


def layer_reader(folder: str | os.PathLike[str]) -> ReadLayer:
    """Reads the tree that Orbax has saved in `folder`. Raises OSError or ValueError for what can not be read."""
    name = os.fspath(epath.Path(folder))
    base = name if "://" in name else f"file://{quote(os.fspath(Path(name).resolve()))}"
    opened: dict[tuple[str, ...], Any] = {}

    def read(path: tuple[str, ...], layer: int | None) -> npt.NDArray[Any]:
        if path not in opened:
            store = {"driver": "ocdbt", "base": f"{base}/", "path": f"{'.'.join(path)}/"}
            spec = {"driver": "zarr3", "kvstore": store}
            opened[path] = tensorstore.open(spec, read=True, open=True).result()
        array = opened[path] if layer is None else opened[path][layer]
        return np.asarray(array.read().result())

    return read

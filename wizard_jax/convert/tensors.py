"""Where each tensor of a Hugging Face folder lives in our tree: one table per family, read in both directions.

Hugging Face stores a linear layer as [out, in]; here it is [*in, *out] with heads as axes of their own. Both rotate
the same pairs of dimensions, so queries and keys need no permutation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from configs.errors import UserError
from wizard_jax.model.decoder import Params

Array = npt.NDArray[Any]
Path = tuple[str, ...]


class ConversionError(UserError):
    """A folder or a tree of parameters that can not be converted."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an array (of one layer) is stored: as it is, with all axes in one, or as a transposed matrix."""

    kind: Literal["as it is", "vector", "matrix"]
    inputs: int = 0
    """Of a matrix: how many of our leading axes it maps from."""


AS_IT_IS = Form(kind="as it is")
VECTOR = Form(kind="vector")
LINEAR = Form(kind="matrix", inputs=1)
FROM_HEADS = Form(kind="matrix", inputs=2)

Slot: TypeAlias = tuple[Path, Form]
Table: TypeAlias = Mapping[str, Sequence[Slot]]
"""The name of a tensor, with {} for the layer's number -> our array; of a fused tensor several, whose rows follow one
another. A table may name more than a model has: what is not in the tree is not stored."""


def linear(stem: str, name: str, *, form: Form = LINEAR) -> dict[str, Sequence[Slot]]:
    """The rows of a table for a linear layer of a block: its weight, and the bias that it may have."""
    layers = ("layers", name), ("layers", f"{name}_bias")
    return {f"{stem}.weight": [(layers[0], form)], f"{stem}.bias": [(layers[1], VECTOR)]}


def norm(stem: str, *path: str) -> dict[str, Sequence[Slot]]:
    """The rows of a table for a norm: its scale, and the bias that it may have."""
    *parents, name = path
    return {
        f"{stem}.weight": [(path, AS_IT_IS)],
        f"{stem}.bias": [((*parents, f"{name}_bias"), AS_IT_IS)],
    }


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor (or some rows of one) lives: an array of our tree, or one layer of a stacked one."""

    path: Path
    layer: int | None
    form: Form
    shape: tuple[int, ...]
    """Ours, of one layer."""
    row: int = 0
    """The first of its rows in the stored tensor."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Hugging Face's, of these rows."""
        if self.form.kind == "as it is":
            return self.shape
        if self.form.kind == "vector":
            return (math.prod(self.shape),)
        return math.prod(self.shape[self.form.inputs :]), math.prod(self.shape[: self.form.inputs])

    def to_stored(self, array: Array) -> Array:
        """Ours as Hugging Face stores it."""
        if self.form.kind == "matrix":
            return array.reshape(self.stored_shape[::-1]).T
        return array.reshape(self.stored_shape)

    def read(self, stored: Any, index: tuple[slice, ...]) -> Array:
        """The part `index` of ours from a stored tensor that can be sliced; no more than needed is read.

        `index` has a slice with bounds per axis. Of a group of axes only the first is sliced when reading.
        """
        if self.form.kind == "as it is":
            part: Array = stored[(self._rows(index[0]), *index[1:])]
            return part
        split = self.form.inputs
        rows = self._rows(_merged(self.shape[split:], index[split:]))
        if self.form.kind == "vector":
            matrix: Array = stored[rows]
        else:
            matrix = stored[rows, _merged(self.shape[:split], index[:split])].T
        lengths = list(self.shape)
        cut = [slice(None)] * len(lengths)
        for axis in range(len(lengths)):
            if axis in (0, split):
                lengths[axis] = index[axis].stop - index[axis].start
            else:
                cut[axis] = index[axis]
        return matrix.reshape(lengths)[tuple(cut)]

    def _rows(self, rows: slice) -> slice:
        return slice(rows.start + self.row, rows.stop + self.row)


def _merged(shape: tuple[int, ...], index: tuple[slice, ...]) -> slice:
    """The rows (or columns) that the first of some merged axes selects."""
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner)


Read: TypeAlias = Callable[[Place], Array]
"""Gives the array of a place: one of our tree's, or one layer of a stacked one."""


def stored_shape(places: Sequence[Place]) -> tuple[int, ...]:
    """Of a whole tensor, whose rows these are."""
    _, *columns = places[0].stored_shape
    return sum(place.stored_shape[0] for place in places), *columns


def to_stored(places: Sequence[Place], arrays: Sequence[Array]) -> Array:
    """A whole tensor from our arrays, one for each place."""
    parts = [place.to_stored(array) for place, array in zip(places, arrays, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def placed(table: Table, tree: Params, *, layers: int) -> dict[str, tuple[Place, ...]]:
    """Every tensor that a tree (of abstract arrays) is stored as, and the places of its rows.

    Raises ConversionError: the table has no tensor for some array.
    """
    found: dict[str, tuple[Place, ...]] = {}
    for name, slots in table.items():
        if not all(_has(tree, path) for path, _ in slots):
            continue
        stacked = slots[0][0][0] == "layers"
        for layer in range(layers) if stacked else (None,):
            found[name.format(layer)] = _in_order(slots, tree, layer=layer)
    missing = sorted("/".join(path) for path in paths(tree) if not _named(path, found))
    if missing:
        raise ConversionError(f"this family of Hugging Face has no tensor for {', '.join(missing)}")
    return found


def _in_order(slots: Sequence[Slot], tree: Params, *, layer: int | None) -> tuple[Place, ...]:
    places: list[Place] = []
    for path, form in slots:
        shape = at(tree, path).shape if layer is None else at(tree, path).shape[1:]
        row = sum(place.stored_shape[0] for place in places)
        places.append(Place(path=path, layer=layer, form=form, shape=shape, row=row))
    return tuple(places)


def _named(path: Path, found: Mapping[str, Sequence[Place]]) -> bool:
    return any(place.path == path for places in found.values() for place in places)


def paths(tree: Params, above: Path = ()) -> list[Path]:
    """The path of every array in a tree."""
    found: list[Path] = []
    for name, node in tree.items():
        found += paths(node, (*above, name)) if isinstance(node, dict) else [(*above, name)]
    return found


def _has(tree: Any, path: Path) -> bool:
    for name in path:
        if name not in tree:
            return False
        tree = tree[name]
    return True


def at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree

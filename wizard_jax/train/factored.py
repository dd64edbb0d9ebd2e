"""Optimizers that look at whole matrices, over arrays that hold the matrices of all layers.

Shape legend: N layers, D model, H heads, Dh head. The array q, [N, D, H, Dh], is N matrices of D rows and H x Dh
columns; what an optimizer takes of a matrix (its rows, its root mean square) must not mix layers, nor part heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

Axes = tuple[str | None, ...]
"""The logical names of an array's dimensions; see `model.sharding.RULES`."""


class _Updated(NamedTuple):
    update: jax.Array
    state: Any


def matrix_by_matrix(inner: optax.GradientTransformation, *, axes: Any) -> optax.GradientTransformation:
    """`inner` on every matrix by itself; `axes` is the tree of parameters as logical axes.

    Its state is the tree of parameters with, for each, the state of `inner`, stacked over the layers.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p, names: _each_layer(inner.init, names)(_as_matrix(p, names)), params, axes)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(gradient: jax.Array, param: jax.Array, names: Axes, state: Any) -> _Updated:
            matrices = _as_matrix(gradient, names), state, _as_matrix(param, names)
            updated, state = _each_layer(inner.update, names)(*matrices)
            return _Updated(updated.reshape(param.shape), state)

        both = jax.tree.map(one, gradients, params, axes, state)

        def part(index: int) -> Any:
            return jax.tree.map(lambda done: done[index], both, is_leaf=lambda node: isinstance(node, _Updated))

        return part(0), part(1)

    return optax.GradientTransformation(init, update)


def _each_layer(function: Callable[..., Any], axes: Axes) -> Callable[..., Any]:
    return jax.vmap(function) if "layers" in axes else function


def _as_matrix(array: jax.Array, axes: Axes) -> jax.Array:
    return array.reshape(_matrix_shape(array.shape, axes))


def _matrix_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """Heads and what is in them are one dimension: [N, D, H, Dh] -> [N, D, H x Dh]."""
    sizes: list[int] = []
    for size, name in zip(shape, axes, strict=True):
        if name == "head_dim":
            sizes[-1] *= size
        else:
            sizes.append(size)
    return tuple(sizes)


def moment_axes(moment: str, shape: Sequence[int], *, of: Sequence[int], axes: Axes) -> Axes:
    """The logical axes of an optimizer's array `moment` of a parameter of shape `of` and logical `axes`.

    Like the parameter, like it as a matrix, or that without its rows or its columns; anything else (counts) has none.
    """
    shape, of = tuple(shape), tuple(of)
    if shape == of:
        return axes
    matrix, names = _matrix_shape(of, axes), tuple(name for name in axes if name != "head_dim")
    if shape == matrix:
        return names
    # Optax calls v_row what is left without the longer side, and of a square without the columns.
    without = {"v_row": (-1, -2), "v_col": (-2, -1)}.get(moment, ())
    for side in without:
        kept = [index for index in range(len(matrix)) if index != len(matrix) + side]
        if len(matrix) > 1 and shape == tuple(matrix[index] for index in kept):
            return tuple(names[index] for index in kept)
    return ()

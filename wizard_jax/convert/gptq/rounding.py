"""GPTQ (arXiv 2210.17323): a matrix rounded to 4 bits column by column, what each column loses being made up for by
those that follow, as the inputs that it was seen with weigh them.

`qwix.contrib.gptq` is not called: it watches Flax modules and a scan over stacked layers has none, it compiles a
program as long as a matrix has columns, and it takes the scales of a group from before the columns of its own block
were made up for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wizard_jax.convert.tensors import Array

LEVELS = 16
MIDDLE = 8
"""The code of 0: symmetric, a code q stands for (q - 8) x scale."""
DAMPING = 0.01
"""Of the mean of the diagonal, added to it: the paper's 1 %."""


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A matrix in 4 bits: `codes` uint8 [out, in], `scales` float16 [groups, out]."""

    codes: Array
    scales: Array

    @property
    def group(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[0])

    def values(self) -> Array:
        """What a reader computes with: float32 [out, in]."""
        scales = np.repeat(self.scales.astype(np.float32).T, self.group, axis=1)
        return (self.codes.astype(np.float32) - MIDDLE) * scales


def nearest(weight: Array, *, group: int) -> Codes:
    """Every weight rounded by itself."""
    rows, columns = weight.shape
    scales = _scales(weight.reshape(rows, -1, group))
    codes = _code(weight, np.repeat(scales.astype(np.float32), group, axis=1))
    assert codes.shape == (rows, columns)
    return Codes(codes=codes, scales=scales.T)


def gptq(weight: Array, gram: Array, *, group: int, damping: float = DAMPING) -> Codes:
    """`weight` [out, in] rounded so that its products with inputs of the Gram matrix [in, in] change little.

    Columns of inputs that were always 0 are rounded to the nearest.
    """
    left = np.array(weight, np.float32)
    factor = _factor(gram, damping=damping)
    codes = np.empty(left.shape, np.uint8)
    scales = np.empty((left.shape[1] // group, left.shape[0]), np.float16)
    for start in range(0, left.shape[1], group):
        end = start + group
        scale = _scales(left[:, start:end])
        scales[start // group] = scale
        step = scale.astype(np.float32)
        lost = np.empty((left.shape[0], group), np.float32)
        for column in range(start, end):
            codes[:, column] = _code(left[:, column], step)
            rounded = (codes[:, column].astype(np.float32) - MIDDLE) * step
            lost[:, column - start] = (left[:, column] - rounded) / factor[column, column]
            left[:, column + 1 : end] -= np.outer(lost[:, column - start], factor[column, column + 1 : end])
        left[:, end:] -= lost @ factor[start:end, end:]
    return Codes(codes=codes, scales=scales)


def _factor(gram: Array, *, damping: float) -> Array:
    """The upper Cholesky factor of the damped Gram matrix's inverse: float32 [in, in]."""
    damped = np.array(gram, np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal[diagonal == 0.0] = 1.0
    diagonal += damping * diagonal.mean()
    factor: Array = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return factor


def _scales(groups: Array) -> Array:
    """Of the last axis, float16: its largest magnitude is half of the levels; 1 where all are 0."""
    largest = np.abs(groups).max(-1)
    scales = (2.0 * largest / (LEVELS - 1)).astype(np.float16)
    return np.where(scales > 0, scales, np.float16(1.0))


def _code(values: Array, scales: Array) -> Array:
    codes: Array = np.clip(np.rint(values / scales) + MIDDLE, 0, LEVELS - 1).astype(np.uint8)
    return codes

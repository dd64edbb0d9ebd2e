"""The tensors and settings of a GPTQ folder, as transformers, GPTQModel and vLLM read them.

Of a linear layer [out, in] with G groups of inputs: `qweight` int32 [in / 8, out], eight codes of inputs that follow
one another in each, the first in the lowest bits; `scales` float16 [G, out]; `qzeros` int32 [G, out / 8], eight codes
of 0 in each, less one, as the first version of the layout has them; `g_idx` int32 [in], the group of each input.
All other tensors are float16, under the names that they have in the whole model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wizard_jax.convert.gptq.rounding import MIDDLE, Codes
from wizard_jax.convert.tensors import Array, ConversionError

BITS = 4
PER_WORD = 32 // BITS


def packed(stem: str, found: Codes) -> dict[str, Array]:
    """The tensors of a linear layer that is called `stem`."""
    outputs, inputs = found.codes.shape
    zeros = np.full((len(found.scales), outputs), MIDDLE - 1, np.uint32)
    return {
        f"{stem}.qweight": _words(found.codes.T.astype(np.uint32), axis=0),
        f"{stem}.qzeros": _words(zeros, axis=1),
        f"{stem}.scales": np.ascontiguousarray(found.scales),
        f"{stem}.g_idx": (np.arange(inputs, dtype=np.int32) // found.group).astype(np.int32),
    }


def half(name: str, array: Array) -> Array:
    """A tensor that has no codes: float16. Raises ConversionError: a value is not finite there."""
    with np.errstate(over="ignore"):  # an overflow is found by its infinity
        found = np.ascontiguousarray(array.astype(np.float16))
    if not np.isfinite(found).all():
        raise ConversionError(f"{name}: holds values that are not finite in float16")
    return found


def settings(*, group: int, damping: float) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    return {
        "quant_method": "gptq",
        "bits": BITS,
        "group_size": group,
        "sym": True,
        "desc_act": False,
        "damp_percent": damping,
        "true_sequential": False,
        "static_groups": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }


def _words(codes: Array, *, axis: int) -> Array:
    """Eight codes in each int32, along an axis."""
    split = list(codes.shape)
    split[axis : axis + 1] = [codes.shape[axis] // PER_WORD, PER_WORD]
    shifts = np.arange(PER_WORD, dtype=np.uint32) * np.uint32(BITS)
    shape = [1] * len(split)
    shape[axis + 1] = PER_WORD
    words = np.bitwise_or.reduce(codes.reshape(split) << shifts.reshape(shape), axis=axis + 1)
    return np.ascontiguousarray(words).view(np.int32)

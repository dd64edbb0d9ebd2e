"""`transformers` as the reader of what was exported, where it is installed: it is no dependency of this project."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from wizard_jax.convert.tensors import Array


def has_transformers() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def transformers_version() -> str:
    return str(_quietly("transformers").__version__)


def transformers_logits(folder: str | os.PathLike[str], prompts: Sequence[Array]) -> list[Array]:
    """The logits [L, V] of every prompt (token ids [L]), computed in float32 on the CPU from a folder.

    Any exception of `transformers` comes through: it says what it does not read.
    """
    transformers, torch = _quietly("transformers"), _quietly("torch")
    bars_shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                os.fspath(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            model.eval()
            told = [torch.from_numpy(np.asarray(prompt, np.int64)[None]) for prompt in prompts]
            return [np.asarray(model(tokens, use_cache=False).logits[0].float().numpy()) for tokens in told]
    finally:
        if bars_shown:
            transformers.utils.logging.enable_progress_bar()


def _quietly(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing it
        return importlib.import_module(name)

"""Writing an adapter as `peft` (and vLLM) loads it: adapter_config.json and adapter_model.safetensors.

`peft` stores A as [R, in] and B as [out, R], under the name of the linear layer that they belong to.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from wizard_jax.convert import llama
from wizard_jax.convert.export import Dtype, Tensor, new_folder, write_bytes, write_json, write_shard, write_tokenizer
from wizard_jax.convert.llama import Array
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params
from wizard_jax.model.lora import INPUT_AXES, LoRA

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def export_adapter(
    trained: Params,
    model: ModelConfig,
    adapter: LoRA,
    tokenizer_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base_model: str,
    chat_format: str,
    card: str,
    dtype: Dtype = "float32",
) -> pathlib.Path:
    """Write the adapter alone; `base_model` is the folder or hub name of the weights that it was trained beside.

    The folder appears under its name when it is complete. Raises ConversionError as `export_hf` does.
    """
    with new_folder(out) as folder:
        write_shard(folder / WEIGHTS, list(_tensors(trained, adapter=adapter)), dtype=dtype)
        write_json(folder / CONFIG, _config(adapter, base_model=base_model))
        write_tokenizer(folder, tokenizer_path, model=model, chat_format=chat_format)
        write_bytes(folder / "README.md", card.encode())
    return pathlib.Path(out)


def _config(adapter: LoRA, *, base_model: str) -> dict[str, Any]:
    """What `peft.LoraConfig` reads; what it does not find there it sets to its defaults."""
    modules = {name: stem.rpartition(".")[2] for name, stem in _stems().items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": [modules[name] for name in adapter.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _stems() -> dict[str, str]:
    """Linear layer -> its name in Hugging Face, with {} for the layer's number."""
    return {path[-1]: name.removesuffix(".weight") for name, (path, _) in llama.TABLE.items() if path[-1] in INPUT_AXES}


def _tensors(trained: Params, *, adapter: LoRA) -> Iterator[Tensor]:
    stems = _stems()
    for name, halves in trained["layers"].items():
        a, b = (np.asarray(halves[half]) for half in ("a", "b"))
        n = a.shape[0]
        of_layers = {"A": a.reshape(n, -1, adapter.rank), "B": b.reshape(n, adapter.rank, -1)}
        for layer in range(n):
            for half, matrices in of_layers.items():
                stored: Array = matrices[layer].T
                key = f"{PREFIX}{stems[name].format(layer)}.lora_{half}.weight"
                yield Tensor(key, stored.shape, functools.partial(np.asarray, stored))

"""Writing an adapter as `peft` (and vLLM) loads it: adapter_config.json and adapter_model.safetensors.

`peft` stores A as [R, in] and B as [out, R], under the name of the linear layer that they belong to.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.export import CARD, Dtype, write_tokenizer
from wizard_jax.convert.families.family import Family
from wizard_jax.convert.new_folder import new_folder, write_bytes, write_json
from wizard_jax.convert.safetensors_file import Written
from wizard_jax.convert.tensors import Array, ConversionError
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params
from wizard_jax.model.lora import LoRA, targets_of
from wizard_jax.tokenizer import Tokenizer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
Stems = dict[str, str]


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
    tokenizer = Tokenizer(tokenizer_path)
    with new_folder(out) as folder:
        write_adapter(
            folder,
            trained,
            model,
            adapter,
            tokenizer,
            base_model=base_model,
            chat_format=chat_format,
            dtype=dtype,
        )
        write_bytes(folder / CARD, card.encode())
    return pathlib.Path(out)


def write_adapter(
    folder: pathlib.Path,
    trained: Params,
    model: ModelConfig,
    adapter: LoRA,
    tokenizer: Tokenizer,
    *,
    base_model: str,
    chat_format: str,
    dtype: Dtype,
) -> Written:
    """Write all files of the adapter's folder but its card. Raises ConversionError as `export_hf` does."""
    stems = _stems(model, adapter=adapter)
    tensors = dict(_tensors(trained, stems, adapter=adapter))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with Written(folder, {WEIGHTS: shapes}, dtype=dtype) as written:
        for name, tensor in tensors.items():
            written.put(name, tensor)
    write_json(folder / CONFIG, _config(adapter, stems, family=architectures.family_of(model), base_model=base_model))
    write_tokenizer(folder, tokenizer, model=model, chat_format=chat_format)
    return written


def _config(adapter: LoRA, stems: Stems, *, family: Family, base_model: str) -> dict[str, Any]:
    """What `peft.LoraConfig` reads; what it does not find there it sets to its defaults."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(_modules(stems, family=family)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _modules(stems: Stems, *, family: Family) -> Iterator[str]:
    """What `peft` finds the targets by: the end of a module's name, long enough that no other ends so."""
    every = [f".{stem}" for stem in family.linear_layers.values()]
    for stem in stems.values():
        parts = stem.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
        yield next(end for end in ends if sum(other.endswith(f".{end}") for other in every) == 1)


def _stems(model: ModelConfig, *, adapter: LoRA) -> Stems:
    """Linear layer with an update -> its name in Hugging Face, with {} for the layer's number."""
    family = architectures.family_of(model)
    fused = [name for name in targets_of(model, adapter=adapter) if name not in family.linear_layers]
    if fused:
        raise ConversionError(
            f"{family.architecture} stores {', '.join(fused)} as parts of one layer, and peft knows no update of a "
            "part: leave --format peft out, which writes base and adapter in one"
        )
    return {name: family.linear_layers[name] for name in targets_of(model, adapter=adapter)}


def _tensors(trained: Params, stems: Stems, *, adapter: LoRA) -> Iterator[tuple[str, Array]]:
    for name, halves in trained["layers"].items():
        a, b = (np.asarray(halves[half]) for half in ("a", "b"))
        n = a.shape[0]
        of_layers = {"A": a.reshape(n, -1, adapter.rank), "B": b.reshape(n, adapter.rank, -1)}
        for layer in range(n):
            for half, matrices in of_layers.items():
                stored: Array = matrices[layer].T
                key = f"{PREFIX}{stems[name].format(layer)}.lora_{half}.weight"
                yield key, stored

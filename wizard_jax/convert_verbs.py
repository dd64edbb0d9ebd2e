"""The verbs that take a model in and out: import, export."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wizard_jax.progress import say

if TYPE_CHECKING:
    from wizard_jax.data_verbs import Add


def add_convert_verbs(add: Add, *, local: Callable[[str], Path]) -> None:
    """Adds the verbs by `add`; `local` reads a place that must be local."""
    imported = add("import", _import, "read a Hugging Face folder (safetensors) into a folder to train from")
    imported.add_argument("source", type=Path)
    imported.add_argument("--chat-format", default="", help="the format it was trained with, if known")
    imported.add_argument("--out", type=local, required=True)
    export = add("export", _export, "write a run as a Hugging Face folder")
    export.add_argument("run", type=Path)
    export.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="merged, peft: of its tensors (default: bfloat16)"
    )
    export.add_argument("--chat-format", help="for an imported model, whose folder may name none")
    export.add_argument(
        "--format",
        choices=("merged", "peft", "gguf"),
        default="merged",
        help="merged: a Hugging Face folder, of a run with an adapter base and adapter in one; peft: the adapter "
        "alone, as peft loads it; gguf: one file for llama.cpp and Ollama",
    )
    export.add_argument(
        "--quantisation", choices=("F16", "BF16", "Q8_0"), help="gguf: the type of its matrices (default: F16)"
    )
    export.add_argument("--base-model", default="", help="peft: name of the base (default: where it was imported from)")
    export.add_argument("--out", type=local, help="the folder to write (default: RUN/hf, RUN/peft or RUN/gguf)")


def _import(arguments: argparse.Namespace) -> None:
    from wizard_jax.doctor import check_platforms
    from wizard_jax.transfer import import_model

    check_platforms()
    config = import_model(arguments.source, arguments.out, chat_format=arguments.chat_format)
    say(f"a model of {config.n_layers} layers in {arguments.out}; train from it with init=@FromCheckpoint")


def _export(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from wizard_jax.doctor import check_platforms
    from wizard_jax.transfer import export_model, export_peft

    check_platforms()
    if arguments.format == "gguf":
        _export_gguf(arguments)
        return
    if arguments.quantisation:
        raise UserError("--quantisation is the type of a GGUF file: it goes with --format gguf; others have --dtype")
    run, chat_format = arguments.run, arguments.chat_format or ""
    told = {"step": arguments.step, "dtype": arguments.dtype or "bfloat16", "chat_format": chat_format}
    if arguments.format == "peft":
        out = arguments.out or run / "peft"
        export_peft(run, out, base_model=arguments.base_model, **told)
        say(f"an adapter for peft in {out}")
        return
    if arguments.base_model:
        raise UserError("--base-model is written into an adapter's folder: it goes with --format peft")
    out = arguments.out or run / "hf"
    export_model(run, out, **told)
    say(f"a Hugging Face folder in {out}")


def _export_gguf(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from wizard_jax.doctor import check_extra

    if arguments.dtype or arguments.base_model:
        raise UserError("--dtype and --base-model have no effect with --format gguf: its type is --quantisation")
    check_extra("gguf", asks="--format gguf")
    from wizard_jax.deployment import export_gguf_model, quantise_line

    out = arguments.out or arguments.run / "gguf"
    quantisation = arguments.quantisation or "F16"
    settings = {"step": arguments.step, "quantisation": quantisation, "chat_format": arguments.chat_format or ""}
    file = export_gguf_model(arguments.run, out, **settings)
    if file is None:
        say(f"{out} holds it already")
        return
    say(f"{file}; for Ollama: ollama create NAME -f {out / 'Modelfile'}")
    if quantisation != "Q8_0":
        say(f"smaller: {quantise_line(file)}")

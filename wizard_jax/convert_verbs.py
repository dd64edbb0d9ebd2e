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
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    export.add_argument("--chat-format", help="for an imported model, whose folder may name none")
    export.add_argument(
        "--format",
        choices=("merged", "peft"),
        default="merged",
        help="of a run with an adapter: base and adapter in one, or the adapter alone as peft loads it",
    )
    export.add_argument("--base-model", default="", help="peft: name of the base (default: where it was imported from)")
    export.add_argument("--out", type=local, help="the folder to write (default: RUN/hf, or RUN/peft)")


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
    run, chat_format = arguments.run, arguments.chat_format or ""
    told = {"step": arguments.step, "dtype": arguments.dtype, "chat_format": chat_format}
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

"""The verbs that take a model in and out: import, export."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wizard_jax.progress import say

if TYPE_CHECKING:
    from wizard_jax.data_verbs import Add
    from wizard_jax.exported import Exported


def add_convert_verbs(add: Add, *, local: Callable[[str], Path]) -> None:
    """Adds the verbs by `add`; `local` reads a place that must be local."""
    imported = add("import", _import, "read a Hugging Face folder (safetensors) into a folder to train from")
    imported.add_argument("source", metavar="FOLDER", help="a local folder, or hf://owner/name@revision")
    imported.add_argument("place", nargs="?", type=local, metavar="OUT", help="the folder to write")
    imported.add_argument("--out", type=local, help="the same")
    imported.add_argument("--chat-format", default="", help="the format it was trained with, if known")
    imported.add_argument(
        "--add-tokens", nargs="+", default=(), metavar="TOKEN", help="new special tokens, such as '<|im_start|>'"
    )
    imported.add_argument(
        "--pad-vocabulary-to",
        type=int,
        default=1,
        metavar="N",
        help="let the vocabulary grow to a multiple of N; each new row is the mean of the old ones",
    )
    export = add("export", _export, "write a run or an imported model as a Hugging Face folder")
    export.add_argument("run", type=Path)
    export.add_argument(
        "place", nargs="?", type=local, metavar="OUT", help="folder to write (RUN/hf, RUN/peft, RUN/gguf or RUN/gptq)"
    )
    export.add_argument("--out", type=local, help="the same")
    export.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="merged, peft: of its tensors (default: bfloat16)"
    )
    export.add_argument("--chat-format", help="for an imported model, whose folder may name none")
    export.add_argument(
        "--format",
        choices=("merged", "peft", "gguf", "gptq"),
        default="merged",
        help="merged: a Hugging Face folder, of a run with an adapter base and adapter in one; peft: the adapter "
        "alone, as peft loads it; gguf: one file for llama.cpp and Ollama; gptq: a Hugging Face folder in 4 bits",
    )
    export.add_argument(
        "--quantisation", choices=("F16", "BF16", "Q8_0"), help="gguf: the type of its matrices (default: F16)"
    )
    export.add_argument("--group-size", type=int, help="gptq: inputs that share a scale (default: 128)")
    export.add_argument(
        "--calibration", type=Path, help="gptq: a file of texts, one in each line (default: a run's training data)"
    )
    export.add_argument("--base-model", default="", help="peft: name of the base (default: where it was imported from)")
    verify = export.add_mutually_exclusive_group()
    verify.add_argument(
        "--verify",
        action="store_const",
        const="tensors and logits",
        default="tensors and logits",
        help="read every tensor back, and for merged compare logits where memory allows (default)",
    )
    verify.add_argument(
        "--no-verify", dest="verify", action="store_const", const="nothing", help="merged, peft: leave that out"
    )
    export.add_argument("--push", default="", metavar="OWNER/NAME", help="and upload it to the Hugging Face Hub")


def _import(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from wizard_jax.doctor import check_platforms
    from wizard_jax.progress import show_progress
    from wizard_jax.transfer import import_model

    out = _place(arguments)
    if out is None:
        raise UserError("wizard import needs the folder to write: name it after the source")
    check_platforms()
    with show_progress("import") as progress:
        config = import_model(
            arguments.source,
            out,
            chat_format=arguments.chat_format,
            add_tokens=arguments.add_tokens,
            pad_vocabulary_to=arguments.pad_vocabulary_to,
            progress=progress,
        )
    if arguments.add_tokens or arguments.pad_vocabulary_to > 1:
        say(f"its vocabulary has {config.vocab_size:,} tokens; rows that it did not have are the mean of its tokens'")
    say(
        f"a model of {config.n_layers} layers in {out}; to train from it: include '{out}/model.gin' in a config, with "
        f"init = @FromCheckpoint and init.path = '{out}'"
    )


def _export(arguments: argparse.Namespace) -> int | None:
    from configs.errors import UserError
    from wizard_jax.convert.hub import check_repo, push
    from wizard_jax.convert.verify import VerificationError
    from wizard_jax.doctor import check_platforms

    if arguments.format != "gptq" and (arguments.group_size is not None or arguments.calibration):
        raise UserError("--group-size and --calibration say how GPTQ rounds: they go with --format gptq")
    if arguments.format == "gptq" and (arguments.dtype or arguments.quantisation):
        raise UserError("--dtype and --quantisation have no effect with --format gptq, which has 4 bits and float16")
    if arguments.format == "gguf" and (arguments.dtype or arguments.base_model):
        raise UserError("--dtype and --base-model have no effect with --format gguf: its type is --quantisation")
    if arguments.format in ("gguf", "gptq") and arguments.verify == "nothing":
        raise UserError(
            f"--no-verify has no effect with --format {arguments.format}: what it writes is always read back"
        )
    if arguments.base_model and arguments.format != "peft":
        raise UserError("--base-model is written into an adapter's folder: it goes with --format peft")
    if arguments.push:
        check_repo(arguments.push)
    check_platforms()
    kind = {"merged": "hf"}.get(arguments.format, arguments.format)
    out = _place(arguments) or arguments.run / kind
    try:
        if arguments.format == "gguf":
            _export_gguf(arguments, out)
        elif arguments.format == "gptq":
            _export_gptq(arguments, out)
        else:
            _export_folder(arguments, out)
    except VerificationError as error:
        print(f"wizard: {out}: not written, as it would not be {arguments.run}: {error}", file=sys.stderr)
        return 1
    if arguments.push:
        say(f"https://huggingface.co/{arguments.push} holds it, at commit {push(out, arguments.push)}")
    return None


def _export_folder(arguments: argparse.Namespace, out: Path) -> None:
    from configs.errors import UserError
    from wizard_jax.transfer import export_model, export_peft

    if arguments.quantisation:
        raise UserError("--quantisation is the type of a GGUF file: it goes with --format gguf; others have --dtype")
    told: dict[str, Any] = {"step": arguments.step, "dtype": arguments.dtype or "bfloat16"}
    told |= {"chat_format": arguments.chat_format or "", "verify": arguments.verify}
    if arguments.format == "peft":
        exported = export_peft(arguments.run, out, base_model=arguments.base_model, **told)
    else:
        exported = export_model(arguments.run, out, **told)
    _tell(exported, "an adapter for peft" if arguments.format == "peft" else "a Hugging Face folder")


def _tell(exported: Exported, kind: str) -> None:
    if exported.was_there:
        say(f"{exported.folder} holds this export already; when it was made:")
    for line in exported.checks:
        say(line)
    say(f"{kind} in {exported.folder}")


def _export_gptq(arguments: argparse.Namespace, out: Path) -> None:
    from wizard_jax.deployment.gptq import export_gptq_model
    from wizard_jax.progress import show_progress

    told = {"step": arguments.step, "chat_format": arguments.chat_format or "", "calibration": arguments.calibration}
    group = 128 if arguments.group_size is None else arguments.group_size
    with show_progress("export") as progress:
        exported = export_gptq_model(arguments.run, out, group=group, progress=progress, **told)
    _tell(exported, "a Hugging Face folder in 4 bits")


def _export_gguf(arguments: argparse.Namespace, out: Path) -> None:
    from wizard_jax.doctor import check_extra

    check_extra("gguf", asks="--format gguf")
    from wizard_jax.deployment.gguf import export_gguf_model, gguf_file, quantise_line

    quantisation = arguments.quantisation or "F16"
    settings = {"step": arguments.step, "quantisation": quantisation, "chat_format": arguments.chat_format or ""}
    exported = export_gguf_model(arguments.run, out, **settings)
    _tell(exported, "a GGUF file")
    say(f"for Ollama: ollama create NAME -f {out / 'Modelfile'}")
    if quantisation != "Q8_0":
        say(f"smaller: {quantise_line(gguf_file(out))}")


def _place(arguments: argparse.Namespace) -> Path | None:
    """Where to write, which is named once."""
    from configs.errors import UserError

    if arguments.place is not None and arguments.out is not None:
        raise UserError(f"{arguments.place} and --out {arguments.out}: name the folder to write once")
    place: Path | None = arguments.place if arguments.out is None else arguments.out
    return place

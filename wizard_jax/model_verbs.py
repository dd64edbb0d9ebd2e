"""The verbs that let a model speak: generate, serve, chat."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from wizard_jax.data_verbs import Add
    from wizard_jax.generate.speaker import Speaker

_MODEL = "a run, an imported model, or a Hugging Face folder"


def add_model_verbs(add: Add, *, local: Callable[[str], Path]) -> None:
    """Adds the verbs by `add`; `local` reads a place that must be local."""
    generate = add("generate", _generate, "answer a file of prompts")
    generate.add_argument("model", type=Path, help=_MODEL)
    generate.add_argument(
        "--prompts", type=Path, required=True, help='JSONL of {"prompt": text} or {"messages": [...]}'
    )
    generate.add_argument(
        "--out", type=local, required=True, help="the JSONL file to write; one that was begun goes on"
    )
    generate.add_argument("--rows", type=int, default=16, help="prompts answered at once (default: 16)")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="cut answers where this begins")
    generate.add_argument(
        "settings", nargs="*", metavar="name=value", help="such as temperature=0.7 max_new_tokens=512"
    )
    serve = add("serve", _serve, "serve a model to clients of OpenAI's API")
    serve.add_argument("model", type=Path, help=_MODEL)
    serve.add_argument("--port", type=int, default=8000, help="default: 8000; 0: one that is free")
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine only; others need WIZARD_SERVE_TOKEN")
    serve.add_argument("--name", default="", help="that requests call the model by (default: its folder's)")
    serve.add_argument("--rows", type=int, default=8, help="answers at the same time (default: 8)")
    serve.add_argument(
        "--length", type=int, help="tokens of a prompt and its answer (default: the model's, up to 4096)"
    )
    serve.add_argument("--queue", type=int, default=128, help="answers that may wait; beyond it, 429 (default: 128)")
    serve.add_argument(
        "--body-bytes", type=int, default=4 * 2**20, help="of a request; beyond it, 413 (default: 4 MiB)"
    )
    chat = add("chat", _chat, "talk to a model, or to two side by side")
    chat.add_argument("models", type=Path, nargs="+", metavar="MODEL", help=f"{_MODEL}; one or two")
    chat.add_argument("--system", default="", help="the system turn")
    chat.add_argument("--length", type=int, help="tokens of a conversation (default: the model's, up to 4096)")
    for verb in (generate, serve, chat):
        verb.add_argument("--step", type=int, help="which checkpoint of a run (default: the newest)")
        verb.add_argument("--chat-format", default="", help="for a model whose folder names none")
        verb.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: the model's)")
        verb.add_argument(
            "--tensor", type=int, default=1, metavar="N", help="devices to split the model over (default: 1)"
        )
    chat.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in --set temperature=0.7")


def _mesh(devices: int) -> jax.sharding.Mesh | None:
    """None for one device. Raises UserError: there are not so many."""
    import jax

    from configs.errors import UserError
    from wizard_jax.model.sharding import MeshConfig, make_mesh

    if not 1 <= devices <= jax.device_count():
        raise UserError(f"--tensor {devices}: there are {jax.device_count()} devices here")
    return None if devices == 1 else make_mesh(MeshConfig(fsdp=1, tensor=devices), jax.devices()[:devices])


def _speaker(
    path: Path, arguments: argparse.Namespace, *, mesh: jax.sharding.Mesh | None, name: str = ""
) -> tuple[Speaker, dict[str, object]]:
    """The model of a folder, and what tells it from others."""
    import dataclasses

    from wizard_jax.chat import check_tokenizer, get_format
    from wizard_jax.generate.speaker import Speaker
    from wizard_jax.generate.weights import prepared
    from wizard_jax.runs import open_model

    model = open_model(path, step=arguments.step, mesh=mesh)
    config = dataclasses.replace(model.config, compute_dtype=arguments.dtype or model.config.compute_dtype)
    named = arguments.chat_format or model.chat_format
    chat_format = get_format(named) if named else None
    if chat_format is not None:
        check_tokenizer(chat_format, model.tokenizer)
    speaker = Speaker(
        name=name or path.resolve().name,
        params=prepared(model.params, config=config, source="freed"),
        config=config,
        tokenizer=model.tokenizer,
        chat_format=chat_format,
    )
    made_by = {
        "model": str(path.resolve()),
        "step": model.step,
        "tokenizer_sha256": model.tokenizer.sha256,
        "chat_format": named,
        "compute_dtype": config.compute_dtype,
    }
    return speaker, made_by


def _under(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager[object]:
    import jax

    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _length(asked: int | None, speaker: Speaker) -> int:
    return min(speaker.config.max_positions, 4096) if asked is None else asked


def _generate(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from configs.loader import load
    from wizard_jax.doctor import check_platforms
    from wizard_jax.generate.prompt_file import answer_file
    from wizard_jax.generate.sampling import Sampling
    from wizard_jax.progress import say, show_progress

    sampling = load(Sampling, [], arguments.settings)
    if arguments.rows < 1:
        raise UserError(f"--rows {arguments.rows}: must be at least 1")
    if "" in arguments.stop:
        raise UserError("--stop '': every text begins with that; leave it out")
    check_platforms()
    mesh = _mesh(arguments.tensor)
    with _under(mesh), show_progress("generate") as progress:
        speaker, made_by = _speaker(arguments.model, arguments, mesh=mesh)
        counts = answer_file(
            speaker,
            arguments.prompts,
            arguments.out,
            sampling=sampling,
            stop=arguments.stop,
            rows=arguments.rows,
            made_by=made_by,
            progress=progress,
        )
    refused = f"; {counts.not_answered:,} not answered, with the reason in the row" if counts.not_answered else ""
    cut = f", {counts.cut:,} of them cut at {sampling.max_new_tokens:,} tokens" if counts.cut else ""
    say(f"{counts.answered:,} answers in {arguments.out}{cut}{refused}")


def _serve(arguments: argparse.Namespace) -> None:
    from wizard_jax.doctor import check_platforms
    from wizard_jax.serve.app import Limits
    from wizard_jax.serve.server import check_address, run_server

    check_address(arguments.host, arguments.port)  # before a model is read for minutes
    check_platforms()
    mesh = _mesh(arguments.tensor)
    speaker, _ = _speaker(arguments.model, arguments, mesh=mesh, name=arguments.name)
    limits = Limits(
        rows=arguments.rows,
        length=_length(arguments.length, speaker),
        queue=arguments.queue,
        body_bytes=arguments.body_bytes,
    )
    run_server(speaker, limits=limits, host=arguments.host, port=arguments.port, mesh=mesh)


def _chat(arguments: argparse.Namespace) -> None:
    import sys

    from configs.errors import UserError
    from wizard_jax.doctor import check_platforms
    from wizard_jax.generate.conversation import Conversation, Session, chat, typed_lines, with_settings
    from wizard_jax.generate.engine import Engine
    from wizard_jax.progress import say

    if len(arguments.models) > 2:
        raise UserError(f"wizard chat takes one model or two, not {len(arguments.models)}")
    sampling = with_settings({}, arguments.set)
    check_platforms()
    mesh = _mesh(arguments.tensor)
    with _under(mesh):
        conversations = []
        for path, name in zip(arguments.models, _names(arguments.models), strict=True):
            speaker, _ = _speaker(path, arguments, mesh=mesh, name=name)
            speaker.check_format()
            length = _length(arguments.length, speaker)
            engine = Engine(speaker.params, config=speaker.config, rows=1, length=length)
            conversations.append(Conversation(speaker, engine))
        if sys.stdin.isatty():
            say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends")
        chat(Session(conversations, sampling, arguments.system), lines=typed_lines(), say=say)


def _names(paths: Sequence[Path]) -> list[str]:
    """Their folders' names, or their paths where those are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]

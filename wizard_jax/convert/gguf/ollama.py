"""A Modelfile, from which `ollama create` makes a model of a GGUF file.

Ollama's templates are Go's (https://pkg.go.dev/text/template). It puts BOS before a prompt itself where the file says
so, and it has no function that strips spaces, so the turns of formats that strip them are written as they come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from wizard_jax.chat import ChatFormat, end_id, special_id
from wizard_jax.chat_formats import Part, Parts, Slot, Special, Stripped
from wizard_jax.convert.gguf.network import context_length
from wizard_jax.convert.gguf.writing import begins_with_bos
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer


def modelfile(file: str, model: ModelConfig, tokenizer: Tokenizer, *, chat_format: ChatFormat) -> str:
    """The text of a Modelfile beside the GGUF file of that name."""
    stops = dict.fromkeys(tokenizer.piece(token) for token in (end_id(chat_format, tokenizer), tokenizer.eos_id))
    lines = [
        f"# ollama create NAME -f Modelfile; the chat format is {chat_format.name}.",
        f"FROM ./{file}",
        f'TEMPLATE """{template(chat_format, tokenizer)}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {context_length(model)}",
    ]
    return "\n".join(lines) + "\n"


def template(chat_format: ChatFormat, tokenizer: Tokenizer) -> str:
    """The chat format as a Go template over `.Messages`."""

    def written(parts: Parts) -> str:
        return "".join(_actions(parts, tokenizer=tokenizer))

    def beginning(parts: Parts) -> str:
        return written(parts[1:] if begins_with_bos(chat_format) else parts)

    first = beginning(chat_format.first)
    if chat_format.first_with_system is not None:
        first = f"{{{{- if $.System }}}}{beginning(chat_format.first_with_system)}{{{{- else }}}}{first}{{{{- end }}}}"
    return (
        "{{- $first := true }}"
        "{{- range .Messages }}"
        '{{- if eq .Role "user" }}'
        f"{{{{- if $first }}}}{first}{{{{- $first = false }}}}{{{{- else }}}}{written(chat_format.later)}{{{{- end }}}}"
        f"{written(chat_format.ask)}"
        '{{- else if eq .Role "assistant" }}'
        f"{written(chat_format.answer)}"
        "{{- end }}{{- end }}"
    )


def _actions(parts: tuple[Part, ...], *, tokenizer: Tokenizer) -> Iterator[str]:
    """Texts as strings, so that no space or newline of theirs is taken for the template's own."""
    for part in parts:
        match part:
            case str():
                yield f"{{{{- {_go_string(part)} }}}}"
            case Special() as special:
                yield f"{{{{- {_go_string(tokenizer.piece(special_id(special, tokenizer=tokenizer)))} }}}}"
            case Slot("system"):
                yield "{{- $.System }}"
            case Slot():
                yield "{{- .Content }}"
            case Stripped(inner):
                yield from _actions(inner, tokenizer=tokenizer)


def _go_string(text: str) -> str:
    """JSON's escapes are Go's too, but for pairs of surrogates, which are not used here."""
    return json.dumps(text, ensure_ascii=False)

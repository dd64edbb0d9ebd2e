"""A folder for llama.cpp and what is built on it: one GGUF file, a Modelfile for Ollama, and the card."""

from __future__ import annotations

import os
import pathlib

from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert.gguf.network import Quantisation, Read, check_known, context_length, unblocked
from wizard_jax.convert.gguf.ollama import modelfile
from wizard_jax.convert.gguf.vocabulary import vocabulary
from wizard_jax.convert.gguf.writing import check_gguf, write_gguf
from wizard_jax.convert.new_folder import new_folder, write_bytes
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer


def check_exportable(model: ModelConfig, tokenizer: Tokenizer, *, chat_format: str) -> None:
    """Before any weights are read. Raises ConversionError: llama.cpp would compute or tokenize otherwise; ChatError:
    the tokenizer lacks what the chat format needs."""
    check_known(model)
    vocabulary(tokenizer, size=model.vocab_size)
    check_tokenizer(get_format(chat_format), tokenizer)


def export_gguf(
    model: ModelConfig,
    tokenizer: Tokenizer,
    read: Read,
    out: str | os.PathLike[str],
    *,
    name: str,
    chat_format: str,
    quantisation: Quantisation,
    card: str,
) -> pathlib.Path:
    """Writes `out`, which appears under its name when it is complete and read back; returns the path of the file.

    Raises ConversionError: `out` is there already, what `check_exportable` says, or a value that does not fit its type.
    """
    check_exportable(model, tokenizer, chat_format=chat_format)
    chat, file = get_format(chat_format), f"{name}-{quantisation}.gguf"
    with new_folder(out) as folder:
        checksums = write_gguf(
            folder / file,
            model,
            tokenizer,
            read,
            vocabulary=vocabulary(tokenizer, size=model.vocab_size),
            chat_format=chat,
            quantisation=quantisation,
            name=name,
        )
        check_gguf(folder / file, checksums)
        write_bytes(folder / "Modelfile", modelfile(file, model, tokenizer, chat_format=chat).encode())
        write_bytes(folder / "README.md", card.encode())
    return pathlib.Path(out) / file


def card_lines(model: ModelConfig, tokenizer: Tokenizer, *, quantisation: Quantisation) -> list[str]:
    """What a user of the file should know, for the card."""
    lines = [f"One GGUF file in {quantisation}, for llama.cpp, Ollama and others that read it."]
    wider = unblocked(model) if quantisation == "Q8_0" else []
    if wider:
        lines.append(f"In F16, because their rows are no multiple of 32: {', '.join(wider)}.")
    if context_length(model) < model.max_positions:
        lines.append(
            f"The file names a context of {context_length(model):,} tokens, the model's sliding window: llama.cpp has "
            f"none for this architecture, and beyond it would compute what the model was not trained to. The Hugging "
            f"Face export goes to {model.max_positions:,}."
        )
    lines += vocabulary(tokenizer, size=model.vocab_size).notes
    return lines

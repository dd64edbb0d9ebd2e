"""A folder for llama.cpp and what is built on it: one GGUF file, a Modelfile for Ollama, and the card."""

from __future__ import annotations

import pathlib

from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert.gguf.network import Quantisation, check_known, context_length, unblocked
from wizard_jax.convert.gguf.ollama import modelfile
from wizard_jax.convert.gguf.vocabulary import vocabulary
from wizard_jax.convert.gguf.writing import check_gguf, write_gguf
from wizard_jax.convert.new_folder import write_bytes
from wizard_jax.convert.tensors import Read
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer


def check_exportable(model: ModelConfig, tokenizer: Tokenizer, *, chat_format: str) -> None:
    """Before any weights are read. Raises ConversionError: llama.cpp would compute or tokenize otherwise; ChatError:
    the tokenizer lacks what the chat format needs."""
    check_known(model)
    vocabulary(tokenizer, size=model.vocab_size)
    check_tokenizer(get_format(chat_format), tokenizer)


def write_folder(
    folder: pathlib.Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    read: Read,
    *,
    name: str,
    chat_format: str,
    quantisation: Quantisation,
) -> str:
    """Writes all files of a folder but its card, and reads the weights back; returns what was verified.

    Raises ConversionError: what `check_exportable` says, or a value that does not fit its type; VerificationError: the
    file does not hold what was written.
    """
    check_exportable(model, tokenizer, chat_format=chat_format)
    chat, file = get_format(chat_format), file_name(name, quantisation)
    written = write_gguf(
        folder / file,
        model,
        tokenizer,
        read,
        vocabulary=vocabulary(tokenizer, size=model.vocab_size),
        chat_format=chat,
        quantisation=quantisation,
        name=name,
    )
    write_bytes(folder / "Modelfile", modelfile(file, model, tokenizer, chat_format=chat).encode())
    return check_gguf(folder / file, written)


def file_name(name: str, quantisation: Quantisation) -> str:
    """Of the weights, as llama.cpp's own are called."""
    return f"{name}-{quantisation}.gguf"


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

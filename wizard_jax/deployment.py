"""A model for the programs that people run models with: GGUF for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_identity
from wizard_jax.convert.gguf.export import card_lines, check_exportable, export_gguf
from wizard_jax.convert.gguf.network import Quantisation, Read
from wizard_jax.convert.gguf.rounding import rounded
from wizard_jax.convert.tensors import Array, Place, at
from wizard_jax.evaluate.perplexity import held_out_rows, perplexity
from wizard_jax.model.decoder import Params
from wizard_jax.model_card import model_card
from wizard_jax.runs import OpenedModel, find_model, open_model
from wizard_jax.train.config import TrainConfig


def export_gguf_model(
    run: Path, out: Path, *, step: int | None = None, quantisation: Quantisation = "F16", chat_format: str = ""
) -> Path | None:
    """Writes a run or an imported model as a folder with one GGUF file, whose path it returns.

    A finished folder of the same is left as it is, and None returned. Where the run holds data out, the card has the
    perplexity of what was trained and of what the file holds.

    Raises:
      UserError: no such model or step, no chat format known, a network or tokenizer that llama.cpp does not know, or
        `out` holds something else.
    """
    model = open_model(run, step=step)
    chat_format = _chat_format(model, chat_format)
    check_exportable(model.config, model.tokenizer, chat_format=chat_format)
    card = model_card(find_model(run, step=step), step=model.step, dtype=quantisation, chat_format=chat_format)
    card += "\n".join(["", "## GGUF", "", *card_lines(model.config, model.tokenizer, quantisation=quantisation)]) + "\n"
    if (out / "README.md").exists() and (out / "README.md").read_text(encoding="utf-8").startswith(card):
        return None
    read = reader(model.params)
    return export_gguf(
        model.config,
        model.tokenizer,
        read,
        out,
        name=run.absolute().name,
        chat_format=chat_format,
        quantisation=quantisation,
        card=card + "\n" + _measured(model, rounded(model.config, read, quantisation=quantisation)),
    )


def reader(params: Params) -> Read:
    """Reads the arrays of a tree."""

    def read(place: Place) -> Array:
        array = at(params, place.path)
        return np.asarray(array if place.layer is None else array[place.layer])

    return read


def quantise_line(file: Path) -> str:
    """The command of llama.cpp that makes a smaller file of one in F16 or BF16."""
    smaller = file.with_name(f"{file.stem.rpartition('-')[0]}-Q4_K_M.gguf")
    return f"llama-quantize {file} {smaller} Q4_K_M"


def _chat_format(model: OpenedModel, given: str) -> str:
    chat_format = given or model.chat_format
    if not chat_format:
        raise UserError(f"{model.path} names no chat format: say which it was trained with by --chat-format")
    return chat_format


def _measured(model: OpenedModel, after: Params) -> str:
    """The sentence of the card on perplexity before and after."""
    is_run = (model.path / IDENTITY).exists() and read_identity(model.path).stage == "train"
    packed = held_out_rows(model.path, load_config(TrainConfig, model.path), model.tokenizer) if is_run else None
    if packed is None:
        return "Perplexity was not measured: nothing is held out of its training (data.held_out_share).\n"
    before_, after_ = (perplexity(params, model.config, packed) for params in (model.params, after))
    return (
        f"Perplexity on {before_.tokens:,} held-out tokens: {before_.value:.4f} as it was trained, {after_.value:.4f} "
        "with the values of this file.\n"
    )

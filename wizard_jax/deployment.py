"""A model for the programs that people run models with: GGUF for llama.cpp and Ollama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.gguf.export import card_lines, check_exportable, export_gguf
from wizard_jax.convert.gguf.network import Quantisation, Read
from wizard_jax.convert.gguf.rounding import rounded
from wizard_jax.convert.inventory import read_tensors
from wizard_jax.convert.tensors import Array, Place, at
from wizard_jax.convert.verify import available_memory
from wizard_jax.evaluate.perplexity import perplexity, run_batches
from wizard_jax.model.decoder import Params, count_params
from wizard_jax.model_card import model_card
from wizard_jax.runs import FoundModel, check_imported, find_model, known_format, open_model
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.source import CHECKPOINTS, abstract_on

_SPARE = 2 << 30  # bytes beside two trees of parameters, for activations and for what runs


@dataclass(frozen=True, kw_only=True)
class Source:
    """The weights of a model, to be read an array of one layer at a time."""

    read: Read
    step: int | None


def export_gguf_model(
    run: Path, out: Path, *, step: int | None = None, quantisation: Quantisation = "F16", chat_format: str = ""
) -> Path | None:
    """Writes a run or an imported model as a folder with one GGUF file, whose path it returns.

    A finished folder of the same is left as it is, and None returned. One tensor is in memory at a time; of a run with
    an adapter all are. Where the run holds data out, and memory allows, the card has the perplexity of what was
    trained and of what the file holds.

    Raises:
      UserError: no such model or step, no chat format known, a network or tokenizer that llama.cpp does not know, or
        `out` holds something else.
    """
    found = find_model(run, step=step)
    chat_format = known_format(found, chat_format)
    model, tokenizer = found.config, found.tokenizer
    check_exportable(model, tokenizer, chat_format=chat_format)
    source = open_source(found, step=step)
    card = model_card(found, step=source.step, dtype=quantisation, chat_format=chat_format)
    card += "\n".join(["", "## GGUF", "", *card_lines(model, tokenizer, quantisation=quantisation)]) + "\n"
    if (out / "README.md").exists() and (out / "README.md").read_text(encoding="utf-8").startswith(card):
        return None

    def after() -> Params:
        return rounded(model, source.read, quantisation=quantisation)

    return export_gguf(
        model,
        tokenizer,
        source.read,
        out,
        name=run.absolute().name,
        chat_format=chat_format,
        quantisation=quantisation,
        card=f"{card}\n{measured(found, after, step=source.step)}\n",
    )


def open_source(found: FoundModel, *, step: int | None) -> Source:
    """Raises UserError: no such step, or weights that are damaged."""
    if found.run is None:
        return Source(read=_of_folder(found), step=None)
    if found.adapter is not None:
        model = open_model(found.path, step=step)
        return Source(read=reader(model.params), step=model.step)
    with CheckpointStore(found.path / CHECKPOINTS) as store:
        newest, _, _ = store.restore({}, step=step)
        read = store.read_layers(newest, abstract_on(None, found.config))
    return Source(read=lambda place: read(place.path, place.layer), step=newest)


def _of_folder(found: FoundModel) -> Read:
    if found.stage == "import":
        check_imported(found.path)
    stored = read_tensors(found.path, found.config)
    names = {place: name for name, rows in architectures.places(found.config).items() for place in rows}

    def read(place: Place) -> Array:
        return place.read(stored[names[place]], tuple(slice(0, size) for size in place.shape))

    return read


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


def measured(found: FoundModel, after: Callable[[], Params], *, step: int | None) -> str:
    """The sentence of the card on perplexity before and after; `after` gives the values that were written."""
    if found.run is None or not found.run.data.held_out_share:
        return "Perplexity was not measured: nothing is held out of its training (data.held_out_share)."
    needed = 2 * 4 * count_params(found.config) + _SPARE
    if available_memory() < needed:
        return f"Perplexity was not measured: that takes {needed / 1e9:.0f} GB of memory, and there was less."
    batches = list(run_batches(found.path, found.run, found.tokenizer, part="held_out"))
    before = perplexity(open_model(found.path, step=step).params, found.config, batches)
    rounded_to = perplexity(after(), found.config, batches)
    return (
        f"Perplexity on {before.tokens:,} held-out tokens: {before.value:.4f} as it was trained, "
        f"{rounded_to.value:.4f} with the values of this file."
    )

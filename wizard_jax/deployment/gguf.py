"""A model for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wizard_jax.convert.gguf.export import card_lines, check_exportable, file_name, write_folder
from wizard_jax.convert.gguf.network import Quantisation
from wizard_jax.convert.gguf.rounding import rounded
from wizard_jax.convert.new_folder import new_folder
from wizard_jax.deployment.measuring import held_out, measured
from wizard_jax.deployment.source import open_source
from wizard_jax.exported import Exported, finish, finished, made_from
from wizard_jax.model.decoder import Params
from wizard_jax.model_card import model_card
from wizard_jax.runs import find_model, known_format


def export_gguf_model(
    run: Path, out: Path, *, step: int | None = None, quantisation: Quantisation = "F16", chat_format: str = ""
) -> Exported:
    """Writes a run or an imported model as a folder with one GGUF file. A finished folder of the same is left as it is.

    One tensor is in memory at a time; of a run with an adapter all are. Where the run holds data out, and memory
    allows, the perplexity of what was trained and of what the file holds is told with the checks.

    Raises:
      UserError: no such model or step, no chat format known, a network or tokenizer that llama.cpp does not know, or
        `out` holds something else.
      VerificationError: the file does not hold what was written; there is no folder then.
    """
    found = find_model(run, step=step)
    chat_format = known_format(found, chat_format)
    model, tokenizer, name = found.config, found.tokenizer, run.absolute().name
    check_exportable(model, tokenizer, chat_format=chat_format)
    source = open_source(found, step=step)
    mark = made_from(
        found,
        step=source.step,
        weights_sha256=source.sha256,
        dtype=quantisation,
        chat_format=chat_format,
        kind="gguf",
        file=file_name(name, quantisation),
    )
    if (done := finished(out, mark)) is not None:
        return done

    def after() -> Params:
        return rounded(model, source.read, quantisation=quantisation)

    with new_folder(out) as folder:
        told: dict[str, Any] = {"name": name, "chat_format": chat_format}
        checks = [write_folder(folder, model, tokenizer, source.read, quantisation=quantisation, **told)]
        checks.append(measured(found, held_out(found), after, step=source.step))
        about = card_lines(model, tokenizer, quantisation=quantisation)
        settings: dict[str, Any] = {"step": source.step, "dtype": quantisation, "chat_format": chat_format}
        card = model_card(found, about=about, checks=checks, library="gguf", **settings)
        finish(folder, card=card, mark=mark, checks=checks)
    return Exported(folder=out, checks=tuple(checks))


def gguf_file(out: Path) -> Path:
    """The file of a folder that was exported."""
    return next(out.glob("*.gguf"))


def quantise_line(file: Path) -> str:
    """The command of llama.cpp that makes a smaller file of one in F16 or BF16."""
    smaller = file.with_name(f"{file.stem.rpartition('-')[0]}-Q4_K_M.gguf")
    return f"llama-quantize {file} {smaller} Q4_K_M"

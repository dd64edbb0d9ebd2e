"""A model in 4 bits by GPTQ, for transformers, GPTQModel and vLLM, calibrated on what it was trained on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert.gptq.calibrated import RoundedLayer, check_groups, rounded_layers
from wizard_jax.convert.gptq.export import export_gptq
from wizard_jax.convert.gptq.rounding import DAMPING, gptq
from wizard_jax.convert.new_folder import check_free
from wizard_jax.data.pipeline import Batch
from wizard_jax.evaluate.perplexity import BATCH_ROWS, perplexity, run_batches, text_batches
from wizard_jax.model.decoder import Params
from wizard_jax.model_card import model_card
from wizard_jax.runs import FoundModel, find_model, known_format, open_model

ROWS = 128
"""Of calibration: the paper's number."""
LONGEST = 2048
"""Tokens of a calibration text, as in the paper."""
_APART = 8  # every so manieth text of a calibration file measures, where the run holds nothing out


def export_gptq_model(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    chat_format: str = "",
    group: int = 128,
    calibration: Path | None = None,
) -> None:
    """Writes a run or an imported model as a Hugging Face folder in 4 bits.

    The whole model is in memory. The card has the perplexity before and after on what the run holds out, or on the
    texts of `calibration` (one in each line) that it is not calibrated on.

    Raises:
      UserError: no such model or step, no chat format known, groups that do not fit, nothing to calibrate on, or `out`
        holds something.
    """
    found = find_model(run, step=step)
    chat_format = known_format(found, chat_format)
    check_tokenizer(get_format(chat_format), found.tokenizer)
    check_groups(found.config, group=group)
    check_free(out)
    rows, apart = _material(found, calibration)
    model = open_model(run, step=step)
    columns = [{name: getattr(batch, name) for name in ("tokens", "positions", "segment_ids")} for batch in rows]
    layers: list[dict[str, np.ndarray]] = []

    def kept() -> Iterator[RoundedLayer]:
        for layer in rounded_layers(model.params, found.config, columns, round_=functools.partial(gptq, group=group)):
            layers.append({name: np.asarray(array) for name, array in layer.arrays.items()})
            yield layer

    def card() -> str:
        lines = ["", "## GPTQ", ""]
        lines.append(f"Linear layers are in 4 bits, symmetric, in groups of {group} inputs (arXiv 2210.17323).")
        lines.append(f"Calibrated on {_count(rows):,} rows of {calibration or 'its training data'}.")
        stacked = {name: jnp.asarray(np.stack([layer[name] for layer in layers])) for name in layers[0]}
        lines += ["", _measured(found, model.params, {**model.params, "layers": stacked}, apart)]
        whole = model_card(found, step=model.step, dtype="int4 (GPTQ)", chat_format=chat_format)
        return whole + "\n".join(lines) + "\n"

    export_gptq(
        model.params,
        kept(),
        found.config,
        found.tokenizer,
        out,
        chat_format=chat_format,
        group=group,
        damping=DAMPING,
        card=card,
    )


def _material(found: FoundModel, calibration: Path | None) -> tuple[list[Batch], list[Batch]]:
    """Rows to calibrate on, and others to measure with."""
    if calibration is not None:
        return _of_file(found, calibration)
    if found.run is None:
        raise UserError(
            f"{found.path} says of no data that it was trained on: give texts like those that it will see by "
            "--calibration FILE, one in each line"
        )
    rows = list(itertools.islice(run_batches(found.path, found.run, found.tokenizer, part="train"), ROWS // BATCH_ROWS))
    is_held_out = bool(found.run.data.held_out_share)
    apart = run_batches(found.path, found.run, found.tokenizer, part="held_out") if is_held_out else ()
    return rows, list(apart)


def _of_file(found: FoundModel, calibration: Path) -> tuple[list[Batch], list[Batch]]:
    try:
        texts = [line for line in calibration.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{calibration}: is not UTF-8 ({error}): give a file of texts, one in each line") from error
    if len(texts) < 2:
        raise UserError(f"{calibration}: has {len(texts)} texts: give at least 2, one in each line")
    length = min(LONGEST, found.config.max_positions)
    apart = texts[::_APART]
    used = [text for index, text in enumerate(texts) if index % _APART][:ROWS]
    return text_batches(used, found.tokenizer, length=length), text_batches(apart, found.tokenizer, length=length)


def _count(batches: Iterable[Batch]) -> int:
    return sum(int((batch.segment_ids > 0).any(axis=1).sum()) for batch in batches)


def _measured(found: FoundModel, before: Params, after: Params, apart: list[Batch]) -> str:
    if not apart:
        return "Perplexity was not measured: nothing is held out of its training (data.held_out_share)."
    first, second = (perplexity(params, found.config, apart) for params in (before, after))
    return (
        f"Perplexity on {first.tokens:,} held-out tokens: {first.value:.4f} as it was trained, {second.value:.4f} "
        "with the values of these files."
    )

"""A model in 4 bits by GPTQ, for transformers, GPTQModel and vLLM, calibrated on what it was trained on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert import architectures
from wizard_jax.convert.gptq.calibrated import RoundedLayer, check_groups, rounded_layers
from wizard_jax.convert.gptq.export import write_folder
from wizard_jax.convert.gptq.reading import folder_values
from wizard_jax.convert.gptq.rounding import DAMPING, gptq
from wizard_jax.convert.new_folder import new_folder
from wizard_jax.deployment.calibration import Material, find_material
from wizard_jax.deployment.measuring import measured
from wizard_jax.deployment.source import Source, open_source
from wizard_jax.exported import Exported, finish, finished, made_from
from wizard_jax.model.decoder import Params
from wizard_jax.model_card import model_card
from wizard_jax.progress import Progress, nobody
from wizard_jax.runs import FoundModel, find_model, known_format

_DTYPE = "int4 (GPTQ)"
_UNREAD = ("gpt_bigcode",)
"""The families of which transformers 5.23 opens no folder in 4 bits: it initialises weights that are not there."""


def export_gptq_model(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    chat_format: str = "",
    group: int = 128,
    calibration: Path | None = None,
    progress: Progress = nobody,
) -> Exported:
    """Writes a run or an imported model as a Hugging Face folder in 4 bits. A finished folder of the same is left.

    One layer is in memory at a time, with the residual streams of the calibration; of a run with an adapter all are.
    Where memory allows, the perplexity before and after is told with the checks: on what the run holds out, or on the
    texts of `calibration` (one in each line) that it is not calibrated on.

    Raises:
      UserError: no such model or step, no chat format known, groups that do not fit, nothing to calibrate on, or `out`
        holds something else.
      VerificationError: what was written is not what was rounded; there is no folder then.
    """
    found = find_model(run, step=step)
    chat_format = known_format(found, chat_format)
    check_tokenizer(get_format(chat_format), found.tokenizer)
    check_groups(found.config, group=group)
    source = open_source(found, step=step)
    mark = made_from(
        found,
        step=source.step,
        weights_sha256=source.sha256,
        dtype=_DTYPE,
        chat_format=chat_format,
        kind="gptq",
        group=group,
        calibration_sha256="" if calibration is None else _sha256(calibration),
    )
    if (done := finished(out, mark)) is not None:
        return done
    material = find_material(found, calibration)
    with new_folder(out) as folder:
        layers = _layers(found, source, material, group=group, progress=progress)
        told: dict[str, Any] = {"chat_format": chat_format, "group": group, "damping": DAMPING}
        checks = [write_folder(folder, source.read, layers, found.config, found.tokenizer, **told)]

        def after() -> Params:
            return architectures.tree_of(found.config, folder_values(folder))

        checks.append(measured(found, material.apart, after, step=source.step))
        about = [
            f"Its linear layers are in 4 bits, symmetric, in groups of {group} inputs (GPTQ, arXiv 2210.17323), "
            f"calibrated on {material.rows:,} rows of {material.source}.",
            "They are in the layout of GPTQModel, which vLLM reads too"
            + (
                "."
                if found.config.family in _UNREAD
                else ", and transformers where gptqmodel and optimum are installed."
            ),
        ]
        settings: dict[str, Any] = {"step": source.step, "dtype": _DTYPE, "chat_format": chat_format}
        card = model_card(found, about=about, checks=checks, **settings)
        finish(folder, card=card, mark=mark, checks=checks)
    return Exported(folder=out, checks=tuple(checks))


def _sha256(file: Path) -> str:
    if not file.exists():
        raise UserError(f"--calibration {file}: no such file: give one of texts, one in each line")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _layers(
    found: FoundModel, source: Source, material: Material, *, group: int, progress: Progress
) -> Iterator[RoundedLayer]:
    columns = [
        {name: getattr(batch, name) for name in ("tokens", "positions", "segment_ids")}
        for batch in material.calibration
    ]
    round_ = functools.partial(gptq, group=group)
    for number, layer in enumerate(rounded_layers(source.read, found.config, columns, round_=round_), 1):
        yield layer
        progress(number, found.config.n_layers, {"doing": "round layers"})

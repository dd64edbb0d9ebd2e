"""The texts that a model is rounded with, and others that it is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from wizard_jax.data.pipeline import Batch
from wizard_jax.deployment.measuring import held_out
from wizard_jax.evaluate.perplexity import text_batches, training_batches
from wizard_jax.runs import FoundModel

ROWS = 128
"""Of calibration: the paper's number."""
LONGEST = 2048
"""Tokens of a row, as in the paper: of longer rows the first, which see none of those behind them."""
_APART = 8  # every so manieth text of a file measures


@dataclass(frozen=True, kw_only=True)
class Material:
    calibration: list[Batch]
    apart: list[Batch]
    """To measure with; nothing where nothing is held out."""
    source: str
    """What the calibration is, for the card."""

    @property
    def rows(self) -> int:
        return sum(int((batch.segment_ids > 0).any(axis=1).sum()) for batch in self.calibration)


def find_material(found: FoundModel, file: Path | None) -> Material:
    """Rows of what a run was trained on, in the order of its training; or the texts of a file, one in each line.

    Raises UserError: a model that no run made and no file, or a file without texts.
    """
    if file is not None:
        return _of_file(found, file)
    if found.run is None:
        raise UserError(
            f"{found.path} says of no data that it was trained on: give texts like those that it will see by "
            "--calibration FILE, one in each line"
        )
    batches = training_batches(found.path, found.run, found.tokenizer, rows=ROWS)
    cut = [Batch(*(column[:, :LONGEST] for column in batch)) for batch in batches]
    return Material(calibration=cut, apart=held_out(found), source="its training data")


def _of_file(found: FoundModel, file: Path) -> Material:
    try:
        texts = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 ({error}): give a file of texts, one in each line") from error
    if len(texts) < 2:
        raise UserError(f"{file}: has {len(texts)} texts: give at least 2, one in each line")
    length = min(LONGEST, found.config.max_positions)
    used = [text for index, text in enumerate(texts) if index % _APART][:ROWS]
    calibration, apart = (text_batches(some, found.tokenizer, length=length) for some in (used, texts[::_APART]))
    if not all(any(batch.loss_weights.any() for batch in batches) for batches in (calibration, apart)):
        raise UserError(f"{file}: its texts are of one token each: give texts like those that the model will see")
    return Material(calibration=calibration, apart=apart, source=str(file))

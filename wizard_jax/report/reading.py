"""What an evaluation's folder holds, as its page needs it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from configs.errors import UserError
from configs.folder import load_config, read_complete
from data_gen.page import Content
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.judged_results import VERDICTS
from wizard_jax.evaluate.judging.rows import Verdict
from wizard_jax.evaluate.results import ANSWERS
from wizard_jax.report.figures import Figure

Parts: TypeAlias = list[Content | Figure]
"""Of a page, one below the other."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Its rows are read when they are asked for; a file that its task does not write has none."""

    folder: Path
    config: EvalConfig
    results: Mapping[str, Any]
    called: Mapping[str, str]
    """What the page calls each model: its label, with its name in the config where several share one."""

    def answers(self) -> list[dict[str, Any]]:
        return self._rows(ANSWERS)

    def verdicts(self) -> list[Verdict]:
        return [Verdict.from_dict(row) for row in self._rows(VERDICTS)]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if not (self.folder / name).exists():
            return []
        rows = []
        with (self.folder / name).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    place = f"{self.folder / name}:{number}"
                    raise UserError(f"{place}: damaged ({error}); evaluate into a new folder") from error
        return rows


def read_evaluation(folder: Path, results: Mapping[str, Any] | None = None) -> Evaluation:
    """`results` are those of an evaluation that is not marked complete yet; None: those that it was completed with.

    Raises:
      FolderError: the folder is not of a finished wizard eval.
    """
    told = read_complete(folder, stage="eval") if results is None else results
    config = load_config(EvalConfig, folder)
    # A label is operational: the config has the newest one
    labels = {name: getattr(config.models.get(name), "label", "") or name for name in told["models"]}
    times = Counter(labels.values())
    called = {name: label if times[label] == 1 else f"{label} ({name})" for name, label in labels.items()}
    return Evaluation(folder=folder, config=config, results=told, called=called)

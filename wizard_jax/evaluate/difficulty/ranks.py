"""Rank correlations of one measure of difficulty with another: plainly, within skills, and with length taken out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate
from wizard_jax.evaluate.statistics.rank import spearman

DRAWS = 2_000
"""Of one interval; there are some dozens, and each draw ranks all records anew."""

FEWEST = 10
"""Items below which no correlation is told."""


def told(estimate: Estimate, *, unit: str = "prompts") -> dict[str, Any]:
    """As results.json keeps it; `unit` is what was resampled."""
    return {**asdict(estimate), "method": estimate.method.replace("prompts", unit)}


def correlations(
    rows: Sequence[Mapping[str, Any]],
    *,
    measures: Sequence[str],
    labels: Sequence[str],
    within: Iterable[str] = (),
    without: Iterable[str] = (),
    prompts: str = "",
    unit: str = "prompts",
    seed: int,
) -> list[dict[str, Any]]:
    """Of each measure with each label: plainly; within each of the groups `within`; with each of `without` taken out;
    and within each group with each taken out. All are names of columns, as is `prompts`, whose values are resampled.

    Rows that have no value of a label (None) are left out there. Where the data do not determine a correlation, the
    entry says why instead.
    """
    within, without = list(within), list(without)
    found = []
    for label, measure in itertools.product(labels, measures):
        held = [row for row in rows if row.get(label) is not None and row.get(measure) is not None]
        if not held:
            continue
        for group, length in itertools.product(["", *within], ["", *without]):
            entry = {"measure": measure, "label": label, "within": group, "without": length, "items": len(held)}
            found.append({**entry, **_one(held, measure, label, group, length, prompts=prompts, unit=unit, seed=seed)})
    return found


def _one(
    rows: Sequence[Mapping[str, Any]],
    measure: str,
    label: str,
    within: str,
    without: str,
    *,
    prompts: str,
    unit: str,
    seed: int,
) -> dict[str, Any]:
    if len(rows) < FEWEST:
        return {"why": f"{len(rows)} items are too few: {FEWEST} are needed"}

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], np.float64)

    try:
        estimate = spearman(
            column(measure),
            column(label),
            bootstrap=Bootstrap(seed=seed, draws=DRAWS),
            within=[str(row[within]) for row in rows] if within else None,
            without=column(without) if without else None,
            prompts=[str(row[prompts]) for row in rows] if prompts else None,
        )
    except NoEstimate as error:
        return {"why": str(error)}
    return told(estimate, unit=unit)

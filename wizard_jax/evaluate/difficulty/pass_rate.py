"""Difficulty for a model: the share of its k answers to an item that a program finds right.

It is the only measure of difficulty here that neither a judge nor a likelihood stands behind; it needs items that can
be checked, and models that are neither too good nor too bad for them. A label that says what is hard (steps,
constraints, WizardLM's 1 to 10) is worth something where pass rates fall with it: the correlation is negative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from wizard_jax.evaluate.difficulty.ranks import DRAWS, correlations, told
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, NoEstimate, mean

MOST_LABELS = 12
"""Values of a label beyond which no table by label is told."""

Rows = Sequence[Mapping[str, Any]]


def pass_rates(rows: Rows, *, score: str) -> dict[str, float]:
    """By item, of the rows of one model: the mean of a score over its samples.

    A sample that brought no answer is left out, and an item with none that did, or that can not be scored.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if not row["problem"] and score in row["scores"] and row["weights"].get(score, 1):
            found[row["id"]].append(row["scores"][score])
    return {item: sum(values) / len(values) for item, values in found.items()}


def pass_rate_results(rows: Rows, *, seed: int) -> dict[str, Any]:
    """What results.json says of pass rates: of each model, beside the items' labels, and between models.

    The rate is that of the first score that the task names. Intervals resample items, each with all its samples. Empty
    where nothing was scored.
    """
    score = next((name for row in rows for name in row["scores"]), None)
    if score is None:
        return {}
    items = {row["id"]: row for row in rows}
    rates = {
        model: pass_rates([row for row in rows if row["model"] == model], score=score)
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    return {
        "pass_rates": {
            "score": score,
            "samples": 1 + max(row["sample"] for row in rows),
            "models": {model: _of_model(found, items, seed=seed) for model, found in rates.items()},
            "between_models": _between(rates, seed=seed),
        }
    }


def _of_model(rates: Mapping[str, float], items: Mapping[str, Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    table = [
        {
            "pass_rate": rate,
            "difficulty": items[item]["difficulty"],
            "skill": items[item]["skill"],
            "words": sum(len(turn.split()) for turn in items[item]["turns"]),
        }
        for item, rate in rates.items()
    ]
    labels = sorted({row["difficulty"] for row in table if row["difficulty"] is not None})
    return {
        "items": len(table),
        "left_out": len(items) - len(table),
        "never": sum(rate == 0 for rate in rates.values()),
        "always": sum(rate == 1 for rate in rates.values()),
        "by_difficulty": [
            {"difficulty": label, **_mean([row["pass_rate"] for row in table if row["difficulty"] == label], seed=seed)}
            for label in labels
            if len(labels) <= MOST_LABELS
        ],
        "correlations": correlations(
            table,
            measures=["pass_rate"],
            labels=["difficulty"],
            within=["skill"] if any(row["skill"] for row in table) else [],
            without=["words"],
            unit="items",
            seed=seed,
        ),
    }


def _between(rates: Mapping[str, Mapping[str, float]], *, seed: int) -> list[dict[str, Any]]:
    found = []
    for first, second in combinations(rates, 2):
        both = [
            {"of the one": rate, "of the other": rates[second][item]}
            for item, rate in rates[first].items()
            if item in rates[second]
        ]
        entries = correlations(both, measures=["of the one"], labels=["of the other"], unit="items", seed=seed)
        found += [
            {**entry, "models": [first, second], "measure": "pass_rate", "label": "pass_rate"} for entry in entries
        ]
    return found


def _mean(values: Sequence[float], *, seed: int) -> dict[str, Any]:
    try:
        return told(mean(values, bootstrap=Bootstrap(seed=seed, draws=DRAWS), bounds=(0.0, 1.0)), unit="items")
    except NoEstimate as error:
        return {"why": str(error)}

"""What rows of losses and IFD come to: by round, in rank, and between models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from wizard_jax.evaluate.difficulty.judged import JudgedDifficulty
from wizard_jax.evaluate.difficulty.ranks import DRAWS, correlations, told
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, NoEstimate, mean

Rows = Sequence[Mapping[str, Any]]

MEASURES = ("loss", "ifd_loss", "ifd_ppl", "ic_ifd")
_LENGTHS = ("instruction_tokens", "answer_tokens")


def of_rows(rows: Rows, *, judged: Mapping[str, JudgedDifficulty], seed: int) -> dict[str, Any]:
    """Of one model; intervals of correlations resample lineages, those of a round its records, one of each lineage."""
    labelled = [
        {
            **row,
            "judged_score": judged[row["id"]].score if row["id"] in judged else None,
            "judged_rank": judged[row["id"]].rank if row["id"] in judged else None,
            "steps": row["steps"] or None,
        }
        for row in rows
    ]
    means = {name: _mean([row[name] for row in rows], seed=seed) for name in (*MEASURES, "unhelped")}
    return {
        "rounds": rounds(rows, seed=seed),
        "correlations": correlations(
            labelled,
            measures=MEASURES,
            labels=("judged_score", "judged_rank", "steps"),
            within=("source", "operation"),
            without=_LENGTHS,
            prompts="lineage",
            unit="lineages",
            seed=seed,
        ),
        "measures": [
            {"name": name, "of": "records", **{key: found[key] for key in ("value", "low", "high", "n")}}
            for name, found in means.items()
            if "value" in found
        ],
    }


def rounds(rows: Rows, *, seed: int) -> list[dict[str, Any]]:
    """Of each round the means with their intervals, and the gains over the versions that were rewritten.

    Means of different rounds are of different lineages where candidates were dropped; gains are of pairs.
    """
    by_id = {row["id"]: row for row in rows}
    found = []
    for number in sorted({row["round"] for row in rows}):
        of_round = [row for row in rows if row["round"] == number]
        pairs = [(row, by_id[row["parent"]]) for row in of_round if row["parent"] in by_id]
        names = (*MEASURES, "unhelped", *_LENGTHS)
        found.append(
            {
                "round": number,
                "n": len(of_round),
                **{name: _mean([row[name] for row in of_round], seed=seed) for name in names},
                "gains": {
                    name: _mean([row[name] - parent[name] for row, parent in pairs], seed=seed) for name in MEASURES
                }
                if pairs
                else {},
            }
        )
    return found


def between_models(rows: Mapping[str, Rows], *, seed: int) -> list[dict[str, Any]]:
    """How far every two models agree on which records are hard, by each measure."""
    found = []
    for first, second in itertools.combinations(rows, 2):
        others = {row["id"]: row for row in rows[second]}
        both = [
            {"lineage": row["lineage"], **{f"{name} of {first}": row[name] for name in MEASURES}}
            | {f"{name} of {second}": others[row["id"]][name] for name in MEASURES}
            for row in rows[first]
            if row["id"] in others
        ]
        for name in MEASURES:
            found += [
                {"models": [first, second], **entry, "measure": name}
                for entry in correlations(
                    both,
                    measures=[f"{name} of {first}"],
                    labels=[f"{name} of {second}"],
                    prompts="lineage",
                    unit="lineages",
                    seed=seed,
                )
            ]
    return found


def _mean(values: Sequence[float], *, seed: int) -> dict[str, Any]:
    if not values:
        return {"why": "no records"}
    try:
        return told(mean(values, bootstrap=Bootstrap(seed=seed, draws=DRAWS)), unit="records")
    except NoEstimate as error:
        return {"why": str(error)}

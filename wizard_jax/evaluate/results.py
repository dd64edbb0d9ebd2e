"""What an evaluation leaves: a row for every answer, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from wizard_jax.evaluate.items import Answer, Item, Score
from wizard_jax.evaluate.statistics import wilson

ANSWERS = "answers.jsonl"
RESULTS = "results.json"


def answer_rows(
    items: Iterable[Item],
    answers: Mapping[str, Mapping[str, Answer]],
    *,
    score: Callable[[Item, Answer], Score] | None,
) -> list[dict[str, Any]]:
    """A row for each model and item, in their order; an answer that has a problem scores nothing."""
    rows = []
    known = list(items)
    for model, said in answers.items():
        for item in known:
            answer = said[item.id]
            found = score(item, answer) if score is not None and not answer.problem else None
            rows.append(
                {
                    "model": model,
                    "id": item.id,
                    "turns": list(item.turns),
                    "skill": item.skill,
                    "difficulty": item.difficulty,
                    "band": item.band,
                    "target": item.target,
                    "answers": list(answer.texts),
                    "finish_reasons": list(answer.finish_reasons),
                    "problem": answer.problem,
                    "extracted": "" if found is None else found.extracted,
                    "scores": {} if found is None else dict(found.values),
                }
            )
    return rows


def model_results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one model: how many items it answered, and its scores, in all and by band."""
    bands = dict.fromkeys(row["band"] for row in rows if row["band"])
    return {
        "answered": sum(not row["problem"] for row in rows),
        "not_answered": dict(Counter(row["problem"] for row in rows if row["problem"])),
        "cut": sum("length" in row["finish_reasons"] for row in rows),
        "scores": _shares(rows),
        "bands": {band: _shares([row for row in rows if row["band"] == band]) for band in bands},
    }


def _shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By the name of a score that is 0 or 1; an item that was not answered is none that was right."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: wilson(sum(row["scores"].get(name, 0.0) for row in rows), len(rows))._asdict() for name in names}


def score_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the models' scores with their 95 % intervals: its head, and a row for each model and score."""
    models = results["models"]
    bands = list(dict.fromkeys(band for told in models.values() for band in told["bands"]))
    rows = []
    for told in models.values():
        for name, whole in told["scores"].items():
            parts = [told["bands"].get(band, {}).get(name) for band in bands]
            rows.append((told["label"], name, *(_interval(part) for part in (whole, *parts))))
    return ("model", "score", "all items", *bands), rows


def _interval(found: Mapping[str, float] | None) -> str:
    return (
        ""
        if found is None
        else f"{found['share']:.2f} [{found['low']:.2f}, {found['high']:.2f}], n={found['trials']:.0f}"
    )

"""What an evaluation leaves: a row for every answer, and what they come to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_gen.measure.estimates import mean_of
from wizard_jax.evaluate.items import Answer, Item, Score
from wizard_jax.evaluate.statistics.shares import wilson

ANSWERS = "answers.jsonl"
RESULTS = "results.json"


def answer_rows(
    items: Iterable[Item],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    *,
    score: Callable[[Item, Answer], Score] | None,
) -> list[dict[str, Any]]:
    """A row for each model, item and sample, in their order; an answer that has a problem scores nothing."""
    rows = []
    known = list(items)
    for model, said in answers.items():
        for item, answer in ((one, answer) for one in known for answer in said[one.id]):
            found = score(item, answer) if score is not None and not answer.problem else None
            rows.append(
                {
                    "model": model,
                    "id": item.id,
                    "sample": answer.sample,
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
    """By the name of a score: its mean over items, and over the samples of each; one not answered is none right."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    return {name: _share(rows, name) for name in names}


def _share(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """With its 95 % interval: of a share (Wilson 1927), or resampling items, each with all its samples."""
    items: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        items[row["id"]].append(row["scores"].get(name, 0.0))
    if len(rows) == len(items):
        return wilson(sum(row["scores"].get(name, 0.0) for row in rows), len(rows))._asdict()
    means = [sum(of_item) / len(of_item) for of_item in items.values()]
    found = mean_of(means, seed=0)
    assert found is not None
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return {"successes": sum(means), "trials": len(means), "share": found.value, "low": low, "high": high}


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

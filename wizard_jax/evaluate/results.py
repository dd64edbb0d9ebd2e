"""What an evaluation leaves: a row for every answer, and what they come to."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from configs.errors import UserError
from wizard_jax.evaluate.items import Answer, Item, Score
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, divided, estimate
from wizard_jax.evaluate.statistics.shares import wilson

ANSWERS = "answers.jsonl"
RESULTS = "results.json"

Page: TypeAlias = Callable[[Path, Mapping[str, Any]], object]
"""Writes a page into the folder of an evaluation, about what results.json holds."""


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
                    "weights": dict(item.weights),
                }
            )
    return rows


def read_answers(folder: Path) -> tuple[list[Item], list[Answer]]:
    """What was asked and said in a finished evaluation; none for one that asked nothing.

    Raises UserError: a row that is damaged.
    """
    file = folder / ANSWERS
    items: dict[str, Item] = {}
    answers = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            items[row["id"]] = Item(
                id=row["id"],
                turns=tuple(row["turns"]),
                skill=row["skill"],
                difficulty=row["difficulty"],
                band=row["band"],
                target=row["target"],
            )
            answers.append(
                Answer(
                    item=row["id"],
                    model=row["model"],
                    texts=tuple(row["answers"]),
                    finish_reasons=tuple(row["finish_reasons"]),
                    problem=row["problem"],
                    sample=row["sample"],
                )
            )
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{file}:{number}: damaged ({error}); evaluate into a new folder") from error
    return list(items.values()), answers


def model_results(rows: Sequence[Mapping[str, Any]], *, scores: Iterable[str] | None = None) -> dict[str, Any]:
    """Of one model: how many items it answered, and its scores, in all and by band.

    `scores` are the names of those that any model has (`score_names`), so that one which answered nothing has them
    too; None: its own.
    """
    bands = sorted(dict.fromkeys(row["band"] for row in rows if row["band"]), key=_numbers)
    names = score_names(rows) if scores is None else tuple(scores)
    return {
        "answered": sum(not row["problem"] for row in rows),
        "not_answered": dict(Counter(row["problem"] for row in rows if row["problem"])),
        "cut": sum("length" in row["finish_reasons"] for row in rows),
        "not_scored": sum(0 in row["weights"].values() for row in rows),
        "scores": _shares(rows, names),
        "bands": {band: _shares([row for row in rows if row["band"] == band], names) for band in bands},
    }


def _numbers(band: str) -> list[int]:
    """By which "round 1" stands before "round 10"; bands without a number stay as they are."""
    return [int(number) for number in re.findall(r"\d+", band)]


def score_names(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of the scores in rows of answers, in their order."""
    return tuple(dict.fromkeys(name for row in rows for name in row["scores"]))


def _shares(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By the name of a score: its mean over items, and over the samples of each; one not answered is none right."""
    weighed = {name: [row for row in rows if row["weights"].get(name, 1)] for name in names}
    return {name: _share(those, name) for name, those in weighed.items() if those}


def _share(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """With its 95 % interval: that of a share where every score is 0 or 1 (Wilson 1927), else by resampling items.

    An item is drawn with all its samples; where it counts for several parts, it is drawn with all of them.
    """
    items: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        items[row["id"]].append(row["scores"].get(name, 0.0))
    weights = {row["id"]: float(row["weights"].get(name, 1)) for row in rows}
    means = {item: sum(scores) / len(scores) for item, scores in items.items()}
    if set(means.values()) <= {0.0, 1.0} and set(weights.values()) == {1.0} and len(rows) == len(items):
        return wilson(int(sum(means.values())), len(means))._asdict()
    sums = np.array([(weights[item] * mean, weights[item]) for item, mean in means.items()])
    found = estimate(
        lambda drawn: divided(*(drawn @ sums).T), n=len(sums), bootstrap=Bootstrap(seed=0, draws=2_000), bounds=(0, 1)
    )
    told = {"trials": found.n, "share": found.value, "low": found.low, "high": found.high, "interval": found.method}
    parts = {"parts": int(sums[:, 1].sum())} if set(weights.values()) != {1.0} else {}
    return {"successes": float(sums[:, 0].sum()), **told, **parts}


def score_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the models' scores with their 95 % intervals: its head, and a row for each model and score."""
    models = {name: told for name, told in results["models"].items() if "scores" in told}
    bands = list(dict.fromkeys(band for told in models.values() for band in told["bands"]))
    rows = []
    for told in models.values():
        for name, whole in told["scores"].items():
            parts = [told["bands"].get(band, {}).get(name) for band in bands]
            rows.append((told["label"], name, *(_interval(part) for part in (whole, *parts))))
    return ("model", "score", "all items", *bands), rows


def unanswered_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the answers that did not come: its head, and a row for each model and reason."""
    rows: list[tuple[str, ...]] = [
        (told["label"], f"{count:,} of {told['answered'] + sum(told['not_answered'].values()):,}", why)
        for told in results["models"].values()
        for why, count in told.get("not_answered", {}).items()
    ]
    return ("model", "not answered", "why"), rows


def measure_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of what was measured of the models themselves: its head, and a row for each model and measure."""
    rows: list[tuple[str, ...]] = []
    for told in results["models"].values():
        for one in told.get("measures", ()):
            interval = "" if one["low"] is None else f" [{one['low']:.4g}, {one['high']:.4g}]"
            rows.append((told["label"], one["name"], f"{one['value']:.4g}{interval}", f"{one['n']:,} {one['of']}"))
    return ("model", "measure", "value, 95 % interval", "n"), rows


def _interval(found: Mapping[str, float] | None) -> str:
    return (
        ""
        if found is None
        else f"{found['share']:.2f} [{found['low']:.2f}, {found['high']:.2f}], n={found['trials']:.0f}"
    )

"""The page of an evolved data set: how many, by which operation, what was dropped and why, and a few lineages."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from configs.folder import write_atomically
from data_gen import shards
from data_gen.page import Html, bar, element, page, table
from data_gen.records import Record

LINEAGES_SHOWN = 12
REJECTED_SHOWN = 12


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `folder`/report.html for a finished data set in `folder`/dataset."""
    rounds: Counter[int] = Counter()
    operations: Counter[tuple[int, str]] = Counter()
    steps: defaultdict[int, Counter[int]] = defaultdict(Counter)
    words: Counter[int] = Counter()
    models: Counter[str] = Counter()
    lineages: dict[str, list[Record]] = {}
    for record in shards.read_dataset(folder / "dataset"):
        rounds[record.round] += 1
        operations[record.round, record.operation] += 1
        steps[record.round][record.steps] += 1
        words[record.round] += len(record.instruction.split())
        models[record.model or "the seed file"] += 1
        if record.lineage in lineages or len(lineages) < LINEAGES_SHOWN:
            lineages.setdefault(record.lineage, []).append(record)
    with (folder / "rejected.jsonl").open(encoding="utf-8") as lines:
        rejected = [json.loads(line) for line in lines]
    target = folder / "report.html"
    text = page(
        "Evolved instructions",
        element("p", f"{sum(rounds.values()):,} conversations; answers by ", ", ".join(sorted(models)), "."),
        *([_SIMULATION] if any("simulated" in model for model in models) else []),
        element("h2", "Rounds"),
        _rounds(rounds, words, steps, rejected),
        element("h2", "Operations"),
        _operations(operations, rejected),
        element("h2", "Eliminated, by rule"),
        _rules(rejected),
        element("h2", "The run"),
        table(("", ""), [(key.replace("_", " "), _flat(value)) for key, value in summary.items()]),
        element("h2", f"The first {len(lineages)} lineages"),
        *(_lineage(records) for records in lineages.values()),
        element("h2", "Some of what was dropped"),
        table(
            ("lineage", "round", "operation", "rule", "what the rule saw"),
            [
                (row["lineage"], row["round"], row["operation"], row["rule"], element("pre", row["evidence"]))
                for row in islice(rejected, REJECTED_SHOWN)
            ],
        ),
    )
    write_atomically(target, text)
    return target


_SIMULATION = element(
    "p",
    "The model behind this data is a simulation. It shows that the pipeline works, and says nothing about what a "
    "hosted model would write.",
    css="note",
)


def _rounds(
    rounds: Counter[int],
    words: Counter[int],
    steps: Mapping[int, Counter[int]],
    rejected: list[dict[str, Any]],
) -> Html:
    dropped = Counter(row["round"] for row in rejected)
    rows = []
    for number in sorted(rounds | dropped):
        kept = rounds[number]
        counted = steps.get(number, Counter())
        known = sum(count for step, count in counted.items() if step)
        mean = sum(step * count for step, count in counted.items()) / known if known else 0.0
        rows.append(
            (
                number,
                f"{kept:,}",
                f"{dropped[number]:,}",
                bar(dropped[number] / max(kept + dropped[number], 1)),
                f"{words[number] / max(kept, 1):.1f}",
                f"{mean:.2f}" if known else "",
            )
        )
    return table(("round", "kept", "dropped", "share dropped", "words per instruction", "steps per task"), rows)


def _operations(kept: Counter[tuple[int, str]], rejected: list[dict[str, Any]]) -> Html:
    dropped = Counter((row["round"], row["operation"]) for row in rejected)
    names = sorted({name for _, name in kept | dropped if name})
    rows = []
    for name in names:
        good = sum(count for (_, operation), count in kept.items() if operation == name)
        bad = sum(count for (_, operation), count in dropped.items() if operation == name)
        rows.append((name, f"{good:,}", f"{bad:,}", bar(good / max(good + bad, 1))))
    return table(("operation", "kept", "dropped", "share kept"), rows)


def _rules(rejected: list[dict[str, Any]]) -> Html:
    rules = Counter(row["rule"] for row in rejected)
    if not rules:
        return element("p", "Nothing was eliminated.")
    return table(("rule", "candidates"), [(rule, f"{count:,}") for rule, count in rules.most_common()])


def _lineage(records: list[Record]) -> Html:
    rows = [
        (
            record.round,
            record.operation or "seed",
            record.depth,
            element("pre", record.instruction),
            element("pre", record.answer),
        )
        for record in sorted(records, key=lambda record: record.round)
    ]
    return table(("round", "operation", "depth", "instruction", "answer"), rows)


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(part) for part in value)
    return f"{value:,}" if isinstance(value, int) else str(value)

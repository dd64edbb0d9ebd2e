"""The page of an evolved data set: how many, by which operation, what was dropped and why, and a few lineages."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs.folder import write_atomically
from data_gen import shards
from data_gen.llm import simulated
from data_gen.operations import OPERATIONS
from data_gen.page import Content, Html, bar, element, page, table
from data_gen.records import Record

LINEAGES_SHOWN = 12
REJECTED_SHOWN = 12

RULES = MappingProxyType(
    {
        "no_gain": "the rewritten instruction was judged equal to the one before",
        "refusal": "the answer says sorry, in few words",
        "empty_answer": "the answer holds only punctuation and stop words",
        "copied_prompt": "the rewritten instruction copies words of the rewriting prompt",
        "empty_instruction": "the rewrite came back empty",
        "truncated": "the reply was cut off at max_tokens",
        "unreadable_reply": "the provider's reply held no text, or no verdict where one was asked for",
        "refused_request": "the provider refused or withheld this reply for good",
        "gave_up": "no reply after the allowed number of attempts, or a refusal that does not say what it refuses",
    }
)
"""The first four are the published rules of elimination; the others are candidates that never were."""

_TABLES_OF_THEIR_OWN = ("by_round", "by_operation", "by_rule")


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
        *([_SIMULATION] if simulated.NAME in models else []),
        element("h2", "Rounds"),
        _rounds(rounds, words, steps, rejected),
        element("h2", "Operations"),
        _operations(operations, rejected),
        element("h2", "Dropped, by rule"),
        _rules(rejected),
        element("h2", "The run"),
        table(
            ("counted", "in this run"),
            [
                (key.replace("_", " "), _flat(value))
                for key, value in summary.items()
                if key not in _TABLES_OF_THEIR_OWN
            ],
        ),
        element("h2", f"The first {len(lineages)} lineages"),
        *(_lineage(name, records, rejected) for name, records in lineages.items()),
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
    steps: defaultdict[int, Counter[int]],
    rejected: list[dict[str, Any]],
) -> Html:
    dropped = Counter(row["round"] for row in rejected)
    # Only tasks of the simulated world have a number of steps.
    has_steps = any(step for counted in steps.values() for step in counted)
    rows = []
    for number in sorted(rounds | dropped):
        kept = rounds[number]
        row: list[Content] = [
            number,
            f"{kept:,}",
            f"{dropped[number]:,}",
            bar(dropped[number] / max(kept + dropped[number], 1)),
            f"{words[number] / max(kept, 1):.1f}",
        ]
        if has_steps:
            counted = Counter({step: count for step, count in steps[number].items() if step})
            known = counted.total()
            row.append(f"{sum(step * count for step, count in counted.items()) / known:.2f}" if known else "")
        rows.append(row)
    head = ["round", "kept", "dropped", "share dropped", "words per instruction"]
    return table([*head, "steps per task"] if has_steps else head, rows)


def _operations(kept: Counter[tuple[int, str]], rejected: list[dict[str, Any]]) -> Html:
    dropped = Counter((row["round"], row["operation"]) for row in rejected)
    names = sorted({name for _, name in kept | dropped if name}, key=_order)
    rows = []
    for name in names:
        good = sum(count for (_, operation), count in kept.items() if operation == name)
        bad = sum(count for (_, operation), count in dropped.items() if operation == name)
        rows.append((name, f"{good:,}", f"{bad:,}", bar(good / max(good + bad, 1))))
    return table(("operation", "kept", "dropped", "share kept"), rows)


def _order(operation: str) -> tuple[int, str]:
    known = list(OPERATIONS)
    return (known.index(operation) if operation in known else len(known), operation)


def _rules(rejected: list[dict[str, Any]]) -> Html:
    rules = Counter(row["rule"] for row in rejected)
    if not rules:
        return element("p", "Nothing was eliminated.")
    rows = [(rule, f"{count:,}", RULES.get(rule, "")) for rule, count in rules.most_common()]
    return table(("rule", "candidates", "what it means"), rows)


def _lineage(name: str, records: list[Record], rejected: list[dict[str, Any]]) -> Html:
    """Round by round: what was kept, and of what was dropped the candidate and the reason."""
    rows: dict[int, tuple[Content, ...]] = {
        record.round: (
            record.round,
            record.operation or "seed",
            record.depth,
            element("pre", record.instruction),
            element("pre", record.answer),
        )
        for record in records
    }
    for row in rejected:
        if row["lineage"] == name:
            reason = element("p", f"{row['rule']}: {row['evidence']}", css="note")
            rows[row["round"]] = (
                row["round"],
                row["operation"] or "seed",
                "dropped",
                element("pre", row["instruction"]),
                reason,
            )
    head = ("round", "operation", "depth", "instruction", "answer")
    return element("div", element("h3", f"Lineage {name}"), table(head, [rows[number] for number in sorted(rows)]))


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(part) for part in value)
    return f"{value:,}" if isinstance(value, int) else str(value)

"""The page of a data set says what is in the shards."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from page_reader import PageReader

from data_gen.records import Record, Turn
from data_gen.report import LINEAGES_SHOWN, REJECTED_SHOWN, write_report
from data_gen.shards import read_dataset, write_dataset
from wizard_jax.cli import main

SETTINGS = ["seeds.count=30", "rounds=3", "llm.faults.refusal=0.1", "llm.faults.empty=0.1", "llm.faults.unchanged=0.1"]


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "evolved"
    assert main(["evolve", "configs/evolve/quickstart.gin", *SETTINGS, "--out", str(out)]) == 0
    return out


def test_every_number_is_that_of_the_shards(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    records = list(read_dataset(evolved))
    rejected = [json.loads(line) for line in (evolved / "rejected.jsonl").read_text().splitlines()]
    assert f"{len(records):,} conversations" in page.text

    by_round = defaultdict(list)
    for record in records:
        by_round[record.round].append(record)
    head, *lines = page.tables[0]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [int(row["round"]) for row in rows] == [0, 1, 2, 3]
    for row in rows:
        here = by_round[int(row["round"])]
        dropped = sum(one["round"] == int(row["round"]) for one in rejected)
        words = sum(len(record.instruction.split()) for record in here)
        steps = [record.steps for record in here]
        assert (int(row["kept"]), int(row["dropped"])) == (len(here), dropped)
        assert row["share dropped"].strip() == f"{dropped / (len(here) + dropped):.1%}"
        assert float(row["words per instruction"]) == pytest.approx(words / len(here), abs=0.051)
        assert float(row["steps per task"]) == pytest.approx(sum(steps) / len(steps), abs=0.0051)

    kept = Counter(record.operation for record in records if record.operation)
    lost = Counter(one["operation"] for one in rejected if one["operation"])
    told = {row["operation"]: (int(row["kept"]), int(row["dropped"])) for row in page.table("operation")}
    assert told == {name: (kept[name], lost[name]) for name in kept | lost}
    rules = {row["rule"]: int(row["candidates"]) for row in page.table("rule")}
    assert rules == Counter(one["rule"] for one in rejected)


def test_it_shows_lineages_and_what_was_dropped(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    records = list(read_dataset(evolved))
    first = list(dict.fromkeys(record.lineage for record in records))[:LINEAGES_SHOWN]
    for record in records:
        if record.lineage in first:
            assert record.instruction in page.text
            assert record.answer in page.text
    rejected = [json.loads(line) for line in (evolved / "rejected.jsonl").read_text().splitlines()]
    shown = page.table("lineage")
    assert [row["what the rule saw"] for row in shown] == [one["evidence"] for one in rejected[:REJECTED_SHOWN]]


def test_it_says_that_the_model_is_a_simulation(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    assert "simulated-llm" in page.text
    assert "is a simulation" in page.text


@pytest.mark.parametrize(("model", "is_said"), [("simulated-llm", True), ("unsimulated-7b", False)])
def test_only_the_simulated_model_is_called_a_simulation(model: str, is_said: bool, tmp_path: Path) -> None:
    record = Record(
        id="0/0", lineage="0", turns=(Turn("user", "Why?"), Turn("assistant", "So.")), source="s", model=model
    )
    write_dataset([record], tmp_path / "dataset", name="one", count=1, records_per_shard=1, description="")
    (tmp_path / "rejected.jsonl").touch()
    assert ("is a simulation" in PageReader(write_report(tmp_path, {})).text) is is_said


def test_the_page_is_there_before_the_folder_is_finished_and_not_touched_after(evolved: Path) -> None:
    page, finished = (evolved / name for name in ("report.html", "complete.json"))
    assert page.stat().st_mtime_ns <= finished.stat().st_mtime_ns
    before = {file.name: file.stat().st_mtime_ns for file in evolved.iterdir()}
    assert main(["evolve", "configs/evolve/quickstart.gin", *SETTINGS, "--out", str(evolved)]) == 0
    changed = {file.name for file in evolved.iterdir() if before.get(file.name) != file.stat().st_mtime_ns}
    assert changed <= {".lock"}

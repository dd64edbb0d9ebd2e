"""The page of a data set says what is in the shards, in the rejected rows, and in the journal."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from page_reader import PageReader
from test_generate import quiet

from data_gen.answer import answer
from data_gen.beam.pipeline import evolve_on_beam
from data_gen.config import AnswerConfig, EvolveConfig, Measure, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage
from data_gen.figures import MEANINGS, Figure, read_figure, said
from data_gen.llm import journal_file
from data_gen.llm.chat import Spent
from data_gen.llm.pricing import dollars
from data_gen.operations import OPERATIONS
from data_gen.records import Record, Rejected, Turn
from data_gen.report import CELLS_SHOWN, LINEAGES_SHOWN, SOURCES_SHOWN, write_report
from data_gen.report_counts import Distinct, count, read_rejected
from data_gen.report_lineages import MOST_CHARACTERS
from data_gen.shards import read_dataset, write_dataset
from wizard_jax.cli import main

SETTINGS = ["seeds.count=90", "rounds=3", "llm.faults.refusal=0.1", "llm.faults.empty=0.1", "llm.faults.unchanged=0.1"]


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "evolved"
    assert main(["evolve", "configs/evolve/quickstart.gin", *SETTINGS, "--out", str(out)]) == 0
    return out


def example(lineage: str, round_: int = 0, instruction: str = "Why?", answer: str = "So.", **told: object) -> Record:
    turns = (Turn("user", instruction), Turn("assistant", answer))
    parent = f"{lineage}/{round_ - 1}" if round_ else ""
    operation = "deepening" if round_ else ""
    record = Record(f"{lineage}/{round_}", lineage, turns, parent, round=round_, operation=operation, source="s.json")
    return replace(record, **told)


def report(folder: Path, records: list[Record], rejected: list[Rejected] = [], **told: object) -> PageReader:  # noqa: B006
    size = {"count": len(records), "records_per_shard": len(records)}
    write_dataset(records, folder / "dataset", name="one", description="", **size)
    (folder / "rejected.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rejected))
    return PageReader(write_report(folder, **{"summary": {}, **told}))


def test_every_number_is_that_of_the_shards(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    records = list(read_dataset(evolved))
    rejected = [json.loads(line) for line in (evolved / "rejected.jsonl").read_text().splitlines()]
    assert f"{len(records):,} conversations" in page.text

    by_round = defaultdict(list)
    for record in records:
        by_round[record.round].append(record)
    rows = page.table("round")
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
        if int(row["round"]):
            added = [record.words_added for record in here]
            assert float(row["words added"]) == pytest.approx(sum(added) / len(added), abs=0.051)
            deep = [record.words_added for record in here if OPERATIONS[record.operation].kind == "depth"]
            share = f"{sum(10 <= number <= 20 for number in deep) / len(deep):.1%}"
            assert row["in depth: added 10 to 20"] == share

    kept = Counter(record.operation for record in records if record.operation)
    lost = Counter(one["operation"] for one in rejected if one["operation"])
    told = {row["operation"]: (int(row["kept"]), int(row["dropped"])) for row in page.tables_of("operation")[0]}
    assert told == {name: (kept[name], lost[name]) for name in kept | lost}
    rules = {row["rule"]: int(row["candidates"]) for row in page.table("rule")}
    assert rules == Counter(one["rule"] for one in rejected)


def test_the_rate_of_every_rule_is_told_by_operation_round_and_source(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    kept = Counter((r.operation or "seed", str(r.round), r.source) for r in read_dataset(evolved))
    lost: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for line in (evolved / "rejected.jsonl").read_text().splitlines():
        row = json.loads(line)
        lost[row["operation"] or "seed", str(row["round"]), row["source"]][row["rule"]] += 1
    cells = page.tables_of("operation")[1]
    assert {(row["operation"], row["round"], row["source"]) for row in cells} == {*kept, *lost}
    for row in cells:
        cell = row["operation"], row["round"], row["source"]
        total = kept[cell] + lost[cell].total()
        assert int(row["candidates"]) == total
        for rule in {rule for counted in lost.values() for rule in counted}:
            number = lost[cell][rule]
            assert row[rule.replace("_", " ")] == (f"{number / total:.1%} ({number})" if number else "0")
    for heading, place in (("of operation", 0), ("in round", 1), ("from source", 2)):
        for row in page.table(heading):
            refused = sum(counted["refusal"] for cell, counted in lost.items() if cell[place] == row[heading])
            assert row["refusal"].endswith(f"({refused})") or (row["refusal"], refused) == ("0", 0)


def test_lineages_are_chosen_by_the_hash_of_their_ids_and_shown_whole(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    lineages = defaultdict(list)
    for record in read_dataset(evolved):
        lineages[record.lineage].append(record)
    rejected = list(read_rejected(evolved / "rejected.jsonl"))
    everyone = {*lineages, *(row.lineage for row in rejected)}
    assert len(everyone) == 90
    chosen = sorted(everyone, key=lambda name: hashlib.sha256(name.encode()).digest()[:8])[:LINEAGES_SHOWN]
    text = " ".join(page.text.split())
    assert re.findall(r"Lineage (\d+)", page.text) == sorted(chosen)
    for name in chosen:
        for record in lineages[name]:
            assert " ".join(record.answer.split()) in text
    for row in rejected:
        if row.lineage in chosen:
            assert " ".join(row.evidence.split()) in text


def test_the_sample_does_not_depend_on_the_order_of_the_records() -> None:
    records = [example(str(number), round_) for number in range(200) for round_ in range(3)]
    dropped = [Rejected(str(number), 3, "deepening", "no_gain", "", "") for number in range(150, 250)]
    forth = count(records, dropped, sampled=20).sample
    back = count(records[::-1], dropped[::-1], sampled=20).sample
    assert len(forth) == 20
    assert {one.records for one in forth} == {one.records[::-1] for one in back}
    assert [one.rejected for one in forth] == [one.rejected for one in back]
    assert len(count(records[:6], dropped[:0], sampled=20).sample) == 2
    assert count(records, [], sampled=0).sample == ()


def test_counting_holds_the_sample_and_not_the_data_set() -> None:
    def records() -> object:
        for number in range(20_000):  # 100 MB in all
            yield example(str(number), answer="x" * 5_000)

    def rejected() -> object:
        for number in range(20_000):
            yield Rejected(str(number), 1, "deepening", "no_gain", "y" * 1_000, "z" * 1_000)

    tracemalloc.start()
    counts = count(records(), rejected(), sampled=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (counts.lineages, len(counts.sample)) == (20_000, 50)
    assert peak < 3_000_000


def test_lineages_are_counted_once_each_in_any_order() -> None:
    lineages = Distinct()
    for number in random.Random(0).choices(range(20_000), k=40_000):
        lineages.add(str(number))
    assert lineages.count() == len(set(random.Random(0).choices(range(20_000), k=40_000)))
    records = [example(str(number), round_) for round_ in range(3) for number in range(50)]
    assert count(records, [], sampled=3).lineages == 50


def test_lineages_of_a_shuffled_data_set_are_counted_once_each(tmp_path: Path) -> None:
    config = EvolveConfig(
        seeds=SimulatedSeeds(count=20), llm=Simulated(), rounds=2, measure=Measure(diversity_sample=0)
    )
    out = tmp_path / "out"
    evolve_on_beam(config, out, work=tmp_path / "work", shards=2, order="shuffled", progress=quiet, say=print)
    names = [record.lineage for record in read_dataset(out)]
    assert names != sorted(names)
    assert len(set(names)) == 20
    assert "20 lineages" in PageReader(out / "report.html").text
    answered = answer(AnswerConfig(dataset=str(out), llm=Simulated()), tmp_path / "brief", progress=quiet)
    assert answered["seeds"] == 20


def test_what_a_step_changed_is_marked(tmp_path: Path) -> None:
    records = [
        example("7", instruction="Name three fruits."),
        example("7", 1, instruction="Name three red fruits, sorted.", words_added=2),
    ]
    page = report(tmp_path, records, [Rejected("7", 2, "in_breadth", "no_gain", "'equal'", "Name three red ones.")])
    markup = (tmp_path / "report.html").read_text()
    assert "<ins>red fruits, sorted.</ins>" in markup
    assert "<del>fruits.</del>" in markup
    assert "+2 words" in page.text
    assert "dropped: no_gain" in page.text
    assert "<del>fruits, sorted.</del><ins>ones.</ins>" in markup  # compared with what it was rewritten from
    assert 'data-operation="in_breadth" data-verdict="no_gain" data-round="2"' in markup


def test_costs_and_measures_are_shown_where_they_are_known(tmp_path: Path) -> None:
    records = [example("1"), example("1", 1, instruction="Why is that so?", model="m-1", evolver="e-2")]
    spent = {(0, "answer"): Spent(1, 100, 50, 0.25), (1, "evolve"): Spent(1, 300, 60, 0.5)}
    measures = {
        "difficulty": {
            "rounds": [
                {"round": 0, "score": [3.0, 2.5, 3.5, 40]},
                {"round": 1, "score": {"value": 5.48, "low": 5, "high": 6}},
            ],
            "agreement": 0.8125,
            "problems": {"score": 0, "rank": 2},
        },
        "diversity": {
            "rounds": [{"round": 0, "measures": {"entropy": 2.5}, "equal": {"texts": 9}}],
            "by_file": [{"file": "a.jsonl", "items": 7}],
        },
        "duplicates": {"pairs": 12},
    }
    page = report(tmp_path, records, spent=spent, costs=lambda name: {1: Spent(1, 1, 1, 0.125)}, measures=measures)  # noqa: ARG005
    assert "$0.75" in page.text
    assert "3.0 → 5.5difficulty of 10, rounds 0 and 1" in page.text
    assert {row["for"]: row["paid"] for row in page.table("for")} == {"answer": "$0.25", "evolve": "$0.50"}
    assert {row["paid in round"]: row["paid"] for row in page.table("paid in round")} == {
        "0": "$0.25",
        "1": "$0.50",
    }
    assert re.search(rf"2 kept, 0 dropped, {re.escape(dollars(0.125))}(?!\d)", page.text)
    assert "answers by m-1, the seed file; rewritten by e-2" in page.text
    difficulty, diversity = page.tables_of("measure")
    assert diversity == [
        {"measure": "entropy", "round 0": "2.5"},
        {"measure": "equal texts", "round 0": "9"},
    ]
    assert page.table("file") == [{"file": "a.jsonl", "items": "7"}]
    (row,) = difficulty
    assert row == {"measure": "score", "round 0": "3 [2.5, 3.5]", "round 1": "5.48 [5, 6]"}
    assert [(r["measured"], r["value"]) for table in page.tables_of("measured") for r in table] == [
        ("agreement", "0.812"),
        ("problems, score", "0"),
        ("problems, rank", "2"),
        ("pairs", "12"),
    ]
    assert ["score", "difficulty from 1 to 10, each instruction judged by itself"] in [
        list(row.values()) for table in page.tables_of("figure") for row in table
    ]
    plain = report(tmp_path, records)
    assert "$" not in plain.text
    assert "Measures" not in plain.text


def test_only_figures_that_say_what_was_found_and_change_are_drawn(tmp_path: Path) -> None:
    rounds = [{"round": n, "words": 9 + n, "share": 0, "vendi": 3.5 + n, "new_one": n} for n in range(2)]
    report(tmp_path, [example("1")], measures={"diversity": {"rounds": rounds}})
    markup = (tmp_path / "report.html").read_text(encoding="utf-8")
    captions = re.findall("<figcaption>(.*?)</figcaption>", markup)
    assert [caption for caption in captions if "andidates" not in caption] == [MEANINGS["vendi"], "New one by round"]


def test_words_of_scripts_without_spaces_are_counted(tmp_path: Path) -> None:
    page = report(tmp_path, [example("1", instruction="请写一首诗，八行。")])
    assert page.table("round")[0]["words per instruction"] == "4.0"


@pytest.mark.parametrize(
    ("value", "figure"),
    [
        (3, Figure(3, None, None)),
        ([1.5, 1, 2, 9], Figure(1.5, 1, 2)),
        ([1.5, None, None, 1], Figure(1.5, None, None)),
        ({"value": 1, "low": 0.5, "high": 2}, Figure(1, 0.5, 2)),
        (None, None),
        (True, None),
        ("3", None),
        ([1, 2], None),
        ({"value": None}, None),
    ],
)
def test_figures_are_read_from_json(value: object, figure: Figure | None) -> None:
    assert read_figure(value) == figure


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (1319, "1,319"), (0.12345, "0.123"), ([1234.5, 1180, 1290, 9], "1,234 [1,180, 1,290]"), (None, "")],
)
def test_figures_are_told_in_three_places_and_whole_from_a_thousand(value: object, text: str) -> None:
    assert said(value) == text


def test_long_texts_and_many_sources_leave_a_page_of_reasonable_size(tmp_path: Path) -> None:
    long = "<&\"'" * 20_000
    records = [
        example(str(number), round_, instruction=f"{round_} {long}", answer=long, source=f"file {number}")
        for number in range(CELLS_SHOWN)
        for round_ in range(5)
    ]
    dropped = Rejected("0", 5, "deepening", "refusal", long, long, long, "file 0")
    page = report(tmp_path, records, [dropped])
    size = (tmp_path / "report.html").stat().st_size
    assert size < 3_000_000
    assert "more characters]" in page.text
    assert long[: MOST_CHARACTERS - 10] in page.text
    assert "would have made the page too large" in page.text
    assert len(page.table("from source")) == SOURCES_SHOWN
    assert f"{5 * CELLS_SHOWN + 1:,} cells, the first {CELLS_SHOWN} shown" in page.text


def test_it_says_that_the_model_is_a_simulation(evolved: Path) -> None:
    page = PageReader(evolved / "report.html")
    assert "simulated-llm" in page.text
    assert "is a simulation" in page.text


@pytest.mark.parametrize(("model", "is_said"), [("simulated-llm", True), ("unsimulated-7b", False)])
def test_only_the_simulated_model_is_called_a_simulation(model: str, is_said: bool, tmp_path: Path) -> None:
    assert ("is a simulation" in report(tmp_path, [example("0", model=model)]).text) is is_said


def test_what_the_journal_says_was_paid_is_what_the_page_says(evolved: Path) -> None:
    db = journal_file.read_only(evolved / "journal.sqlite")
    paid = journal_file.spent_by_purpose(db)
    page = PageReader(evolved / "report.html")
    told = {row["for"]: int(row["replies"].replace(",", "")) for row in page.table("for")}
    assert told == {
        name: sum(spent.calls for (_, purpose), spent in paid.items() if purpose == name)
        for name in {purpose for _, purpose in paid}
    }


def test_the_page_is_there_before_the_folder_is_finished_and_not_touched_after(evolved: Path) -> None:
    page, finished = (evolved / name for name in ("report.html", "complete.json"))
    assert page.stat().st_mtime_ns <= finished.stat().st_mtime_ns
    before = {file.name: file.stat().st_mtime_ns for file in evolved.iterdir()}
    assert main(["evolve", "configs/evolve/quickstart.gin", *SETTINGS, "--out", str(evolved)]) == 0
    changed = {file.name for file in evolved.iterdir() if before.get(file.name) != file.stat().st_mtime_ns}
    assert changed <= {".lock"}


def test_a_lineage_without_a_record_is_shown_too() -> None:
    dropped = Rejected("5", 0, "", "refusal", "sorry", "Why?")
    assert count([example("4")], [dropped], sampled=5).sample == (Lineage((example("4"),), ()), Lineage((), (dropped,)))

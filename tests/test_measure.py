"""What is measured of a run's records, put together: checks, samples and the figures by round."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_gen.config import Measure
from data_gen.figures import MEANINGS, figures_of
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.measure.asking import Judge
from data_gen.measure.contamination import recognise_verdict
from data_gen.measure.difficulty import format_ranking, recognise_ranking, recognise_score
from data_gen.measure.measure import (
    Check,
    MeasureError,
    Measures,
    asks_judge,
    check_measure,
    per_round,
    sample_instructions,
    sample_lineages,
)
from data_gen.records import Record, Turn

ITEM = "A farmer has 17 sheep and sells 9 of them at the market for 40 dollars each. How much money does he get?"
REWORDED = "There are 17 sheep on a farm. The farmer sells 9 sheep at 40 dollars each on the market. What does he get?"
SUBJECTS = [f"subject{number}" for number in range(500)]


class CountingWords:
    """Scores by the number of words, and finds everything that speaks of sheep the same."""

    def __init__(self) -> None:
        self.purposes: list[str] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.purposes.append(request.key.purpose)
        prompt = request.messages[-1].content
        if (texts := recognise_verdict(prompt)) is not None:
            text = "Same" if "sheep" in texts[0] else "Different"
        elif (instruction := recognise_score(prompt)) is not None:
            text = str(min(10, len(instruction.split()) // 4))
        else:
            versions = recognise_ranking(prompt)
            assert versions is not None
            text = format_ranking([min(10, len(version.split()) / 4) for version in versions])
        return ChatReply(text=text, finish_reason="stop", model="fake")


def record(lineage: str, round_: int, text: str) -> Record:
    return Record(
        id=f"{lineage}/{round_}",
        lineage=lineage,
        turns=(Turn("user", text), Turn("assistant", "Yes.")),
        parent=f"{lineage}/{round_ - 1}" if round_ else "",
        round=round_,
    )


def run_of(count: int, rounds: int = 3) -> list[Record]:
    """Lineages that grow by five words a round."""
    rng = random.Random(0)
    records = []
    for number in range(count):
        words = rng.choices(SUBJECTS, k=8)
        for round_ in range(rounds):
            records.append(record(f"s{number}", round_, " ".join(words)))
            words += rng.choices(SUBJECTS, k=5)
    return records


def measured(
    records: Sequence[Record], config: Measure, model: CountingWords | None = None, *, seed: int = 0
) -> Measures:
    judge = Judge(model=model, name="fake", seed=seed) if model else None
    return asyncio.run(per_round(lambda: iter(records), config=config, seed=seed, judge=judge))


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    others = ("How many days are in 6 weeks?", "What is the sum of 12 and 30?", "Name the largest city of Spain.")
    file.write_text("".join(json.dumps({"question": item}) + "\n" for item in (ITEM, *others)))
    return file


def test_everything_at_once(test_file: Path) -> None:
    records = [*run_of(60), record("x", 0, ITEM), record("y", 1, REWORDED), record("z", 2, records_of_first(60))]
    config = Measure(
        difficulty_lineages=25, diversity_sample=40, contamination_files=(str(test_file),), contamination="drop"
    )
    model = CountingWords()
    found = measured(records, config, model)
    assert dict(found.records) == {0: 61, 1: 61, 2: 61}
    checks = found.checks
    assert set(checks) == {"x/0", "y/1", "z/2"}
    assert checks["x/0"] == (
        Check("contaminated", "drop", "like item 1 of test.jsonl: 1.00 of its runs of words repeated"),
    )
    assert checks["y/1"][0].evidence.endswith("similar")
    assert checks["z/2"] == (Check("duplicate", "flag", "like s0/0: 1.00 of their runs of words are the same"),)
    assert found.difficulty is not None
    assert found.difficulty.lineages == 25
    assert set(model.purposes) == {"difficulty", "rank"}
    told = found.to_json()
    assert list(told) == [
        "difficulty",
        "diversity at equal texts",
        "diversity at equal words",
        "duplicates",
        "contamination",
    ]
    assert told == json.loads(json.dumps(told)), "it is JSON"
    assert [row["round"] for row in told["difficulty"]["rounds"]] == [0, 1, 2]
    assert told["difficulty"]["rounds"][1]["score_gain"]["value"] == pytest.approx(1.25, abs=0.5)
    assert told["duplicates"]["rounds"][2]["of an earlier round"] == 1
    assert told["contamination"]["files"] == [{"file": test_file.name, "items": 4, "touched": 1, "records": 2}]
    assert told["contamination"]["rounds"][0]["repeated"] == told["contamination"]["rounds"][1]["similar"] == 1


def records_of_first(count: int) -> str:
    return run_of(count)[0].instruction


def test_reports_can_show_all_of_it() -> None:
    told = measured(run_of(50), Measure(difficulty_lineages=20), CountingWords()).to_json()
    by_name = {name: figures_of(measure) for name, measure in told.items()}
    assert by_name["difficulty"].rounds["rank_gain"][1].low is not None
    assert set(by_name["difficulty"].rounds["score"]) == {0, 1, 2}
    assert "vendi" in by_name["diversity at equal words"].rounds
    assert by_name["duplicates"].rounds["share"][0].value == 0
    names = {name for figures in by_name.values() for name in (*figures.rounds, *figures.others)}
    assert names - MEANINGS.keys() == {"lineages", "records", "found"}  # all others need to be explained


def test_figures_do_not_depend_on_the_order_of_records_or_of_replies() -> None:
    records = run_of(50)
    config = Measure(difficulty_lineages=8, diversity_sample=40)
    first = measured(records, config, CountingWords())
    random.Random(1).shuffle(records)
    again = measured(records, config, CountingWords())
    assert again.to_json() == first.to_json()
    assert measured(records, config, CountingWords(), seed=1).to_json() != first.to_json()


def test_a_model_decides_on_what_is_only_similar(test_file: Path) -> None:
    other = "How many days are there in 6 weeks of holidays?"
    records = [record("x", 0, ITEM), record("y", 0, REWORDED), record("z", 0, other)]
    config = Measure(contamination_files=(str(test_file),), contamination_verdict="model")
    model = CountingWords()
    found = measured(records, config, model)
    assert set(found.checks) == {"x/0", "y/0"}
    assert model.purposes == ["contamination"] * 2
    assert found.to_json()["contamination"]["cleared by the judge"] == 1


def test_what_is_dropped_is_not_in_the_other_measures() -> None:
    copies = [record(f"c{number}", 0, "Write a short poem about the sea at night.") for number in range(200)]
    records = [*run_of(60, rounds=1), *copies]
    kept = measured(records, Measure(duplicates="flag", diversity_sample=100))
    dropped = measured(records, Measure(duplicates="drop", diversity_sample=100))
    assert len(dropped.checks) == len(kept.checks) == 199
    assert {check.action for checks in dropped.checks.values() for check in checks} == {"drop"}

    def vendi(found: Measures) -> Any:
        return found.to_json()["diversity at equal texts"]["rounds"][0]["vendi"]["value"]

    assert vendi(dropped) > vendi(kept)
    assert [one.measures["texts"].n for one in dropped.diversity] == [61, 61]


def test_nothing_is_measured_that_was_not_asked_for() -> None:
    found = measured(run_of(30), Measure(duplicates="off", diversity_sample=0))
    assert (found.to_json(), found.checks) == ({}, {})
    assert not asks_judge(Measure())
    assert not asks_judge(Measure(contamination_verdict="model"))
    assert asks_judge(Measure(contamination_verdict="model", contamination_files=("a.txt",)))
    assert asks_judge(Measure(difficulty_lineages=1))


def test_samples_are_of_whole_lineages_and_do_not_change_with_the_order() -> None:
    records = run_of(100)
    lineages = sample_lineages(records, count=10, seed=3)
    assert [len(lineage) for lineage in lineages] == [3] * 10
    assert all([r.round for r in lineage] == [0, 1, 2] for lineage in lineages)
    assert len({lineage[0].lineage for lineage in lineages}) == 10
    texts = sample_instructions(records, count=10, seed=3)
    random.Random(2).shuffle(records)
    assert sample_lineages(records, count=10, seed=3) == lineages
    assert sample_instructions(records, count=10, seed=3) == texts
    assert sample_lineages(records, count=12, seed=3)[:10] == lineages, "a larger sample holds the smaller one"
    assert len(sample_lineages(records, count=1_000, seed=3)) == 100
    assert sample_instructions(records, count=10, seed=4) != texts


def test_each_lineage_is_sampled_about_equally_often() -> None:
    records = run_of(20, rounds=1)
    drawn = [r.lineage for seed in range(300) for (r,) in sample_lineages(records, count=5, seed=seed)]
    counts = [drawn.count(f"s{number}") for number in range(20)]
    assert min(counts) > 45, "75 expected, standard deviation 7.5"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"difficulty_lineages": -1}, "difficulty_lineages = -1: it must be at least 0"),
        ({"diversity_sample": 10}, "diversity_sample = 10: it must be at least 40, or 0"),
        ({"duplicate_threshold": 0.0}, "duplicate_threshold = 0.0: it must be above 0"),
        ({"contamination_similarity": 1.5}, "contamination_similarity = 1.5"),
        ({"contamination_ngram": 1}, "contamination_ngram = 1"),
        ({"contamination": "drop"}, "contamination_files is empty"),
        ({"contamination_verdict": "model"}, "contamination_files is empty"),
        ({"contamination_files": ("gone.jsonl",)}, "gone.jsonl can not be read"),
        ({"contamination_files": ("a", "a")}, "named twice"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_measure(Measure(**changed))


def test_the_default_settings_can_be_used(test_file: Path) -> None:
    check_measure(Measure())
    check_measure(Measure(contamination_files=(str(test_file),), contamination="drop", contamination_verdict="model"))
    assert issubclass(MeasureError, ValueError)

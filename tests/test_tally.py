"""What became of every candidate, by operation, round and source: nothing is lost on the way into the counts."""

from __future__ import annotations

import json
import random

import pytest

from data_gen.evolve import Lineage
from data_gen.operations import OPERATIONS
from data_gen.records import Record, Rejected, Rule, Turn
from data_gen.tally import Cell, Tally

TURNS = (Turn("user", "Name a prime."), Turn("assistant", "7"))


def record(operation: str, round_: int, source: str = "a", *, words: int = 0, model: str = "m") -> Record:
    return Record(
        id=f"x/{round_}",
        lineage="x",
        turns=TURNS,
        round=round_,
        operation=operation,
        source=source,
        model=model,
        words_added=words,
    )


def rejected(operation: str, round_: int, rule: Rule, source: str = "a") -> Rejected:
    return Rejected("x", round_, operation, rule, "seen", "Name a prime.", source=source)


def test_every_candidate_is_in_exactly_one_cell() -> None:
    rng = random.Random(3)
    tally, tried = Tally(), 0
    rules: tuple[Rule, ...] = ("no_gain", "refusal", "invalid_input")
    for _ in range(300):
        place = (rng.choice([*OPERATIONS, ""]), rng.randrange(5))
        source = rng.choice(["a", "b"])
        kept = tuple(record(*place, source) for _ in range(rng.randrange(3)))
        lost = tuple(rejected(*place, rng.choice(rules), source) for _ in range(rng.randrange(3)))
        tally.add(Lineage(kept, lost))
        tried += len(kept) + len(lost)
    assert sum(rate.tried for rate in tally.rates.values()) == tried == tally.records + tally.rules.total()
    for names in (("operation",), ("round",), ("source", "operation"), ("operation", "round", "source")):
        assert sum(rate.tried for rate in tally.by(*names).values()) == tried - sum(
            rate.tried for cell, rate in tally.rates.items() if not cell.operation
        )
    assert sum((rate.dropped for rate in tally.rates.values()), start=type(tally.rules)()) == tally.rules


def test_rates_are_told_by_operation_round_and_source() -> None:
    tally = Tally()
    tally.add(
        Lineage(
            records=(record("", 0), record("deepening", 1, words=12), record("deepening", 2, words=30)),
            rejected=(
                rejected("deepening", 1, "no_gain"),
                rejected("deepening", 1, "no_gain", "b"),
                rejected("complicate_input", 1, "invalid_input"),
                rejected("", 0, "refusal", "b"),
            ),
        )
    )
    assert tally.rates[Cell("deepening", 1, "a")].tried == 2
    assert list(tally.by("operation")) == [("deepening",), ("complicate_input",)]
    deepening = tally.by("operation")["deepening",]
    assert (deepening.tried, deepening.kept, deepening.dropped) == (4, 2, {"no_gain": 2})
    assert tally.by("round")[1,].dropped == {"no_gain": 2, "invalid_input": 1}
    assert list(tally.by("operation", of="all")) == [("deepening",), ("complicate_input",), ("",)]
    assert list(tally.by("source", "round", of="all")) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert tally.by(of="all")[()].tried == 7
    assert tally.summary()["rates"][0] == {
        "operation": "deepening",
        "round": 1,
        "source": "a",
        "tried": 2,
        "kept": 1,
        "dropped": {"no_gain": 1},
        "mean_words_added": 12.0,
        "share_with_10_to_20": 1.0,
    }
    assert tally.summary()["rates"][-1]["mean_words_added"] is None
    assert json.loads(json.dumps(tally.summary()["rates"])) == tally.summary()["rates"]


def test_words_added_are_told_by_operation_and_round() -> None:
    tally = Tally()
    for words in (9, 10, 20, 21, -5):
        tally.add_record(record("concretizing", 3, words=words))
    told = tally.by("operation", "round")["concretizing", 3].to_json()
    assert told["mean_words_added"] == pytest.approx(11)
    assert told["share_with_10_to_20"] == pytest.approx(0.4)
    tally.add_record(record("in_breadth", 3, words=15))  # was asked for another instruction, and not for more words
    assert tally.by("operation", "round")["in_breadth", 3].to_json()["share_with_10_to_20"] is None
    assert tally.by("round")[3,].to_json()["share_with_10_to_20"] == pytest.approx(0.4)


def test_the_summary_holds_what_it_always_held() -> None:
    tally = Tally()
    tally.add(
        Lineage(
            records=(record("", 0, model=""), record("paraphrase", 1), record("deepening", 2, model="n")),
            rejected=(rejected("deepening", 3, "no_gain"), rejected("", 0, "refusal")),
        )
    )
    summary = tally.summary()
    assert [(row["operation"], row["round"], row["kept"]) for row in summary.pop("rates")] == [
        ("deepening", 2, 1),
        ("deepening", 3, 0),
        ("paraphrase", 1, 1),
    ]
    assert summary == {
        "records": 3,
        "rejected": 2,
        "by_round": {"0": 1, "1": 1, "2": 1},
        "by_operation": {
            "deepening": {"accepted": 1, "rejected": 1},
            "paraphrase": {"accepted": 1, "rejected": 0},
        },
        "by_rule": {"no_gain": 1, "refusal": 1},
        "models": ["m", "n"],
    }

"""Pass rates over several samples, and whether instructions are valid: both from the rows of answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_flow import Flow

from configs.folder import read_complete
from data_gen.shards import read_dataset
from wizard_jax.cli import main
from wizard_jax.evaluate.difficulty.pass_rate import pass_rate_results, pass_rates
from wizard_jax.evaluate.difficulty.validity import is_harder, says_missing, score, state
from wizard_jax.evaluate.items import Answer, Item


def row(item: int, sample: int, passed: float, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "model": "one",
        "id": str(item),
        "sample": sample,
        "turns": ["word " * (1 + item % 7)],
        "skill": "ab"[item % 2],
        "difficulty": float(1 + item % 4),
        "problem": "",
        "scores": {"exact match": passed},
        "weights": {},
    }
    return {**told, **changes}


def student(strength: float, *, seed: int, model: str, items: int = 200, samples: int = 8) -> list[dict[str, Any]]:
    """Passes an item of label d with probability strength ** d."""
    random = np.random.default_rng(seed)
    return [
        row(item, sample, float(random.random() < strength ** (1 + item % 4)), model=model)
        for item in range(items)
        for sample in range(samples)
    ]


def test_a_rate_is_the_mean_over_samples_that_brought_an_answer() -> None:
    rows = [row(0, 0, 1.0), row(0, 1, 0.0), row(0, 2, 0.0, problem="given up: nobody", scores={}), row(1, 0, 1.0)]
    rows += [row(2, 0, 0.0, problem="refused", scores={}), row(3, 0, 0.0, weights={"exact match": 0.0})]
    assert pass_rates(rows, score="exact match") == {"0": 0.5, "1": 1.0}


def test_where_labels_are_true_pass_rates_fall_with_them_for_both_students_within_skill_and_without_length() -> None:
    rows = student(0.9, seed=0, model="strong") + student(0.6, seed=1, model="weak")
    told = pass_rate_results(rows, seed=0)["pass_rates"]
    assert (told["score"], told["samples"]) == ("exact match", 8)
    for name, strength in (("strong", 0.9), ("weak", 0.6)):
        of_model = told["models"][name]
        assert [one["difficulty"] for one in of_model["by_difficulty"]] == [1.0, 2.0, 3.0, 4.0]
        for one in of_model["by_difficulty"]:
            # of 8 intervals of 95 %, one may well miss
            assert one["low"] - 0.03 <= strength ** one["difficulty"] <= one["high"] + 0.03
            assert one["n"] == 50
        kinds = {(one["within"], one["without"]): one for one in of_model["correlations"]}
        assert set(kinds) == {(within, without) for within in ("", "skill") for without in ("", "words")}
        assert all(one["high"] < 0 and one["n"] == 200 for one in kinds.values())
    (between,) = told["between_models"]
    assert between["models"] == ["strong", "weak"]
    assert between["low"] > 0


def test_a_label_without_truth_has_an_interval_that_holds_0() -> None:
    random = np.random.default_rng(0)
    rows = [{**one, "difficulty": float(random.integers(10))} for one in student(0.7, seed=0, model="one", samples=1)]
    (plain, *_) = pass_rate_results(rows, seed=0)["pass_rates"]["models"]["one"]["correlations"]
    assert plain["low"] < 0 < plain["high"]


def test_what_no_program_scores_has_no_pass_rates() -> None:
    assert pass_rate_results([row(0, 0, 0.0, scores={})], seed=0) == {}


# --- validity


def said(*came_to: str | None) -> list[dict[str, Any]]:
    """Rows of one instruction; None is no answer."""
    return [
        {"extracted": "refusal: sorry" if text is None else text, "scores": {"answerable": float(text is not None)}}
        for text in came_to
    ]


@pytest.mark.parametrize(
    ("came_to", "answerable", "self_consistent", "agreement"),
    [
        (("a", "a", "a", "a"), True, True, 1.0),
        (("a", "a", "a", "b"), True, True, 0.5),
        (("a", "a", "b", "b"), True, False, 1 / 3),
        (("a", "b", "c", "d"), True, False, 0.0),
        (("a", "a", "a", None), True, True, 0.5),
        (("a", "a", None, None), False, False, 1 / 6),
        ((None, None, None, None), False, False, 0.0),
    ],
)
def test_refusals_agree_with_nothing_and_half_is_not_enough(
    came_to: Sequence[str | None], answerable: bool, self_consistent: bool, agreement: float
) -> None:
    found = state(said(*came_to))
    assert (found.answerable, found.self_consistent) == (answerable, self_consistent)
    assert found.agreement == pytest.approx(agreement)
    assert found.valid == (answerable and self_consistent)


@pytest.mark.parametrize(
    "text",
    [
        "The list is missing.",
        "You have not provided a list to sort.",
        "It seems the text wasn't included. Could you share it?",
        "Please provide the numbers that I should add up.",
        "I need more information to answer this.",
        "I don't see any attachment here.",
    ],
)
def test_an_answer_that_asks_for_what_is_not_there_is_none(text: str) -> None:
    item = Item(id="a", turns=("Sort it.",))
    found = score(item, Answer(item="a", model="m", texts=(text,), finish_reasons=("stop",)))
    assert (found.values["answerable"], found.extracted.partition(":")[0]) == (0.0, "missing")


def test_a_long_answer_or_one_that_says_no_such_thing_is_an_answer() -> None:
    assert says_missing("Kiwi, fig, lemon.") == ""
    assert says_missing("Dear team, please provide your feedback. " + "We value what you say. " * 20) == ""
    item = Item(id="a", turns=("Name a fruit.",))
    answers = [Answer(item="a", model="m", texts=(text,), finish_reasons=("stop",)) for text in ("A kiwi!", "a  Kiwi")]
    assert {score(item, one).extracted for one in answers} == {"a kiwi"}


def test_harder_is_by_rank_before_score_before_steps() -> None:
    def item(name: str, *, rank: float | None, score: float | None, steps: float | None, parent: str = "") -> Item:
        details = {"round": int(name), "parent": parent, "rank": rank, "score": score}
        return Item(id=name, turns=("x",), difficulty=steps, details=details)

    first = item("0", rank=2.0, score=3.0, steps=1.0)
    known = {
        "1": item("1", rank=1.0, score=4.0, steps=2.0, parent="0"),
        "2": item("2", rank=None, score=4.0, steps=1.0, parent="0"),
        "3": item("3", rank=None, score=None, steps=1.0, parent="0"),
        "4": item("4", rank=None, score=None, steps=None, parent="0"),
        "5": item("5", rank=3.0, score=4.0, steps=2.0, parent="gone"),
    }
    items = {"0": first, **known}
    assert [is_harder(one, items) for one in items.values()] == [None, False, True, False, None, None]


@pytest.fixture(scope="module")
def validity(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two teachers, one of whom refuses more than every second time."""
    out = tmp_path_factory.mktemp("validity") / "eval"
    models = ("models.good=@Simulated", "models.bad=@Simulated", "models.bad.faults.refusal=0.6")
    command = ["eval", "configs/eval/validity.gin", "--out", str(out), f"task.dataset={flow.evolved}", *models]
    assert main(command) == 0
    return out


def test_rounds_tell_what_is_harder_and_valid(flow: Flow, validity: Path) -> None:
    """In the simulated world a good teacher always comes to the same, and harder is: more steps."""
    records = {record.id: record for record in read_dataset(flow.evolved)}
    told = read_complete(validity)["validity"]
    assert list(told) == ["bad", "good"]
    for of_round in told["good"]:
        own = [record for record in records.values() if record.round == of_round["round"]]
        pairs = [(record, records[record.parent]) for record in own if record.parent in records]
        assert of_round["items"] == of_round["checked_by_program"] == len(own)
        assert (of_round["valid"]["share"], of_round["agreement"], of_round["no_answer"]) == (1.0, 1.0, {})
        if of_round["round"]:
            harder = sum(record.steps > parent.steps for record, parent in pairs)
            assert (of_round["harder"]["successes"], of_round["harder"]["trials"]) == (harder, len(pairs))
            assert of_round["harder_and_valid"] == of_round["harder"]
        else:
            assert of_round["harder"] is None
    rows = [json.loads(line) for line in (validity / "answers.jsonl").read_text().splitlines()]
    for of_round in told["bad"]:
        own_rows = [one for one in rows if one["model"] == "bad" and one["band"] == f"round {of_round['round']}"]
        assert of_round["no_answer"] == {"refusal": sum(not one["scores"]["answerable"] for one in own_rows)}
        assert of_round["valid"]["share"] < 0.7
        assert of_round["valid"]["successes"] <= of_round["answerable"]["successes"]


def test_one_answer_can_not_agree_with_itself(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "configs/eval/validity.gin", "--out", str(tmp_path / "eval"), f"task.dataset={flow.evolved}"]
    assert main([*command, "models.good=@Simulated", "samples=1"]) == 2
    assert "Validity compares several answers" in capsys.readouterr().err

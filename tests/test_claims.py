"""Each guarded sentence is said where all of its conditions hold, and each condition that fails is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wizard_jax.evaluate.statistics.bootstrap import Estimate
from wizard_jax.report.claims import Claim, Round, better, harder, percent

NAMES = {"a": "Alpha", "b": "Beta"}
JUDGES: dict[str, Any] = {
    "good": {"passed": ["accuracy: ..."], "failed": []},
    "good too": {"passed": ["accuracy: ..."], "failed": []},
    "bad": {"passed": ["accuracy: ..."], "failed": ["length: ..."]},
    "untried": {"passed": [], "failed": []},
}


def estimate(value: float, low: float, high: float, n: int = 40) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "method": "made up"}


def comparison(**changed: Any) -> dict[str, Any]:
    rate = {"estimate": estimate(0.65, 0.55, 0.75), "wins": 26, "ties": 4, "losses": 10, "p": 0.011}
    controlled = {"controlled": estimate(0.6, 0.48, 0.7), "separated": False}
    told = {"candidate": "a", "baseline": "b", "judges": ["good"], "win_rate": rate, "length_controlled": controlled}
    return {**told, **changed}


def with_rate(**changed: Any) -> dict[str, Any]:
    return comparison(win_rate={**comparison()["win_rate"], **changed})


def said(told: dict[str, Any]) -> Claim:
    return better(told, JUDGES, called=NAMES)


def test_better_is_said_with_its_figures_where_everything_holds() -> None:
    claim = said(comparison())
    assert claim.holds
    assert claim.sentence == "Alpha is better than Beta"
    for figure in (
        "0.650 [0.550, 0.750] on 40 items",
        "26 wins, 4 ties, 10 losses",
        "p = 0.011",
        "0.600 [0.480, 0.700]",
    ):
        assert figure in claim.figures
    assert claim.figures.endswith("judged by good")


def test_the_model_with_the_lower_win_rate_is_the_worse_one() -> None:
    rate = {"estimate": estimate(0.35, 0.25, 0.45), "wins": 10, "ties": 4, "losses": 26, "p": 0.011}
    controlled = {"controlled": estimate(0.4, 0.3, 0.52), "separated": False}
    claim = said(comparison(win_rate=rate, length_controlled=controlled))
    assert claim.holds
    assert claim.sentence == "Beta is better than Alpha"
    assert "0.650 [0.550, 0.750]" in claim.figures
    assert "26 wins, 4 ties, 10 losses" in claim.figures
    longer = {"controlled": estimate(0.53, 0.4, 0.6), "separated": False}
    assert (
        said(comparison(win_rate=rate, length_controlled=longer)).failed[0].startswith("at equal length the win rate")
    )


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (comparison(win_rate={"none": "no judge that counts graded a pair of them"}), "no judge that counts"),
        (comparison(judges=["bad"]), "no judge that it rests on passed its gates"),
        (comparison(judges=["untried"]), "no judge that it rests on passed its gates"),
        (comparison(judges=["good", "bad"]), "it rests on bad too"),
        (with_rate(estimate=estimate(0.65, 0.55, 0.75, n=19)), "19 items graded, and 20 are needed"),
        (with_rate(estimate=estimate(0.65, 0.5, 0.75)), "0.650 [0.500, 0.750], holds 0.5"),
        (with_rate(p=0.05), "the sign test of 26 wins to 10 losses has p = 0.050, not below 0.05"),
        (comparison(length_controlled={"none": "all alike"}), "there is no win rate at equal length: all alike"),
        (
            comparison(length_controlled={"controlled": estimate(0.5, 0.4, 0.6), "separated": False}),
            "at equal length the win rate is 0.500 [0.400, 0.600], not above 0.5",
        ),
        (
            comparison(length_controlled={"controlled": estimate(0.6, 0.4, 0.7), "separated": True}),
            "length alone tells every win from every loss",
        ),
    ],
)
def test_better_is_not_said_and_the_one_condition_that_fails_is(told: dict[str, Any], why: str) -> None:
    (failed,) = said(told).failed
    assert why in failed


def capacity(**changed: Any) -> dict[str, Any]:
    told = {"judges": ["good", "good too"], "items": 40, "mean_grades": [7.8, 8.0]}
    figures = {"item_weighted": estimate(0.975, 0.95, 1.0), "skill_mean": estimate(1.006, 0.96, 1.05)}
    return {**told, **figures, "skills": {"Math": None, "Law": estimate(1.0, 0.9, 1.1)}, **changed}


def test_a_percentage_is_said_with_both_averages() -> None:
    claim = percent("a", "b", capacity(), JUDGES, called=NAMES)
    assert claim.holds
    assert claim.sentence == "Alpha reaches 97.5 percent of Beta"
    assert "items 97.5 % [95.0, 100.0], as published" in claim.figures
    assert "the plain mean of 2 skills 100.6 % [96.0, 105.0]" in claim.figures
    assert "mean grades 7.80 and 8.00 on 40 items; graded by good and good too" in claim.figures


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "no judge that counts graded answers of both"),
        (capacity(judges=["bad"]), "no judge that it rests on passed its gates"),
        (capacity(judges=["good", "untried", "bad"]), "it rests on untried and bad too"),
        (capacity(items=1), "1 item graded, and 20 are needed"),
        ({"judges": ["good"], "items": 40, "mean_grades": [2, 2], "none": "40 items are too few"}, "40 items are too"),
    ],
)
def test_a_percentage_is_not_said_and_the_one_condition_that_fails_is(told: dict[str, Any] | None, why: str) -> None:
    (failed,) = percent("a", "b", told, JUDGES, called=NAMES).failed
    assert why in failed


def figure(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 100, "made up")


ROUND = Round(
    number=1,
    passed=("good", "good too"),
    length_matched=figure(0.7, 0.6, 0.8),
    judge_free={"loss of the answer": figure(0.0, -0.1, 0.1), "failures": figure(0.2, 0.1, 0.3)},
    validity=figure(-0.01, -0.04, 0.02),
)


def test_harder_is_said_where_every_round_has_all_its_evidence() -> None:
    claim = harder([ROUND, replace(ROUND, number=2)])
    assert claim.holds
    assert claim.sentence == "Instructions get harder with each round"
    assert "at nearly equal length: of round 1 0.700 [0.600, 0.800]; of round 2 0.700 [0.600, 0.800]" in claim.figures


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"passed": ("good", "good")}, "2 judges that passed their gates must have compared children with parents"),
        ({"length_matched": None}, "P(the child is harder) is not known for pairs of nearly equal length"),
        ({"length_matched": figure(0.7, 0.5, 0.8)}, "0.700 [0.500, 0.800] at nearly equal length, is not surely above"),
        (
            {"judge_free": {"loss": figure(0.1, 0.0, 0.2)}},
            "surely rises from parent to child (loss 0.100 [0.000, 0.200])",
        ),
        ({"judge_free": {}}, "no measure without a judge surely rises from parent to child (none was taken)"),
        ({"validity": None}, "whether children are as often valid as their parents is not known"),
        ({"validity": figure(-0.02, -0.06, 0.02)}, "changes by -0.020 [-0.060, 0.020]: it may fall by more than 0.05"),
    ],
)
def test_harder_is_not_said_and_the_one_round_and_condition_that_fail_are(changed: dict[str, Any], why: str) -> None:
    (failed,) = harder([ROUND, replace(ROUND, number=2, **changed)]).failed
    assert failed.startswith("round 2: ")
    assert why in failed


def test_harder_is_not_said_of_nothing() -> None:
    assert harder([]).failed == ("no round of rewritten instructions was measured",)
    fallen = replace(ROUND, validity=figure(-0.02, -0.06, 0.02))
    assert harder([fallen], margin=0.1).holds

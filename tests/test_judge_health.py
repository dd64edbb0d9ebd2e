"""Known bias is found again: each bad judge fails the gates that it should, by name, and a good one fails none."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judges import calibrated, panelist, simulated

from data_gen import world
from data_gen.config import Faults
from data_gen.llm.chat import ChatReply, ChatRequest
from wizard_jax.evaluate.config import Gates
from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.judging.calibration import Calibration, CalibrationError, known_truth, pairs_of_items
from wizard_jax.evaluate.judging.health import Health, between, bias, health
from wizard_jax.evaluate.judging.judge import Panelist
from wizard_jax.evaluate.judging.rows import Verdict
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(seed=0, draws=2_000)
PAIRS = 60
KNOWN = known_truth(PAIRS, seed=0)
DATA = Path(__file__).parents[2] / "shared" / "data"


def found(judge: Panelist, *, asks: Any = "both", gates: Gates | None = None) -> Health:
    said = calibrated(KNOWN, judge=judge, asks=asks)
    return health(judge.name, calibration=said, gates=gates or Gates(pairs=PAIRS), bootstrap=BOOTSTRAP)


def failed(judge: Health) -> list[tuple[str, str]]:
    """The gate and what it was about, of each that was failed."""
    what = ("graded answers", "answers", "instructions")
    return [(line.split(":")[0], next(one for one in what if one in line)) for line in judge.failed]


# --- pairs of known truth


def test_of_every_pair_of_answers_one_is_right_and_the_wrong_one_is_longer_in_half() -> None:
    for pair in KNOWN.answers:
        task = world.parse(pair.item.turns[0])
        assert task is not None
        target = world.result(world.answer(task))
        assert world.result(pair.right.texts[0]) == target != world.result(pair.wrong.texts[0])
    longer = [len(pair.wrong.texts[0]) - len(pair.right.texts[0]) for pair in KNOWN.answers]
    assert sum(gap > 30 for gap in longer) == sum(gap < -30 for gap in longer) == PAIRS // 2
    assert {len(world.STEPS), *(pair.item.difficulty for pair in KNOWN.answers)} >= {1.0, 2.0, 3.0, 4.0}


def test_of_every_pair_of_instructions_one_has_a_step_more_and_the_easier_is_longer_in_half() -> None:
    for pair in KNOWN.instructions:
        assert world.count_steps(pair.harder) == pair.difficulties[0] == pair.difficulties[1] + 1
        assert world.count_steps(pair.easier) == pair.difficulties[1]
    longer = [len(pair.easier) - len(pair.harder) for pair in KNOWN.instructions]
    assert sum(gap > 0 for gap in longer) == sum(gap < 0 for gap in longer) == PAIRS // 2


def test_the_pairs_follow_from_the_seed() -> None:
    assert known_truth(8, seed=5) == known_truth(8, seed=5) != known_truth(8, seed=6)


def test_items_of_known_difficulty_give_pairs_balanced_in_length() -> None:
    rng = random.Random(0)
    items = [
        Item(id=str(n), turns=("x" * (20 * steps + rng.randrange(60)),), difficulty=steps)
        for n, steps in enumerate(rng.choices((1, 2, 3), k=80))
    ]
    pairs = pairs_of_items(items, pairs=40, seed=0, source="made up")
    assert len({pair.id for pair in pairs}) == len(pairs) == 40
    assert all(pair.difficulties[0] > pair.difficulties[1] for pair in pairs)
    assert sum(len(pair.easier) > len(pair.harder) for pair in pairs) == 20
    assert {pair.source for pair in pairs} == {"made up"}
    few = pairs_of_items([*items[:3], replace(items[0], id="z", difficulty=9.0)], pairs=40, seed=0, source="few")
    assert 3 <= len(few) <= 6


@pytest.mark.parametrize("difficulties", [(), (1.0,), (2.0, 2.0), (None, 1.0)])
def test_items_that_do_not_differ_can_not_calibrate(difficulties: Sequence[float | None]) -> None:
    items = [Item(id=str(n), turns=("x",), difficulty=difficulty) for n, difficulty in enumerate(difficulties)]
    with pytest.raises(CalibrationError, match="the items of T do not differ in difficulty"):
        pairs_of_items(items, pairs=4, seed=0, source="T")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here")
def test_gsm8k_and_ifeval_give_pairs_by_steps_and_by_constraints() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text().splitlines()]
    steps = [
        Item(id=str(n), turns=(row["question"],), difficulty=float(row["answer"].count("<<")))
        for n, row in enumerate(rows)
    ]
    rows = [json.loads(line) for line in (DATA / "ifeval_input_data.jsonl").read_text().splitlines()]
    constraints = [
        Item(id=str(row["key"]), turns=(row["prompt"],), difficulty=float(len(row["instruction_id_list"])))
        for row in rows
    ]
    for items in (steps, constraints):
        pairs = pairs_of_items(items, pairs=100, seed=0, source="T")
        assert len(pairs) == 100
        assert sum(len(pair.easier) > len(pair.harder) for pair in pairs) == 50


# --- golden recovery of known bias


def test_a_good_judge_passes_every_gate() -> None:
    judge = found(simulated("well"))
    assert judge.failed == ()
    assert [line.split(":")[0] for line in judge.passed] == [
        *("accuracy", "length", "order consistency") * 2,
        *("accuracy", "length"),
        *("rank correlation", "length"),
    ]
    assert [known.accuracy.value for known in judge.known if known.accuracy] == [1.0, 1.0, 1.0]


def test_a_good_judge_that_errs_now_and_then_passes_too() -> None:
    judge = found(simulated("well", faults=Faults(misjudged=0.1, empty=0.1)))
    assert judge.failed == ()
    (answers, *_) = judge.known
    assert answers.accuracy is not None
    assert answers.orders is not None
    assert 0.8 < answers.accuracy.value < 1
    assert 0.7 < answers.orders.same.value < 1


def test_a_judge_that_takes_the_first_fails_all_and_is_seen_to_take_the_first() -> None:
    judge = found(simulated("first"))
    assert judge.passed == ()
    assert failed(judge) == [
        *((gate, "answers") for gate in ("accuracy", "length", "order consistency")),
        *((gate, "instructions") for gate in ("accuracy", "length", "order consistency")),
        *((gate, "graded answers") for gate in ("accuracy", "length")),
        ("rank correlation", "instructions"),
    ]
    for known in judge.known[:2]:
        assert known.orders is not None
        assert known.orders.first_place is not None
        assert (known.orders.same.value, known.orders.reversed.value, known.orders.first_place.value) == (0, 1, 1)
        assert known.accuracy is not None
        assert known.accuracy.value == known.longest == 0.5


def test_a_judge_that_takes_the_longer_is_consistent_and_fails_by_length_and_accuracy() -> None:
    judge = found(simulated("longer"))
    assert failed(judge) == [
        *((gate, "answers") for gate in ("accuracy", "length")),
        *((gate, "instructions") for gate in ("accuracy", "length")),
        *((gate, "graded answers") for gate in ("accuracy", "length")),
        ("length", "instructions"),
    ]
    assert [line.split(":")[0] for line in judge.passed] == ["order consistency"] * 2 + ["rank correlation"]
    told = "length: with 0.50 [0."
    assert judge.failed[1].startswith(told)
    assert "of 60 pairs of answers (simulated world) right it does not surely beat" in judge.failed[1]


def test_only_what_is_asked_of_a_judge_is_gated() -> None:
    assert {line.split(":")[0] for line in found(simulated("first"), asks="pairwise").failed} == {
        "accuracy",
        "length",
        "order consistency",
    }
    assert {line.split(":")[0] for line in found(simulated("first"), asks="graded").failed} == {
        "accuracy",
        "length",
        "rank correlation",
    }


def test_without_gates_none_is_passed_and_none_failed() -> None:
    judge = found(simulated("first"), gates=Gates(pairs=0))
    assert (judge.passed, judge.failed) == ((), ())


def test_a_judge_that_was_asked_nothing_does_not_pass() -> None:
    judge = health("j", calibration=Calibration(), gates=Gates(), bootstrap=BOOTSTRAP)
    assert judge.failed == ("known truth: the judge was not asked about any pair of which the truth is known",)


def test_a_judge_that_can_not_be_read_fails_because_too_little_was_graded() -> None:
    judge = found(simulated("well", faults=Faults(empty=0.9)))
    assert judge.passed == ()
    assert {line.split(":")[0] for line in judge.failed} == {"graded"}
    assert all("only" in line for line in judge.failed)


class _Half:
    """A judge that is readable in one order only."""

    def __init__(self) -> None:
        self._well = simulated("well").llm.model

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = await self._well.complete(request)
        return replace(reply, text="?") if '"second"' in request.key.lineage else reply


def test_a_judge_read_in_one_order_only_fails_order_consistency() -> None:
    judge = found(panelist(_Half()), asks="pairwise")
    assert failed(judge) == [("order consistency", "answers"), ("order consistency", "instructions")]
    assert judge.failed[0].endswith("none of 60 pairs of answers (simulated world) was graded in both orders")


@pytest.mark.parametrize(
    ("judge", "gates", "gate"),
    [
        (simulated("well", faults=Faults(misjudged=0.1)), Gates(accuracy=0.95), "accuracy"),
        (simulated("well", faults=Faults(misjudged=0.1)), Gates(order_consistency=0.95), "order consistency"),
        (simulated("longer"), Gates(rank_correlation=0.95), "rank correlation"),
    ],
)
def test_each_gate_is_where_the_config_says(judge: Panelist, gates: Gates, gate: str) -> None:
    usual, higher = ({line.split(":")[0] for line in found(judge, gates=of).failed} for of in (Gates(), gates))
    assert higher - usual == {gate}


# --- bias on the evaluation's own pairs


def row(number: int, first: int | None, second: int | None, **more: Any) -> Verdict:
    problems = tuple("" if said is not None else "cut off: late" for said in (first, second))
    fields: dict[str, Any] = {
        "judge": "j",
        "item": str(number),
        "candidate": "new",
        "baseline": "old",
        "lengths": (100, 50),
        "problems": problems,
    }
    return Verdict(first=first, second=second, **(fields | more))


def test_bias_is_counted_on_the_pairs_that_were_asked_about() -> None:
    rows = [
        row(0, 1, 1),
        row(1, 1, -1),
        row(2, 0, 0),
        row(3, -1, -1),
        row(4, None, 1, unread=2),
        row(5, 0, 0, how="identical"),
        row(6, None, None, how="no answer", problems=("no answer of new: x",) * 2),
        row(7, 1, 0, lengths=(50, 30)),
    ]
    said = bias(rows, bootstrap=BOOTSTRAP)
    assert (said.pairs, said.identical, said.not_graded, said.unread) == (6, 1, 2, 2)
    assert said.reasons == {"cut off": 1, "no answer of new": 1}
    assert said.orders is not None
    assert said.orders.first_place is not None
    assert said.orders.same.value == pytest.approx(3 / 5)
    assert said.orders.reversed.value == pytest.approx(1 / 5)
    assert said.orders.first_place.value == pytest.approx(5 / 7)  # 1: one, 1 and -1: two, -1: one, 1 and 0: one
    assert said.longer is not None
    assert said.longer.value == pytest.approx(2 / 3)  # 0 and 4 for, 3 against; 1 and 2 undecided, 7 too near


def test_without_a_pair_that_was_asked_about_there_is_no_bias_to_tell() -> None:
    said = bias([row(0, 0, 0, how="identical")], bootstrap=BOOTSTRAP)
    assert (said.pairs, said.identical, said.orders, said.longer) == (0, 1, None, None)


def test_health_counts_only_the_rows_of_its_judge() -> None:
    rows = [row(0, 1, 1), row(0, -1, -1, judge="k"), row(1, 1, -1, judge="k")]
    judge = health("k", verdicts=rows, calibration=Calibration(), gates=Gates(), bootstrap=BOOTSTRAP)
    assert judge.said.pairs == 2
    assert judge.said.orders is not None
    assert judge.said.orders.same.value == 0.5


# --- between judges


def test_judges_are_compared_pair_by_pair_and_all_together() -> None:
    said = {"a": (1, -1, 0, 1) * 10, "b": (1, -1, 1, 1) * 10, "c": (1, 1, 0, -1) * 10}
    rows = [row(n, v, v, judge=judge) for judge, verdicts in said.items() for n, v in enumerate(verdicts)]
    rows += [row(90, 0, 0, judge=judge, how="identical") for judge in said]
    rows += [row(80, 1, 1, judge="a")]
    found_ = between(rows, bootstrap=BOOTSTRAP)
    assert [(one.judges, one.pairs, one.agreement.raw.value) for one in found_] == [
        (("a", "b"), 40, 0.75),
        (("a", "c"), 40, 0.5),
        (("b", "c"), 40, 0.25),
        (("a", "b", "c"), 40, pytest.approx(0.5)),
    ]
    kappa = found_[0].agreement.kappa
    assert kappa is not None
    # a: two 1, one -1, one 0; b: three 1, one -1: by chance 2/4 x 3/4 + 1/4 x 1/4 = 7/16 agree
    assert kappa.value == pytest.approx((0.75 - 7 / 16) / (1 - 7 / 16))


def test_a_good_and_two_bad_judges_agree_only_by_chance() -> None:
    rows = [row_ for name in ("well", "first", "longer") for row_ in _answers(name)]
    by_judges = {one.judges: one.agreement for one in between(rows, bootstrap=BOOTSTRAP)}
    raw = by_judges["well", "longer"].raw
    assert raw.value == pytest.approx(0.5)
    assert by_judges["well", "first"].raw.value == 0  # the one decides always, the other comes to a tie


@functools.cache
def _answers(judges: Any) -> tuple[Verdict, ...]:
    return calibrated(KNOWN, judge=simulated(judges), asks="pairwise").answers

"""What is drawn, with which probability, and what a pilot teaches: all of it kept, so that a replay is unbiased."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.choice import (
    ChoiceError,
    Logged,
    PilotStep,
    Plan,
    draw,
    gains,
    learn,
    lineage_stops,
    replayed,
    stop_round,
)

OPERATIONS = ("deepening", "concretizing", "in_breadth", "downward")
GAIN = {"deepening": 1.0, "concretizing": 0.2, "in_breadth": 0.0, "downward": -1.0}


def pilot(*, steps: int, seed: int = 0, sources: tuple[str, ...] = ("a", "b"), rounds: int = 4) -> list[PilotStep]:
    """Steps by uniform choice: in source "b" concretizing is what pays, from round 3 on nothing does."""
    rng = random.Random(seed)
    taken = []
    for _ in range(steps):
        source, round_, name = rng.choice(sources), rng.randint(1, rounds), rng.choice(OPERATIONS)
        survived = rng.random() < 0.8
        gain = GAIN[
            {"deepening": "concretizing", "concretizing": "deepening"}.get(name, name) if source == "b" else name
        ]
        gain = (gain if round_ < 3 else 0.0) + rng.gauss(0, 0.5)
        taken.append(PilotStep(source, round_, name, survived, gain if survived else None))
    return taken


def test_uniform_choice_draws_what_a_run_without_plans_drew() -> None:
    plan = Plan.uniform(OPERATIONS, 4)
    for seed in range(200):
        drawn = draw(plan, source="any", round_=1 + seed % 6, rng=random.Random(seed))
        assert drawn == (random.Random(seed).choice(OPERATIONS), 0.25)


@given(
    st.lists(
        st.builds(
            PilotStep,
            st.sampled_from(["a", "b", ""]),
            st.integers(1, 5),
            st.sampled_from([*OPERATIONS, "gone"]),
            st.booleans(),
            st.none() | st.floats(-9, 9),
        ),
        max_size=30,
    ),
    st.floats(0, 0.25),
    st.integers(0, 5),
)
def test_probabilities_sum_to_1_and_none_is_below_the_floor(steps: list[PilotStep], floor: float, rounds: int) -> None:
    plan = learn(steps, operations=OPERATIONS, rounds=rounds, floor=floor)
    assert plan.rounds == rounds
    for source in ("a", "b", "never seen"):
        for round_ in range(1, 7):
            weights = plan.weights(source=source, round_=round_)
            assert len(weights) == len(OPERATIONS)
            assert math.fsum(weights) == pytest.approx(1)
            assert min(weights) >= floor
    assert Plan.from_json(plan.to_json()) == plan


def test_operations_are_drawn_with_the_probability_that_is_said() -> None:
    plan = learn(pilot(steps=2000), operations=OPERATIONS, rounds=4, floor=0.02)
    rng, drawn = random.Random(7), Counter[str]()
    said: dict[str, float] = {}
    for _ in range(20_000):
        name, propensity = draw(plan, source="a", round_=1, rng=rng)
        drawn[name] += 1
        assert said.setdefault(name, propensity) == propensity
    assert tuple(said[name] for name in OPERATIONS) == plan.weights(source="a", round_=1)
    for name, propensity in said.items():
        # Five standard deviations of a binomial count.
        assert abs(drawn[name] - 20_000 * propensity) < 5 * (20_000 * propensity * (1 - propensity)) ** 0.5


def test_what_pays_is_preferred_where_it_pays_and_elsewhere_chances_stay_near_equal() -> None:
    plan = learn(pilot(steps=4000), operations=OPERATIONS, rounds=4)
    early = {source: dict(zip(OPERATIONS, plan.weights(source=source, round_=1), strict=True)) for source in ("a", "b")}
    assert max(early["a"], key=early["a"].__getitem__) == "deepening"
    assert max(early["b"], key=early["b"].__getitem__) == "concretizing"
    assert early["a"]["deepening"] > 0.6
    assert early["a"]["downward"] < 0.06
    late = plan.weights(source="a", round_=4)
    assert max(late) < 0.5
    unseen = dict(zip(OPERATIONS, plan.weights(source="never seen", round_=1), strict=True))
    assert min(unseen["deepening"], unseen["concretizing"]) > max(unseen["in_breadth"], unseen["downward"])


def test_one_lucky_step_in_a_small_cell_counts_for_little() -> None:
    steps = [*pilot(steps=4000, sources=("a",)), PilotStep("rare", 1, "downward", True, 3.0)]
    plan = learn(steps, operations=OPERATIONS, rounds=4)
    weights = dict(zip(OPERATIONS, plan.weights(source="rare", round_=1), strict=True))
    assert max(weights, key=weights.__getitem__) == "deepening"


def test_a_rewrite_that_is_dropped_earns_nothing() -> None:
    fragile = [
        PilotStep("a", 1, "deepening", number % 4 == 0, 2.0 if number % 4 == 0 else None) for number in range(80)
    ]
    sturdy = [PilotStep("a", 1, "concretizing", True, 1.0) for _ in range(80)]
    plan = learn(fragile + sturdy, operations=("deepening", "concretizing"), rounds=1)
    fragile_weight, sturdy_weight = plan.weights(source="a", round_=1)
    assert sturdy_weight > fragile_weight
    unmeasured = [step._replace(gain=None) if number < 40 else step for number, step in enumerate(sturdy)]
    assert learn(fragile + unmeasured, operations=("deepening", "concretizing"), rounds=1) == plan


@pytest.mark.parametrize("steps", [[], [PilotStep("a", 1, "deepening", True, None)], pilot(steps=1)])
def test_a_pilot_that_teaches_nothing_leaves_equal_chances(steps: list[PilotStep]) -> None:
    assert learn(steps, operations=OPERATIONS, rounds=4) == Plan.uniform(OPERATIONS, 4)


def test_the_order_of_the_pilot_does_not_matter() -> None:
    steps = pilot(steps=500)
    shuffled = random.Random(1).sample(steps, len(steps))
    assert (
        learn(shuffled, operations=OPERATIONS, rounds=4).to_json()
        == learn(steps, operations=OPERATIONS, rounds=4).to_json()
    )


@pytest.mark.parametrize("floor", [-0.1, 0.26, math.nan])
def test_a_floor_that_leaves_no_choice_is_refused(floor: float) -> None:
    with pytest.raises(ChoiceError, match="floor"):
        learn([], operations=OPERATIONS, rounds=1, floor=floor)


def test_a_plan_ends_after_a_round() -> None:
    plan = learn(pilot(steps=200), operations=OPERATIONS, rounds=4)
    assert plan.ending_after(2).rounds == 2
    assert plan.ending_after(9) == plan
    assert plan.ending_after(2).pooled == plan.pooled


def steps_of(*gains_by_round: tuple[float | None, ...]) -> list[PilotStep]:
    return [
        PilotStep("a", round_, "deepening", True, gain)
        for round_, seen in enumerate(gains_by_round, start=1)
        for gain in seen
    ]


@pytest.mark.parametrize(
    ("steps", "margin", "stop"),
    [
        (steps_of((2.0, 3.0), (1.0,), (0.5, 0.3)), 0.5, 2),
        (steps_of((2.0, 3.0), (1.0,), (0.5, 0.5)), 0.5, 3),
        (steps_of((2.0,), (0.1,), (3.0,)), 0.5, 1),
        (steps_of((0.1,), (3.0,)), 0.5, 0),
        (steps_of((2.0,), (None, None), (3.0,)), 0.5, 1),
        ([PilotStep("a", 1, "deepening", False, None)], -9.0, 0),
        ([], 0.0, 0),
        (steps_of((2.0,), (-3.0,)), -math.inf, 2),
    ],
)
def test_rounds_go_on_until_the_mean_gain_falls_below_the_margin(
    steps: list[PilotStep], margin: float, stop: int
) -> None:
    assert stop_round(steps, margin=margin) == stop


def test_the_gain_of_a_round_comes_with_its_error() -> None:
    first, second = gains(steps_of((1.0, 2.0, None, 3.0), (1.0,)))
    assert first[:3] == (1, 3, 2.0)
    assert first.standard_error == pytest.approx(1 / math.sqrt(3))
    assert second == (2, 1, 1.0, math.inf)


def test_a_lineage_stops_when_its_own_gain_falls_below_the_margin() -> None:
    assert lineage_stops(0.4, margin=0.5)
    assert not lineage_stops(0.5, margin=0.5)
    assert not lineage_stops(None, margin=0.5)


def test_a_replay_by_the_logged_propensities_is_unbiased_and_one_that_ignores_them_is_not() -> None:
    rng = random.Random(11)
    logging = learn(pilot(steps=1000, seed=3), operations=OPERATIONS, rounds=4, floor=0.05)
    other = learn(
        [PilotStep("a", r, "in_breadth", True, 1.0 * (n % 2)) for r in range(1, 5) for n in range(30)]
        + [PilotStep("a", r, "deepening", False, None) for r in range(1, 5) for _ in range(30)],
        operations=OPERATIONS,
        rounds=4,
    )

    def reward(source: str, round_: int, operation: str) -> float:
        usual = GAIN[operation] / round_ + (0.5 if source == "b" and operation == "downward" else 0.0)
        return usual + rng.gauss(0, 0.3) if rng.random() < 0.8 else 0.0

    logged = []
    for _ in range(30_000):
        source, round_ = rng.choice(("a", "b", "unseen")), rng.randint(1, 4)
        name, propensity = draw(logging, source=source, round_=round_, rng=rng)
        logged.append(Logged(source, round_, name, propensity, reward(source, round_, name)))
    for plan in (Plan.uniform(OPERATIONS, 4), other, logging):
        truth = sum(
            0.8 * (GAIN[name] / round_ + (0.5 if source == "b" and name == "downward" else 0.0)) * weight / 12
            for source in ("a", "b", "unseen")
            for round_ in range(1, 5)
            for name, weight in zip(OPERATIONS, plan.weights(source=source, round_=round_), strict=True)
        )
        estimate = replayed(logged, plan)
        assert estimate.steps == 30_000
        assert abs(estimate.mean - truth) < 4 * estimate.standard_error
        if plan is not logging:
            naive = sum(step.reward for step in logged) / len(logged)
            assert abs(naive - truth) > 4 * estimate.standard_error


@pytest.mark.parametrize(
    "logged",
    [[], [Logged("a", 1, "deepening", 0.0, 1.0)], [Logged("a", 1, "deepening", 1.5, 1.0)]],
)
def test_steps_that_can_not_be_replayed_are_refused(logged: list[Logged]) -> None:
    with pytest.raises(ChoiceError):
        replayed(logged, Plan.uniform(OPERATIONS, 4))


def test_a_replay_counts_what_was_dropped_and_what_the_plan_would_never_draw_as_nothing() -> None:
    logged = [
        Logged("a", 1, "deepening", 0.5, 1.0),
        Logged("a", 1, "deepening", 0.0, 0.0),
        Logged("a", 1, "paraphrase", 0.5, 1.0),
    ]
    assert replayed(logged, Plan.uniform(OPERATIONS, 4)).mean == pytest.approx(1.0 * 0.25 / 0.5 / 3)

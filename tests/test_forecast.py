"""What a run will have cost: the interval holds as often as it says, and what is expected is what is asked."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_evolve import Scripted

from data_gen.config import (
    EvolveConfig,
    Measure,
    Mixture,
    OpenAIBatch,
    OpenAICompatible,
    Pilot,
    Price,
    Shard,
    SimulatedSeeds,
)
from data_gen.evolve import evolve_lineage
from data_gen.forecast import ANSWER_TOKENS, LEAST_LINEAGES, Expected, Forecast, _t90, expected
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.llm.pricing import Prices
from data_gen.records import Record, Turn


def forecast_of(costs: Any) -> Forecast:
    forecast = Forecast()
    for usd in costs:
        forecast.add(float(usd))
    return forecast


# --- while it runs


def test_too_few_lineages_say_nothing() -> None:
    assert forecast_of([1.0] * (LEAST_LINEAGES - 1)).total(100) is None
    assert forecast_of([1.0] * LEAST_LINEAGES).total(100) is not None


def test_the_middle_is_the_mean_of_those_finished_for_each_of_all() -> None:
    costs = np.random.default_rng(0).gamma(2.0, 0.01, 40)
    interval = forecast_of(costs).total(1000)
    assert interval is not None
    assert interval.middle == pytest.approx(1000 * costs.mean())
    assert interval.low < interval.middle < interval.high
    assert interval.low * interval.high == pytest.approx(interval.middle**2), "as far either way on a log scale"


def test_when_all_are_finished_nothing_is_uncertain_and_less_than_was_spent_is_never_said() -> None:
    forecast = forecast_of([1.0, 2.0, 3.0, 4.0, 5.0])
    done = forecast.total(5, spent=15.0)
    assert done is not None
    assert (done.low, done.middle, done.high) == pytest.approx((15.0, 15.0, 15.0))
    begun = forecast.total(6, spent=17.5)
    assert begun is not None
    assert begun.low == 17.5
    beside = forecast.total(5, beside=2.0)
    assert beside is not None
    assert beside.middle == pytest.approx(17.0)
    free = forecast_of([0.0] * 9).total(20)
    assert free is not None
    assert str(free) == "$0.00 ($0.00 to $0.00)"


def test_a_quick_lineage_counts_when_those_begun_before_it_are_finished() -> None:
    forecast = Forecast()
    for index in range(4):
        forecast.begin(index)
    forecast.end(2, usd=1.0)
    forecast.end(1, usd=2.0)
    assert forecast.lineages == 0
    forecast.end(0, usd=9.0)
    assert (forecast.lineages, forecast.mean) == (3, 4.0)
    forecast.begin(4)
    forecast.end(4, usd=4.0)
    assert forecast.lineages == 3
    forecast.leave(3)
    assert forecast.lineages == 4, "one that is put off holds up nobody"
    forecast.begin(3)
    forecast.end(3, usd=4.0)
    assert (forecast.lineages, forecast.mean) == (5, 4.0)


def test_where_lineages_cost_something_else_from_some_point_on_those_before_are_no_measure_of_those_after() -> None:
    forecast = forecast_of([10.0] * 20)
    forecast.begin_anew()
    assert forecast.total(100) is None
    for _ in range(LEAST_LINEAGES):
        forecast.add(1.0)
    interval = forecast.total(100, beside=3.0)
    assert interval is not None
    assert interval.low == interval.middle == interval.high == 20 * 10.0 + 80 * 1.0 + 3.0


def test_that_quick_lineages_are_cheap_does_not_lower_what_is_forecast() -> None:
    """64 are open at once and take as long as they cost; without an order, the first forecasts are far too low."""
    rng = random.Random(0)
    costs = [rng.lognormvariate(0, 0.5) for _ in range(2000)]
    forecast, unordered, open_until = Forecast(), Forecast(), dict[int, float]()
    middles: list[float] = []
    low: list[float] = []
    upcoming = iter(range(2000))
    for index in (next(upcoming) for _ in range(64)):
        forecast.begin(index)
        open_until[index] = costs[index]
    while len(middles) < 40:
        first = min(open_until, key=open_until.__getitem__)
        now = open_until.pop(first)
        forecast.end(first, usd=costs[first])
        unordered.add(costs[first])
        for said, one in ((middles, forecast), (low, unordered)):
            if (interval := one.total(2000)) is not None:
                said.append(interval.middle)
        index = next(upcoming)
        forecast.begin(index)
        open_until[index] = now + costs[index]
    assert low[0] < 0.5 * sum(costs)
    assert np.mean(middles) == pytest.approx(sum(costs), rel=0.2)


def test_student_s_t_is_near_enough_from_four_degrees_of_freedom_on() -> None:
    for freedom in range(LEAST_LINEAGES - 1, 200):
        assert _t90(freedom) == pytest.approx(stats.t.ppf(0.95, freedom), abs=0.003)


def coverage(draw: Any, *, finished: int = 20, lineages: int = 2000, runs: int = 1000) -> float:
    """How often the interval from the first few lineages holds what all come to."""
    held = 0
    for _ in range(runs):
        costs = draw(lineages)
        interval = forecast_of(costs[:finished]).total(lineages)
        assert interval is not None
        held += interval.low <= costs.sum() <= interval.high
    return held / runs


@pytest.mark.parametrize(
    ("sigma", "least", "most"),
    [(0.3, 0.87, 0.93), (0.5, 0.85, 0.92), (1.0, 0.78, 0.87), (1.5, 0.68, 0.78)],
)
def test_of_1000_runs_with_log_normal_costs_the_interval_from_20_of_2000_lineages_holds_for(
    sigma: float, least: float, most: float
) -> None:
    """Nine in ten up to a spread of 0.5; beyond that, the rare dear lineages are not yet among 20."""
    rng = np.random.default_rng(7)
    assert least <= coverage(lambda count: rng.lognormal(0.0, sigma, count)) <= most


def test_a_sum_of_13_requests_with_a_spread_of_1_each_is_even_enough_for_85_to_95_in_100() -> None:
    rng = np.random.default_rng(8)
    assert 0.85 <= coverage(lambda count: rng.lognormal(0.0, 1.0, (count, 13)).sum(axis=1), runs=400) <= 0.95
    assert coverage(lambda count: rng.lognormal(0.0, 1.0, (count, 13)).sum(axis=1), finished=5, runs=400) >= 0.82


# --- before it runs


@dataclass
class Counting(Scripted):
    """Scores 9 for the last version of a lineage, so that none stops early, and counts bytes."""

    bytes_asked: list[int] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.bytes_asked.append(sum(len(message.content.encode()) for message in request.messages))
        reply = await super().complete(request)
        return replace(reply, text=str(request.key.round + 1)) if request.key.purpose == "difficulty" else reply


TWENTY_TOKENS = " and so on" * 8
CONTEXT = (Turn("system", "Be brief."), Turn("user", "Hello."), Turn("assistant", "Hello."))
SEEDS = [
    Record(
        id=f"{index:06d}/0",
        lineage=f"{index:06d}",
        turns=(*(CONTEXT if index % 2 else ()), Turn("user", "Name a prime number. " * (index + 1)), *answer),
        source="s",
    )
    for index, answer in enumerate([(Turn("assistant", "7"),)] * 5 + [()])
]
LLM = OpenAICompatible(model="m", price=Price(input=1.0, output=10.0))


def config(**changes: Any) -> EvolveConfig:
    base = EvolveConfig(seeds=SimulatedSeeds(count=6), llm=LLM, eliminate=("no_gain",))
    return replace(base, **changes)


def expect(one: EvolveConfig, *, total: int = 6) -> Expected:
    providers = {one.llm, one.answerer or one.llm, one.judge or one.llm}
    models = one.mixture.models if one.mixture else ()
    prices = {provider: Prices(provider, models=models) for provider in providers}
    return expected(one, seeds=SEEDS, total=total, prices=prices)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 0},
        {"rounds": 2, "eliminate": ()},
        {"answer_seeds": "keep"},
        {"rounds": 3, "stop": "lineage", "pilot": Pilot(margin=0.5)},
    ],
)
def test_as_many_requests_are_expected_as_a_run_sends_in_which_nothing_is_dropped(changes: dict[str, Any]) -> None:
    one = config(**changes)
    model = Counting()
    for seed in SEEDS:
        assert not asyncio.run(evolve_lineage(seed, model=model, config=one)).rejected
    said = expect(one)
    assert said.requests == len(model.asked)
    # The scripted model adds 20 bytes a round, not 20 tokens: the rest of what is asked is as long as expected.
    assert said.input_tokens == pytest.approx(sum(model.bytes_asked) / 4, rel=0.25)
    assert expect(one, total=600).requests == 100 * len(model.asked)


def test_money_is_that_of_each_role_s_model_and_no_request_is_free() -> None:
    said = expect(config())
    tokens = [(said.input_tokens + 10 * out) / 1e6 for out in said.output_tokens]
    assert said.usd == pytest.approx(tokens, rel=0.01)
    answers = 6 * 5
    assert np.diff(said.output_tokens) == pytest.approx(np.diff(ANSWER_TOKENS) * answers)
    dear = OpenAICompatible(model="dear", price=Price(input=1.0, output=1000.0))
    assert expect(config(answerer=dear)).usd[1] - said.usd[1] == pytest.approx(answers * 300 * 990 / 1e6, rel=0.01)
    judged = expect(config(judge=replace(LLM, price=Price(input=101.0, output=10.0))))
    assert judged.usd[0] > said.usd[0]
    halved = expect(config(llm=replace(LLM, batch=OpenAIBatch())))
    assert halved.usd == pytest.approx([usd / 2 for usd in said.usd])


def test_a_mixture_costs_by_its_weights() -> None:
    mini, full = (expect(config(llm=OpenAICompatible(model=name))) for name in ("gpt-4o-mini", "gpt-4o"))
    mixture = Mixture(models=("gpt-4o-mini", "gpt-4o"), weights=(3.0, 1.0))
    mixed = expect(config(llm=OpenAICompatible(model="gpt-4o-mini"), mixture=mixture))
    assert mixed.requests == mini.requests
    assert mini.usd[0] < mixed.usd[0] < mini.usd[0] + (full.usd[0] - mini.usd[0]) / 4 + 1e-9


def test_a_pilot_and_measures_are_expected_too() -> None:
    plain = expect(config(), total=100)
    bandit = expect(config(choice="bandit", pilot=Pilot(lineages=20)), total=100)
    assert bandit.requests == plain.requests + 20
    measured = expect(config(measure=Measure(difficulty_lineages=30)), total=100)
    assert measured.requests == plain.requests + 30 * (5 + 1)
    assert expect(config(measure=Measure(difficulty_lineages=300)), total=100).requests == plain.requests + 100 * 6


def test_the_judge_of_finished_records_is_not_expected_to_be_asked_again_what_he_said_before() -> None:
    measure = Measure(difficulty_lineages=30)
    scored = config(stop="lineage", pilot=Pilot(margin=0.5))
    assert expect(replace(scored, measure=measure), total=100).requests == expect(scored, total=100).requests + 30 * 2
    bandit = config(choice="bandit", pilot=Pilot(lineages=20))
    again = expect(replace(bandit, measure=measure), total=100).requests
    assert again == expect(bandit, total=100).requests + 30 * 5 + 30 * 0.8, "of 30, 6 are of the pilot"
    part = config(shard=Shard(index=0, count=4))
    assert expect(replace(part, measure=measure), total=100) == expect(part, total=100), "a shard has no such judge"
    assert expect(bandit, total=100).ranking_usd > 0 == expect(config(), total=100).ranking_usd


def test_what_is_told_states_what_it_assumes() -> None:
    requests, money = expect(config(), total=60_000).told()
    assert requests.startswith("about 780,000 requests if nothing is dropped early, ")
    assert " million tokens in and " in requests
    assert money.startswith("about $")
    assert "with answers of 100 tokens" in money
    assert "what the model thinks is not counted" in money
    free = config(llm=replace(LLM, price=Price(input=0.0, output=0.0)))
    assert len(expect(free).told()) == 1
    kept = config(rounds=0, answer_seeds="keep")
    prices = {LLM: Prices(LLM)}
    assert expect(kept).requests == 1, "a seed without an answer is answered"
    assert expected(kept, seeds=SEEDS[:5], total=5, prices=prices).told() == [
        "no request is needed: nothing is rewritten, and the seeds bring their answers"
    ]

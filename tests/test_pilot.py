"""A pilot settles operations and rounds once, from lineages by uniform choice, and all later ones follow it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import signal
import sqlite3
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from signalled import child, stop_after
from test_evolve import SEED, Scripted
from test_generate import files, over_http, quiet, replies, serving

from data_gen import shards, world
from data_gen.choice import Plan, RoundGain
from data_gen.config import Budget, EvolveConfig, Faults, Measure, OpenAICompatible, Pilot, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage, rounds_of
from data_gen.generate import generate
from data_gen.llm import journal_file
from data_gen.llm.chat import ChatModel
from data_gen.operations import PUBLISHED
from data_gen.pilot import PLAN, Settled, by_plan, steps_of
from data_gen.records import Record, Rejected
from data_gen.run import Work
from data_gen.settings import SettingsError
from data_gen.side_by_side import BudgetReached

FAULTS = Faults(unchanged=0.05, refusal=0.05, copied_prompt=0.05, empty=0.05)
SEEDS, LINEAGES = 60, 25
BANDIT = EvolveConfig(
    seeds=SimulatedSeeds(count=SEEDS),
    llm=Simulated(faults=FAULTS),
    rounds=3,
    choice="bandit",
    pilot=Pilot(lineages=LINEAGES, floor=0.04),
    measure=Measure(diversity_sample=0),
)


def plan_of(out: Path) -> Plan:
    with contextlib.closing(journal_file.read_only(out / "journal.sqlite")) as journal:
        text = journal_file.decision(journal, name=PLAN)
    assert text is not None
    return Plan.from_json(text)


def asked(out: Path, *, purpose: str = "%", below: int = SEEDS) -> int:
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        ((count,),) = journal.execute(
            "SELECT count(*) FROM outcomes WHERE purpose LIKE ? AND lineage < ?", (purpose, f"{below:06d}")
        )
    return int(count)


def lineages_of(out: Path) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in shards.read_dataset(out):
        found[record.lineage].append(record)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pilot") / "bandit"
    generate(BANDIT, out, progress=quiet)
    return out


# --- bandit


def test_the_pilot_is_drawn_evenly_and_the_others_by_what_it_settled(whole: Path) -> None:
    plan = plan_of(whole)
    assert plan.rounds == 3
    pilot, later = set(), 0
    for record in shards.read_dataset(whole):
        if not record.round:
            assert record.propensity == 0.0
        elif int(record.lineage) < LINEAGES:
            pilot.add(record.propensity)
        else:
            weights = plan.weights(source=record.source, round_=record.round)
            assert record.propensity == round(weights[PUBLISHED.index(record.operation)], 6)
            later += 1
    assert pilot == {round(1 / 6, 6)}
    assert later > 50


def test_probabilities_sum_to_one_and_none_is_below_the_floor(whole: Path) -> None:
    plan = plan_of(whole)
    rows = [row for rows in (plan.pooled, *plan.by_source.values()) for row in rows]
    assert len(rows) == 2 * 3, "one source, and the row for any other"
    for row in rows:
        assert sum(row) == pytest.approx(1.0)
        assert min(row) >= 0.04
        assert max(row) > 0.2, "something was learnt"


def test_what_adds_steps_in_this_world_is_drawn_more_often_than_what_adds_none(whole: Path) -> None:
    weights = plan_of(whole).weights(source="another", round_=1)
    adds = {"add_constraints", "deepening", "increase_reasoning_steps"}
    share = sum(weight for name, weight in zip(PUBLISHED, weights, strict=True) if name in adds)
    assert share > 0.7


def test_the_pilot_s_lineages_are_ranked_once_each_and_paid_for(whole: Path) -> None:
    ranked = [records for index, records in lineages_of(whole).items() if int(index) < LINEAGES and len(records) > 1]
    assert asked(whole, purpose="rank") == len(ranked) > 20
    assert asked(whole, purpose="rank", below=LINEAGES) == len(ranked)


@pytest.mark.parametrize("concurrency", [1, 16, 256])
def test_concurrency_changes_neither_the_plan_nor_a_byte(concurrency: int, whole: Path, tmp_path: Path) -> None:
    generate(replace(BANDIT, concurrency=concurrency), tmp_path / "out", progress=quiet)
    assert plan_of(tmp_path / "out") == plan_of(whole)
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize(
    "killed_in", [("its ranking",), pytest.param(("the pilot", "its ranking", "what follows"), marks=pytest.mark.slow)]
)
def test_killed_in_a_pilot_in_its_ranking_or_after_it_a_run_settles_the_same(
    killed_in: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks = asked(whole, purpose="rank")
    pilot = asked(whole, below=LINEAGES) - ranks
    moments = {"the pilot": pilot // 2, "its ranking": pilot + 5, "what follows": pilot + ranks + 20}
    with serving(FAULTS, latency_seconds=0.005) as server:
        config = replace(BANDIT, llm=over_http(server).llm, concurrency=8)
        for moment in killed_in:
            assert stop_after(server, moments[moment], child(config, out), signal.SIGKILL) == -signal.SIGKILL
        generate(config, out, progress=quiet)
        assert server.requests <= replies(whole) + len(killed_in) * 8
    assert plan_of(out) == plan_of(whole)
    assert files(out) == files(whole)


@pytest.mark.parametrize("left_for", ["the pilot", "its ranking", "what follows"])
def test_a_budget_spent_at_any_point_of_a_pilot_leaves_it_to_be_settled_the_same(
    left_for: str, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks = asked(whole, purpose="rank")
    pilot = asked(whole, below=LINEAGES) - ranks
    calls = {"the pilot": pilot - 20, "its ranking": pilot + 4, "what follows": pilot + ranks + 30}[left_for]
    with pytest.raises(BudgetReached, match=rf"budget\.calls = {calls} .* of {SEEDS} are left"):
        generate(replace(BANDIT, budget=Budget(calls=calls)), out, progress=quiet)
    assert replies(out) == calls
    assert shards.verify(out).records > 0
    generate(BANDIT, out, progress=quiet)
    assert replies(out) == replies(whole)
    assert files(out) == files(whole)


@pytest.mark.parametrize("lineages", [SEEDS, SEEDS + 1, 200])
def test_a_pilot_that_leaves_no_seed_to_use_it_is_refused(lineages: int, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"pilot.lineages = {lineages}, and there are {SEEDS} seeds"):
        generate(replace(BANDIT, pilot=Pilot(lineages=lineages)), tmp_path / "out", progress=quiet)
    assert not (tmp_path / "out").exists()


def test_a_seed_of_the_pilot_that_is_tried_again_later_asks_what_it_asked_before() -> None:
    """Not by the plan that it is itself part of the ground for."""
    uniform = replace(BANDIT, llm=OpenAICompatible(model="scripted"), eliminate=())

    def outcomes(seed: Record, model: ChatModel) -> Any:
        return rounds_of(seed, model=model, config=uniform)

    async def operations(index: int, work: Work) -> list[str]:
        seed = replace(SEED, id=f"{index:06d}/0", lineage=f"{index:06d}")
        return [outcome.operation async for outcome in work.outcomes(seed, Scripted())]

    before = Work(total=60, pieces=lambda: iter(()), outcomes=outcomes, open_at_once=1)
    breadth = Plan(PUBLISHED, 3, pooled=((0.0, 0.0, 0.0, 0.0, 0.0, 1.0),) * 3)
    after = by_plan(before, breadth, config=BANDIT)
    for index in (0, LINEAGES - 1):
        assert asyncio.run(operations(index, after)) == asyncio.run(operations(index, before))
        assert set(asyncio.run(operations(index, after))) != {"", "in_breadth"}
    assert asyncio.run(operations(LINEAGES, after)) == ["", "in_breadth", "in_breadth", "in_breadth"]


# --- stopping


def test_where_gain_ends_the_run_ends_its_rounds(tmp_path: Path) -> None:
    """Steps of this world are worth 2 points; a mean gain of 3 is never reached, one of 0.2 always."""
    for margin, rounds in ((3.0, 0), (0.2, 3)):
        out = tmp_path / str(margin)
        pilot = Pilot(lineages=LINEAGES, margin=margin)
        generate(replace(BANDIT, choice="uniform", stop="run", pilot=pilot), out, progress=quiet)
        assert plan_of(out).rounds == rounds
        assert not plan_of(out).pooled, "operations are drawn evenly as before"
        by_lineage = lineages_of(out)
        later = {record.round for index, records in by_lineage.items() if int(index) >= LINEAGES for record in records}
        assert later == set(range(rounds + 1))
        first = {record.round for index, records in by_lineage.items() if int(index) < LINEAGES for record in records}
        assert first == {0, 1, 2, 3}, "the pilot goes through all rounds"


def test_a_lineage_ends_after_a_rewrite_that_gained_too_little_and_only_then(tmp_path: Path) -> None:
    config = replace(
        BANDIT,
        choice="uniform",
        stop="lineage",
        llm=Simulated(),
        pilot=Pilot(margin=1.5),
        seeds=SimulatedSeeds(count=30),
    )
    generate(config, tmp_path / "out", progress=quiet)
    dropped = Counter(
        json.loads(line)["lineage"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    )
    ended_early = 0
    for name, records in lineages_of(tmp_path / "out").items():
        difficulty = [2 * world.count_steps(record.instruction) - 1 for record in records]
        gains = [after - before for before, after in itertools.pairwise(difficulty)]
        ends_early = len(records) + dropped[name] < 1 + 3
        assert all(gain >= 1.5 for gain in gains[:-1])
        assert not ends_early or gains[-1] < 1.5
        assert ends_early or records[-1].round == 3 or not gains or gains[-1] >= 1.5
        ended_early += ends_early
    assert 5 < ended_early < 30
    assert asked(tmp_path / "out", purpose="difficulty") > 30
    assert asked(tmp_path / "out", purpose="rank") == 0


def test_no_score_is_paid_for_after_the_last_round(tmp_path: Path) -> None:
    config = replace(BANDIT, choice="uniform", stop="lineage", rounds=1, pilot=Pilot())
    generate(config, tmp_path / "out", progress=quiet)
    assert asked(tmp_path / "out", purpose="difficulty") == 0


def test_what_a_pilot_settled_and_on_what_grounds_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    pilot = Pilot(lineages=LINEAGES, margin=0.2)
    config = replace(BANDIT, stop="run", pilot=pilot)
    summary = generate(config, tmp_path, progress=quiet, say=said.append)
    settled, plan = summary["settled"], plan_of(tmp_path)
    assert (settled["lineages"], settled["stop_after"], settled["margin"]) == (LINEAGES, 3, 0.2)
    assert [gain["round"] for gain in settled["gains"]] == [1, 2, 3]
    by_source = {("", 2): plan.pooled[1], **{(name, 2): rows[1] for name, rows in plan.by_source.items()}}
    for row in settled["probabilities"]:
        if row["round"] == 2:
            assert tuple(row[name] for name in PUBLISHED) == by_source.pop((row["source"], 2))
    assert not by_source
    (line,) = (line for line in said if "settled" in line)
    first = settled["gains"][0]
    assert 0 < first["standard_error"] < first["mean"]
    assert f"{first['mean']:+.2f} ± {first['standard_error']:.2f} in round 1" in line
    assert "lineages end after round 3 of 3; operations are drawn as " in line
    card, page = (tmp_path / "README.md").read_text(), (tmp_path / "report.html").read_text()
    for text in (card, page):
        assert "What the pilot settled" in text
        assert "All others end after round 3" in text
        for gain in settled["gains"]:
            assert f"{gain['mean']:+.2f}" in text
            assert f"{gain['standard_error']:.2f}" in text
    (tmp_path / "complete.json").unlink()
    assert generate(config, tmp_path, progress=quiet, say=said.append)["settled"] == settled
    assert sum("settled" in line for line in said) == 1, "it is settled once"


def test_of_one_measured_rewrite_no_standard_error_is_told() -> None:
    config = replace(BANDIT, choice="uniform", stop="run")
    one = Settled(plan=Plan.uniform(PUBLISHED, 1), gains=(RoundGain(1, 1, 0.5, math.inf),), usd=0.25)
    assert Settled.from_json(one.to_json()) == one
    assert one.summary(config)["gains"] == [{"round": 1, "measured": 1, "mean": 0.5, "standard_error": None}]


def test_the_floor_of_the_settings_is_the_least_probability(tmp_path: Path) -> None:
    generate(replace(BANDIT, pilot=Pilot(lineages=LINEAGES, floor=0.12)), tmp_path, progress=quiet)
    assert 0.12 <= min(weight for row in plan_of(tmp_path).pooled for weight in row) < 0.14


# --- what a step is


def test_a_gain_needs_a_difficulty_of_both_and_what_was_dropped_has_none() -> None:
    def record(round_: int, parent: str) -> Record:
        return replace(SEED, id=f"000007/{round_}", round=round_, parent=parent, operation="deepening" * bool(round_))

    lineage = Lineage(
        (record(0, ""), record(1, "000007/0"), record(3, "000007/1"), record(4, "000007/3")),
        (Rejected("000007", 2, "in_breadth", "no_gain", "Equal", "?", source="seeds.jsonl"),),
    )
    steps = steps_of(lineage, {"000007/0": 2.0, "000007/1": 5.0, "000007/4": 4.0})
    assert [(step.round, step.survived, step.gain) for step in steps] == [
        (1, True, 3.0),
        (3, True, None),
        (4, True, None),
        (2, False, None),
    ]
    first_dropped = Lineage((), (Rejected("000007", 0, "", "refusal", "says sorry", "?", source="seeds.jsonl"),))
    assert steps_of(first_dropped, {}) == [], "a seed's answer is no step"

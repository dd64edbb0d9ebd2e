"""`--preview N`: N seeds in full, nothing more; the whole run asks nothing of them again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_generate import files, over_http, quiet, replies, serving

from configs.errors import UserError
from configs.folder import FolderError
from data_gen.config import Budget, EvolveConfig, Faults, Measure, Pilot, Price, Shard, Simulated, SimulatedSeeds
from data_gen.generate import generate, preview
from data_gen.llm.server import SimulatedServer
from data_gen.side_by_side import BudgetReached
from wizard_jax.cli import main

FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05)
CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=40), llm=Simulated(faults=FAULTS), rounds=2, measure=Measure(diversity_sample=0)
)


def config(server: SimulatedServer, **changes: Any) -> EvolveConfig:
    llm = replace(over_http(server).llm, price=Price(input=1000.0, output=1000.0))
    return replace(CONFIG, llm=llm, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "evolved"
    generate(CONFIG, out, progress=quiet)
    return out


def asked_of(out: Path, *, first: int | None = None) -> int:
    """Replies in a journal, those of the first seeds or of all."""
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        ((count,),) = journal.execute(
            "SELECT count(*) FROM outcomes WHERE lineage < ?", (f"{first:06d}" if first is not None else "~",)
        )
    return int(count)


def test_a_preview_asks_for_its_seeds_alone_and_the_run_in_its_folder_for_the_others(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with serving(FAULTS) as server:
        shown = preview(config(server), out, 5, progress=quiet)
        assert server.requests == asked_of(out) == asked_of(whole, first=5)
        assert len(shown.lineages) == len(shown.costs) == 5
        assert [lineage.records[0].lineage for lineage in shown.lineages] == [f"{index:06d}" for index in range(5)]
        assert all(len(lineage.records) + len(lineage.rejected) == 3 for lineage in shown.lineages)
        assert sum(cost.calls for by_round in shown.costs for cost in by_round.values()) == server.requests
        assert (shown.total, shown.stopped) == (40, "")
        assert not (out / "complete.json").exists()
        assert not (out / "dataset").exists()
        again = preview(config(server), out, 5, progress=quiet)
        assert (server.requests, again) == (asked_of(whole, first=5), shown), "what was paid for is shown again"
        preview(config(server), out, 2, progress=quiet)
        summary = generate(config(server), out, progress=quiet)
    assert server.requests == summary["calls"] == replies(whole)
    assert files(out) == files(whole)
    assert shown.forecast is not None
    assert 0.6 * summary["usd"] < shown.forecast.middle < 1.6 * summary["usd"]
    assert shown.forecast.low < summary["usd"] < shown.forecast.high, "of this seed number; nine in ten are so"


@pytest.mark.parametrize("count", [5, 20])
def test_what_the_judge_of_the_finished_records_will_take_is_in_what_all_would_cost(count: int, tmp_path: Path) -> None:
    """He is asked of half of the lineages, which is more than a tenth of all money; nothing is said of a shard."""
    measure = Measure(diversity_sample=0, difficulty_lineages=20)
    seen: list[str] = []

    def watch(_done: int, _total: int, facts: Mapping[str, Any]) -> None:
        seen.append(str(facts.get("in all about", "")))

    with serving(FAULTS) as server:
        judged = config(server, measure=measure)
        shown = preview(judged, tmp_path / "out", count, progress=quiet)
        assert preview(judged, tmp_path / "out", count, progress=quiet) == shown
        summary = generate(judged, tmp_path / "out", progress=watch)
        plain = preview(config(server), tmp_path / "plain", count, progress=quiet)
        shard = Shard(index=0, count=2)
        part = preview(config(server, measure=measure, shard=shard), tmp_path / "part", count, progress=quiet)
        alone = preview(config(server, shard=shard), tmp_path / "alone", count, progress=quiet)
    assert shown.forecast is not None
    assert plain.forecast is not None
    assert shown.forecast.low < summary["usd"] < shown.forecast.high, "of this seed number; nine in ten are so"
    assert shown.forecast.middle > 1.1 * plain.forecast.middle
    assert str(part.forecast) == str(alone.forecast)
    last = float(seen[-1].partition(" ")[0].removeprefix("$"))
    assert last == pytest.approx(summary["usd"], rel=0.03), "before the judge was asked"


def test_a_preview_of_more_than_all_is_the_run_but_for_its_data_set(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = preview(CONFIG, out, 1000, progress=quiet)
    assert len(shown.lineages) == 40
    assert generate(CONFIG, out, progress=quiet)["asked"] == 0
    assert files(out) == files(whole)


def test_too_few_seeds_forecast_nothing_and_none_are_no_preview(tmp_path: Path) -> None:
    assert preview(CONFIG, tmp_path / "out", 4, progress=quiet).forecast is None
    with pytest.raises(UserError, match="a preview of 0 seeds shows nothing"):
        preview(CONFIG, tmp_path / "none", 0, progress=quiet)
    assert not (tmp_path / "none").exists()


def test_a_preview_keeps_to_the_budget_and_says_so(tmp_path: Path) -> None:
    with serving(FAULTS) as server:
        shown = preview(config(server, budget=Budget(calls=20)), tmp_path / "out", 10, progress=quiet)
    assert server.requests == 20
    assert "budget.calls = 20 has no room" in shown.stopped
    assert sum(len(lineage.records) for lineage in shown.lineages) > 0


def test_a_preview_of_a_shard_shows_seeds_of_that_shard(tmp_path: Path) -> None:
    shard = replace(CONFIG, shard=Shard(index=1, count=3))
    shown = preview(shard, tmp_path / "out", 3, progress=quiet)
    generate(shard, tmp_path / "whole", progress=quiet)
    with contextlib.closing(sqlite3.connect(tmp_path / "whole" / "journal.sqlite")) as journal:
        ids = [row[0] for row in journal.execute('SELECT seed_id FROM lineages ORDER BY "index" LIMIT 3')]
    assert [lineage.records[0].lineage for lineage in shown.lineages] == [one.split()[0] for one in ids]
    assert shown.total < 40


def test_a_preview_is_no_way_around_the_settings_of_a_folder(tmp_path: Path) -> None:
    preview(CONFIG, tmp_path / "out", 1, progress=quiet)
    with pytest.raises(FolderError, match="rounds: 2 -> 3"):
        preview(replace(CONFIG, rounds=3), tmp_path / "out", 1, progress=quiet)


# --- with a pilot

BANDIT = replace(CONFIG, choice="bandit", pilot=Pilot(lineages=12))


def test_a_preview_within_the_pilot_is_part_of_it(tmp_path: Path) -> None:
    generate(BANDIT, tmp_path / "whole", progress=quiet)
    shown = preview(BANDIT, tmp_path / "out", 12, progress=quiet)
    assert {record.propensity for one in shown.lineages for record in one.records} == {0.0, 0.166667}
    summary = generate(BANDIT, tmp_path / "out", progress=quiet)
    assert summary["calls"] == replies(tmp_path / "whole"), "nothing that was previewed is asked again"
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    shown = preview(BANDIT, tmp_path / "out", 30, progress=quiet)
    assert len(shown.lineages) == 30, "what is settled may be looked at"


def test_what_ranking_the_pilot_will_take_is_in_what_all_would_cost(tmp_path: Path) -> None:
    with serving(Faults()) as server:
        dear = replace(config(server).llm, price=Price(input=100_000.0, output=100_000.0))
        # A judge at a hundred times the price, who only ranks.
        bandit = config(server, judge=dear, eliminate=("refusal",), choice="bandit", pilot=Pilot(lineages=12))
        shown = preview(bandit, tmp_path / "out", 12, progress=quiet)
        with pytest.raises(BudgetReached):
            generate(replace(bandit, budget=Budget(calls=12 * 5 + 20)), tmp_path / "out", progress=quiet)
        later = preview(bandit, tmp_path / "out", 12, progress=quiet)
        summary = generate(bandit, tmp_path / "out", progress=quiet)
    assert shown.forecast is not None
    assert later.forecast is not None
    ranking = sum(cost.usd for by_round in later.costs for cost in by_round.values()) - sum(
        cost.usd for by_round in shown.costs for cost in by_round.values()
    )
    assert ranking > 0.5 * summary["usd"]
    assert ranking < shown.forecast.middle < 2 * summary["usd"], (
        "4 bytes are taken for a token, where words are counted"
    )
    assert later.forecast.middle == pytest.approx(summary["usd"], rel=0.05), "it is paid, and known"


def test_a_preview_beyond_a_pilot_that_settled_nothing_yet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the first 12 seeds are the pilot .* look at no more than 12"):
        preview(BANDIT, tmp_path / "out", 13, progress=quiet)
    assert asked_of(tmp_path / "out") == 0


def test_the_command_line_shows_every_step_its_verdict_and_the_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.gin"
    file.write_text("seeds = @SimulatedSeeds\nseeds.count = 40\nllm = @Simulated\nrounds = 2\n")
    assert main(["evolve", str(file), "--out", str(tmp_path / "out"), "--preview", "5"]) == 0
    told = capsys.readouterr().out
    assert "5 of 40 seeds took" in told
    assert told.count("round 1") >= 5
    assert "Nothing more was spent" in told

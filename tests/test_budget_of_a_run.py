"""A run stops at its budget, leaves a valid data set, and goes on with a larger one as if it had never stopped."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_generate import files, over_http, quiet, replies, serving

from configs.folder import read_complete
from configs.loader import dump
from data_gen import shards
from data_gen.config import Budget, EvolveConfig, Faults, Measure, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.generate import generate
from data_gen.llm.server import SimulatedServer
from data_gen.side_by_side import BUDGET_SPENT, BudgetReached

FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05)
DOLLARS = Price(input=1_000_000.0, output=2_000_000.0)
CONCURRENCY = 8


def config(server: SimulatedServer, **changes: Any) -> EvolveConfig:
    base = over_http(
        server,
        seeds=SimulatedSeeds(count=16),
        rounds=3,
        concurrency=CONCURRENCY,
        max_tokens=256,
        measure=Measure(diversity_sample=0),
    )
    assert isinstance(base.llm, OpenAICompatible)
    return replace(base, **{"llm": replace(base.llm, price=DOLLARS), **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a budget."""
    out = tmp_path_factory.mktemp("whole") / "evolved"
    with serving(FAULTS) as server:
        generate(config(server), out, progress=quiet)
    return out


def paid(out: Path) -> list[tuple[int, float]]:
    """Tokens and dollars of every reply."""
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        return journal.execute("SELECT input_tokens + output_tokens, usd FROM outcomes").fetchall()


def total(out: Path, limit: str) -> float:
    """What a limit is about."""
    return {
        "calls": float(len(paid(out))),
        "tokens": float(sum(tokens for tokens, _ in paid(out))),
        "usd": sum(usd for _, usd in paid(out)),
    }[limit]


@pytest.mark.parametrize("limit", ["calls", "tokens", "usd"])
def test_at_its_budget_a_run_stops_with_a_valid_data_set_and_goes_on_to_the_same_bytes(
    limit: str, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def share(part: float) -> Any:
        return part * total(whole, limit) if limit == "usd" else round(part * total(whole, limit))

    with serving(FAULTS) as server:
        for most in (share(0.4), share(0.7)):
            with pytest.raises(BudgetReached, match=rf"budget\.{limit} = .* of 16 are left") as stopped:
                generate(config(server, budget=Budget(**{limit: most})), out, progress=quiet)
            assert stopped.value.exit_code == BUDGET_SPENT == 3
            assert not (out / "complete.json").exists()
            dearest = max(tokens if limit == "tokens" else usd for tokens, usd in paid(out))
            overshoot = 0 if limit == "calls" else CONCURRENCY * dearest
            assert 0.8 * most < total(out, limit) <= most + overshoot, "over all restarts together"
            records = list(shards.read_dataset(out))
            assert shards.verify(out).records == len(records) > 0
            assert {record.lineage for record in records} <= {f"{index:06d}" for index in range(16)}
            assert server.full_replies == replies(out)
        summary = generate(config(server, budget=Budget(**{limit: share(2)})), out, progress=quiet)
    assert server.full_replies == replies(out) == replies(whole), "nothing was asked twice, and nothing for nothing"
    assert files(out) == files(whole)
    assert summary["unfinished"] == 0
    once = read_complete(whole)
    assert {name: summary[name] for name in ("calls", "input_tokens", "output_tokens")} == {
        name: once[name] for name in ("calls", "input_tokens", "output_tokens")
    }
    assert summary["usd"] == pytest.approx(once["usd"])


def test_what_a_seed_came_to_before_the_budget_was_spent_is_in_the_data_set(whole: Path, tmp_path: Path) -> None:
    """One seed at a time: the last one open has some of its records, which are those that it ends with."""
    out = tmp_path / "out"
    with serving(FAULTS) as server, pytest.raises(BudgetReached):
        generate(config(server, concurrency=1, open_lineages=1, budget=Budget(calls=57)), out, progress=quiet)
    assert replies(out) == 57
    records = list(shards.read_dataset(out))
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        rows = journal.execute('SELECT payload, finished FROM lineages ORDER BY "index"').fetchall()
    assert [finished for _, finished in rows] == [1] * (len(rows) - 1) + [0]
    last = json.loads(rows[-1][0])
    assert 0 < len(last["records"]) + len(last["rejected"]) < 4
    ids = [record.id for record in records]
    assert ids == [record["id"] for payload, _ in rows for record in json.loads(payload)["records"]]
    ended = {record.id: record for record in shards.read_dataset(whole)}
    assert all(ended[record.id] == record for record in records)


def test_a_budget_for_less_than_one_record_is_spent_without_a_data_set(tmp_path: Path) -> None:
    with serving(FAULTS) as server:
        config_of_none = config(server, budget=Budget(usd=1.0))
        with pytest.raises(BudgetReached, match=r"budget\.usd = 1.* No record was made yet"):
            generate(config_of_none, tmp_path / "out", progress=quiet)
    assert server.requests == 0, "the first request may take more than that"
    assert not (tmp_path / "out" / "dataset").exists()


def test_what_was_lost_on_the_way_counts_over_restarts_too(tmp_path: Path) -> None:
    """It may have been billed, so a budget of calls holds for what the server was sent."""
    out = tmp_path / "out"
    with serving(replace(FAULTS, dropped=0.3)) as server:
        for calls in (20, 40, 60):
            with pytest.raises(BudgetReached):
                generate(config(server, budget=Budget(calls=calls)), out, progress=quiet)
            assert server.requests == calls


@pytest.mark.slow
def test_on_the_command_line_a_spent_budget_is_exit_code_3(tmp_path: Path) -> None:
    with serving(FAULTS) as server:
        (tmp_path / "config.gin").write_text(dump(config(server)))
        command = [sys.executable, "-m", "wizard_jax", "evolve", str(tmp_path / "config.gin"), "budget.calls=50"]
        stopped = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert stopped.returncode == 3
    assert "budget.calls = 50 has no room for another request" in stopped.stderr
    assert "of 16 are left" in stopped.stderr
    assert shards.verify(tmp_path / "out").records > 0


def test_the_model_in_this_process_is_free_and_its_calls_count(tmp_path: Path) -> None:
    config_of_calls = EvolveConfig(
        seeds=SimulatedSeeds(count=16), llm=Simulated(), budget=Budget(usd=1e-9, calls=30), measure=Measure()
    )
    with pytest.raises(BudgetReached, match=r"budget\.calls = 30"):
        generate(config_of_calls, tmp_path / "out", progress=quiet)
    assert replies(tmp_path / "out") == 30

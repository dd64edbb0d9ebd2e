"""A judge who is asked of the whole, after the shards: he stops, fails and spends as in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback import Scripted, http
from test_generate import FREE, files, quiet, replies, serving

from configs.folder import read_complete
from data_gen.beam.pipeline import evolve_on_beam
from data_gen.config import (
    Budget,
    EvolveConfig,
    Faults,
    Measure,
    OpenAICompatible,
    Price,
    Shard,
    Simulated,
    SimulatedSeeds,
)
from data_gen.generate import generate
from data_gen.llm import journal_file
from data_gen.llm.journal import JOURNAL
from data_gen.merge import merge
from data_gen.side_by_side import BudgetReached, RunError
from wizard_jax.cli import main

CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=40),
    llm=Simulated(),
    rounds=3,
    eliminate=("refusal", "empty_answer"),  # no shard asks the judge anything
    measure=Measure(difficulty_lineages=30, diversity_sample=0),
    max_attempts=1,
)
EVOLVING = 40 * 7
"""Requests of all shards, which none is dropped in."""
JUDGING = 30 * 5


def judged_at(base_url: str, **changes: Any) -> EvolveConfig:
    judge = OpenAICompatible(model="simulated-llm", base_url=base_url, api_key_env="", price=FREE)
    return replace(CONFIG, judge=judge, **changes)


def parts_of(config: EvolveConfig, folder: Path, *budgets: Budget, count: int = 2) -> list[Path]:
    """Finished shards of the run."""
    outs = [folder / f"part-{index}" for index in range(count)]
    for index, (out, budget) in enumerate(zip(outs, budgets or (Budget(),) * count, strict=True)):
        generate(replace(config, shard=Shard(index=index, count=count), budget=budget), out, progress=quiet)
    return outs


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[Scripted]:
    """A server that says the same to everybody, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Scripted(answer)
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield server
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_the_judge_of_a_merge_says_what_he_says_in_one_process(tmp_path: Path) -> None:
    with serving(Faults()) as server:
        config = judged_at(server.base_url)
        generate(config, tmp_path / "whole", progress=quiet)
        parts = parts_of(config, tmp_path)
        asked = server.requests
        summary = merge(parts, tmp_path / "merged")
        assert server.requests - asked == replies(tmp_path / "merged") == asked > 100
        assert merge(parts, tmp_path / "merged") == summary
        assert server.requests == 2 * asked, "a finished folder asks nothing"
    one = read_complete(tmp_path / "whole")
    assert summary["calls"] == one["calls"]
    assert summary["not_measured"] == one["not_measured"] == ""
    assert (tmp_path / "merged/measures.json").read_text() == (tmp_path / "whole/measures.json").read_text()
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_a_key_that_the_judge_refuses_is_told_of_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = http(401, {"error": {"message": "Incorrect API key", "type": "invalid_request_error"}})
    with answering(refused) as server:
        parts = parts_of(judged_at(f"{server.base_url}/v1"), tmp_path)
        assert main(["merge", *map(str, parts), "--out", str(tmp_path / "merged")]) == 2
    told = capsys.readouterr().err
    assert "the model can not be used: " in told
    assert "Incorrect API key" in told
    assert "mend this and start the same command again" in told
    assert not (tmp_path / "merged/complete.json").exists()


def test_a_judge_who_is_not_there_ends_the_merge_which_goes_on_when_he_is(tmp_path: Path) -> None:
    parts = parts_of(judged_at(nobody()), tmp_path)
    with pytest.raises(RunError, match=r"20 requests in a row were given up"):
        merge(parts, tmp_path / "merged")
    assert not (tmp_path / "merged/complete.json").exists()
    with serving(Faults()) as server:
        config = (parts[0] / "config.gin").read_text()
        address = next(line for line in config.splitlines() if line.startswith("judge.base_url"))
        (parts[0] / "config.gin").write_text(config.replace(address, f"judge.base_url = {server.base_url!r}"))
        assert "difficulty" in merge(parts, tmp_path / "merged") | read_measures(tmp_path / "merged")


def paid(out: Path) -> float:
    with contextlib.closing(journal_file.read_only(out / JOURNAL)) as journal:
        return journal_file.totals(journal).spent.usd


def read_measures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "measures.json").read_text())
    return found


def test_told_to_stop_a_merge_asks_the_judge_nothing_more(tmp_path: Path) -> None:
    with serving(Faults(), latency_seconds=0.1) as server:
        config = judged_at(server.base_url, concurrency=4)
        parts = parts_of(config, tmp_path)
        command = [sys.executable, "-m", "wizard_jax", "merge", *map(str, parts), "--out", str(tmp_path / "merged")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while server.requests < 8 and process.poll() is None:
            time.sleep(0.005)
        asked = server.requests
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 42, told
        assert "stopped as told" in told
        assert server.requests <= asked + 2 * config.concurrency
        assert replies(tmp_path / "merged") == server.requests, "all that was in flight came home"
        summary = merge(parts, tmp_path / "merged")
        assert server.requests == replies(tmp_path / "merged") == summary["asked"] + summary["from_journal"] - EVOLVING


# --- one budget


def test_what_the_shards_have_left_of_their_budgets_is_all_that_the_judge_may_spend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, judge=Simulated())
    budgets = Budget(calls=136, tokens=10**7), Budget(calls=EVOLVING + 20 - 136)
    parts = parts_of(config, tmp_path, *budgets)
    assert main(["merge", *map(str, parts), "--out", str(tmp_path / "merged")]) == 0
    told = capsys.readouterr().out
    assert f"about {JUDGING} requests to the judge of the finished records\n" in told, "before he is asked"
    assert "not measured: what a judge says: the budget was spent before" in told.splitlines()[-1]
    summary = read_complete(tmp_path / "merged")
    assert summary["calls"] == EVOLVING + 20
    assert summary["not_measured"] == "what a judge says: the budget was spent before"
    assert read_measures(tmp_path / "merged").keys() == {"duplicates"}
    assert "budget.calls = 300\n" in (tmp_path / "merged/config.gin").read_text()
    assert "budget.tokens = None\n" in (tmp_path / "merged/config.gin").read_text(), "one of them has no such limit"
    unlimited = merge(parts_of(config, tmp_path / "unlimited"), tmp_path / "unlimited/merged")
    assert unlimited["calls"] == EVOLVING + JUDGING


def test_no_shard_asks_the_judge_of_the_finished_records(tmp_path: Path) -> None:
    with serving(Faults()) as server:
        parts = parts_of(judged_at(server.base_url), tmp_path)
        assert server.requests == 0
    for part in parts:
        assert read_complete(part)["not_measured"] == "a shard is measured when it is merged with the others"
        assert read_measures(part) == {}


def test_the_judge_is_not_asked_where_the_budget_was_spent_before_the_last_seed(tmp_path: Path) -> None:
    """Also where he costs less than what had no room: what is left is for seeds."""
    with serving(Faults()) as seeds, serving(Faults()) as judges:
        llm = OpenAICompatible(
            model="simulated-llm", base_url=seeds.base_url, api_key_env="", price=Price(input=1000.0, output=1000.0)
        )
        config = judged_at(judges.base_url, llm=llm, budget=Budget(usd=5.0), concurrency=1, open_lineages=1)
        with pytest.raises(BudgetReached, match=r"budget\.usd = 5\.0"):
            generate(config, tmp_path / "out", progress=quiet)
        assert judges.requests == 0
        assert read_measures(tmp_path / "out").keys() == {"duplicates"}
        assert paid(tmp_path / "out") < 5.0, "there is room for one who costs nothing"
        summary = generate(
            replace(config, budget=Budget(), concurrency=32, open_lineages=0), tmp_path / "out", progress=quiet
        )
        assert judges.requests == JUDGING
    assert summary["not_measured"] == ""


def test_a_budget_of_a_pipeline_holds_for_its_shards_and_its_judge_together(tmp_path: Path) -> None:
    config = replace(CONFIG, judge=Simulated(), budget=Budget(calls=EVOLVING + 30))
    summary = evolve_on_beam(
        config, tmp_path / "out", work=tmp_path / "work", shards=2, progress=quiet, say=lambda _: None
    )
    assert summary["calls"] == EVOLVING + 30
    one = generate(config, tmp_path / "whole", progress=quiet)
    assert (one["calls"], one["not_measured"]) == (summary["calls"], summary["not_measured"])
    assert (tmp_path / "out/config.gin").read_text() == (tmp_path / "whole/config.gin").read_text()


def test_what_a_shard_asked_the_judge_is_not_asked_again_and_what_both_paid_is_added_up(tmp_path: Path) -> None:
    """With stop = 'lineage' shards ask for scores too; the page says what all of it came to."""
    with serving(Faults()) as server:
        llm = OpenAICompatible(
            model="simulated-llm", base_url=server.base_url, api_key_env="", price=Price(input=1000.0, output=1000.0)
        )
        config = replace(CONFIG, llm=llm, stop="lineage", seeds=SimulatedSeeds(count=12))
        one = generate(config, tmp_path / "whole", progress=quiet)
        asked = server.requests
        summary = merge(parts_of(config, tmp_path), tmp_path / "merged")
        assert server.requests == 2 * asked == 2 * one["calls"] == 2 * summary["calls"]
    assert summary["usd"] == pytest.approx(one["usd"])
    pages = [(tmp_path / name / "report.html").read_text() for name in ("whole", "merged")]
    whole, merged = (page.partition("Money and tokens")[2].partition("</table>")[0] for page in pages)
    assert "difficulty" in whole
    assert merged == whole

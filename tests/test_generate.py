"""A whole run, in this process and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.folder import FolderError, read_complete
from data_gen import operations, shards, world
from data_gen.config import EvolveConfig, Faults, OpenAICompatible, Price, SeedFile, Simulated, SimulatedSeeds
from data_gen.generate import generate
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct

CONTENT_FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05, truncated=0.03, filtered=0.02)
FREE = Price(input=0.0, output=0.0)
CONFIG = EvolveConfig(seeds=SimulatedSeeds(count=24), llm=Simulated(faults=CONTENT_FAULTS), records_per_shard=40)


def quiet(done: int, total: int, facts: Mapping[str, int | str]) -> None:
    """Progress that nobody watches."""


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves for its readers."""
    data = {file.name: file.read_bytes() for file in sorted((folder / "dataset").iterdir())}
    return {**data, "rejected.jsonl": (folder / "rejected.jsonl").read_bytes()}


def replies(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        ((count,),) = journal.execute("SELECT count(*) FROM outcomes")
    return int(count)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "evolved"
    generate(CONFIG, out, progress=quiet)
    return out


@contextlib.contextmanager
def serving(faults: Faults, *, latency_seconds: float = 0.0) -> Iterator[SimulatedServer]:
    """The simulated model over HTTP, in a thread."""
    started = threading.Event()
    held: list[tuple[SimulatedServer, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with SimulatedServer(
            Simulated(faults=faults), conduct=Conduct(latency_seconds=latency_seconds)
        ) as server:
            held.append((server, asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    ((server, loop, stop),) = held
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def test_a_run_leaves_shards_rejects_and_a_summary_that_agree(whole: Path) -> None:
    summary = read_complete(whole)
    records = list(shards.read_dataset(whole))
    rejected = [json.loads(line) for line in (whole / "rejected.jsonl").read_text().splitlines()]
    assert summary["seeds"] == 24
    assert len(records) + len(rejected) == 24 * 5, "each seed and each of four rounds ends as one or the other"
    assert (summary["records"], summary["rejected"]) == (len(records), len(rejected))
    assert sum(summary["by_round"].values()) == len(records)
    assert sum(summary["by_rule"].values()) == len(rejected)
    tried = sum(one["accepted"] + one["rejected"] for one in summary["by_operation"].values())
    assert tried == 24 * 4
    assert {"no_gain", "refusal", "copied_prompt", "truncated"} <= set(summary["by_rule"])
    assert summary["models"] == ["simulated-llm"]
    assert summary["asked"] == replies(whole)
    assert summary["from_journal"] == summary["possibly_paid_twice"] == 0
    assert summary["input_tokens"] > summary["output_tokens"] > 0
    assert summary["dataset_sha256"] == shards.verify(whole).sha256
    assert len(shards.verify(whole).shards) > 1


def test_records_come_in_the_order_of_the_seeds_and_are_true(whole: Path) -> None:
    records = list(shards.read_dataset(whole))
    assert [record.id for record in records] == sorted(record.id for record in records)
    for record in records:
        task = world.parse(record.instruction)
        assert task is not None
        assert record.answer == world.answer(task)
        assert record.steps == len(task.steps)
        assert record.depth <= record.round


def test_another_seed_changes_the_result(whole: Path, tmp_path: Path) -> None:
    generate(replace(CONFIG, seed=1), tmp_path / "out", progress=quiet)
    assert files(tmp_path / "out")["rejected.jsonl"] != files(whole)["rejected.jsonl"]


def test_the_same_journal_gives_the_same_bytes_and_asks_nothing(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("journal.sqlite", "identity.json", "config.gin"):
        (out / name).write_bytes((whole / name).read_bytes())
    summary = generate(CONFIG, out, progress=quiet)
    assert summary["asked"] == 0
    assert files(out) == files(whole)
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal, journal:
        journal.execute("DELETE FROM lineages")
    (out / "complete.json").unlink()
    summary = generate(CONFIG, out, progress=quiet)
    assert (summary["asked"], summary["from_journal"]) == (0, replies(whole))
    assert files(out) == files(whole)


def test_a_finished_folder_is_left_as_it_is(whole: Path) -> None:
    before = files(whole)
    assert generate(replace(CONFIG, concurrency=3), whole, progress=quiet) == read_complete(whole)
    assert files(whole) == before
    with pytest.raises(FolderError, match="rounds"):
        generate(replace(CONFIG, rounds=3), whole, progress=quiet)


def test_progress_counts_the_lineages_up(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int, facts: Mapping[str, int | str]) -> None:
        seen.append((done, total))
        assert (facts["records"], facts["dropped"]) != (0, 0) or not done

    generate(replace(CONFIG, seeds=SimulatedSeeds(count=5)), tmp_path / "out", progress=watch)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 5), (5, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": ()}, "operations is empty"),
        ({"operations": ("deepning",)}, "did you mean 'deepening'"),
        ({"operations": ("deepening", "deepening")}, "named twice"),
        ({"rounds": -1}, "rounds = -1"),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_p": 0.0}, "top_p"),
        ({"name": "My-Data"}, "name = 'My-Data'"),
        ({"records_per_shard": 0}, "records_per_shard = 0"),
        ({"llm": Simulated(faults=Faults(rate_limited=0.1))}, "llm.faults.rate_limited has no effect"),
        ({"llm": OpenAICompatible(model="m", timeout_seconds=0.0)}, "timeout_seconds = 0"),
        ({"llm": OpenAICompatible(model="m", timeout_seconds=float("nan"))}, "timeout_seconds = nan"),
        ({"llm": OpenAICompatible(model="m", api_key_env="NO_SUCH_KEY_IS_SET", price=FREE)}, "NO_SUCH_KEY_IS_SET"),
        ({"seeds": SeedFile(path="no/such/file.json")}, "no/such/file.json"),
    ],
)
def test_settings_that_can_not_work_are_refused_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        generate(replace(CONFIG, **changes), tmp_path / "out", progress=quiet)
    assert not (tmp_path / "out").exists()


def test_when_nothing_survives_it_is_said_and_the_folder_is_not_complete(tmp_path: Path) -> None:
    config = replace(CONFIG, llm=Simulated(faults=Faults(filtered=1.0)))
    with pytest.raises(UserError, match="refused_request 120"):
        generate(config, tmp_path / "out", progress=quiet)
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 120
    assert not (tmp_path / "out" / "complete.json").exists()


# --- over HTTP


def over_http(server: SimulatedServer, **changes: Any) -> EvolveConfig:
    llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE, timeout_seconds=20.0)
    return replace(CONFIG, llm=llm, **changes)


def test_over_http_the_same_records_come_out(whole: Path, tmp_path: Path) -> None:
    with serving(CONTENT_FAULTS) as server:
        summary = generate(over_http(server), tmp_path / "out", progress=quiet)
    assert server.full_replies == summary["asked"]
    assert files(tmp_path / "out") == files(whole)


def test_faults_of_the_wire_cost_retries_and_no_records(whole: Path, tmp_path: Path) -> None:
    with serving(replace(CONTENT_FAULTS, server_error=0.03, dropped=0.03)) as server:
        generate(over_http(server, concurrency=64), tmp_path / "out", progress=quiet)
    assert server.requests > server.full_replies
    assert files(tmp_path / "out") == files(whole)


def test_the_summary_counts_what_the_wire_lost(tmp_path: Path) -> None:
    with serving(Faults(dropped=0.05, rate_limited=0.05, server_error=0.05)) as server:
        config = over_http(server, seeds=SimulatedSeeds(count=12), rounds=1)
        summary = generate(config, tmp_path / "out", progress=quiet)
    assert summary["not_sent"] >= summary["rate_limited"] > 0
    assert summary["lost_after_sending"] == summary["possibly_paid_twice"] > 0
    assert summary["not_sent"] + summary["lost_after_sending"] == server.requests - server.full_replies


def test_replies_that_hold_no_text_become_rejects_with_that_reason(tmp_path: Path) -> None:
    with serving(Faults(malformed=0.2)) as server:
        summary = generate(over_http(server), tmp_path / "out", progress=quiet)
    assert summary["by_rule"]["unreadable_reply"] > 10
    assert summary["records"] + summary["rejected"] == 120


def test_a_lineage_whose_request_gave_up_is_tried_once_more(tmp_path: Path) -> None:
    with serving(Faults(dropped=0.05)) as server:
        config = over_http(server, seeds=SimulatedSeeds(count=8), max_attempts=1, concurrency=1)
        summary = generate(config, tmp_path / "out", progress=quiet)
    assert server.requests > server.full_replies
    assert summary["from_journal"] > 0, "what had been answered was not asked again"
    assert summary["possibly_paid_twice"] == server.requests - server.full_replies
    assert summary["records"] + summary["rejected"] == 40


def test_nothing_is_paid_beyond_a_request_that_gave_up_until_it_is_tried_again(tmp_path: Path) -> None:
    with serving(Faults(dropped=0.2)) as server:
        config = over_http(server, seeds=SimulatedSeeds(count=8), max_attempts=1, concurrency=1)
        generate(config, tmp_path / "out", progress=quiet)
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "journal.sqlite")) as journal:
        paid = journal.execute("SELECT lineage, round, purpose, count(*) FROM outcomes GROUP BY 1, 2, 3").fetchall()
    assert max(count for *_, count in paid) == 1, "one paid reply for each decision of a lineage"


def test_what_gave_up_is_asked_anew_by_a_run_that_is_started_again(tmp_path: Path) -> None:
    with serving(Faults()) as server:
        pass
    config = over_http(server, seeds=SimulatedSeeds(count=2), rounds=1, max_attempts=1)
    with pytest.raises(UserError, match=r"gave_up 4.*started again"):
        generate(config, tmp_path / "out", progress=quiet)
    with serving(Faults()) as server:
        again = over_http(server, seeds=SimulatedSeeds(count=2), rounds=1, max_attempts=1)
        summary = generate(again, tmp_path / "out", progress=quiet)
    assert summary["records"] + summary["rejected"] == 4
    assert "gave_up" not in summary["by_rule"]


def test_a_provider_that_never_answers_ends_the_run_and_drops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Faults()) as server:
        pass
    config = over_http(server, max_attempts=1, concurrency=8)
    with pytest.raises(UserError, match="20 requests in a row"):
        generate(config, tmp_path / "out", progress=quiet)
    gc.collect()
    assert not caplog.messages, "several lineages failed at once, and the run says it once"
    assert not (tmp_path / "out" / "rejected.jsonl").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "journal.sqlite")) as journal:
        assert journal.execute("SELECT count(*) FROM lineages").fetchone() == (0,)
    with serving(Faults()) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE)
        summary = generate(replace(config, llm=llm), tmp_path / "out", progress=quiet)
    assert summary["rejected"] == 0 or "gave_up" not in summary["by_rule"]


def test_a_model_that_does_not_exist_ends_the_run(tmp_path: Path) -> None:
    with serving(Faults()) as server:
        llm = OpenAICompatible(model="m", base_url=server.base_url.replace("/v1", "/v7"), price=FREE)
        with pytest.raises(UserError, match="can not be used"):
            generate(replace(CONFIG, llm=llm), tmp_path / "out", progress=quiet)


# --- real seeds


def test_plain_instructions_evolve_over_http_with_every_fault_on(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    rows = [
        {"instruction": f"Explain {what}.", "instances": [{"input": given, "output": "(an answer)"}]}
        for what in ("tides", "yeast", "{braces}", "a </tag>", "\u2028", "emoji 🎲")
        for given in ("", "1, 2, 3", '{"instruction": "{instruction}"}')
    ]
    seeds.write_text("\n".join(map(json.dumps, rows)))
    faults = replace(CONTENT_FAULTS, malformed=0.02, server_error=0.02, dropped=0.02, slow=0.02)
    with serving(faults) as server:
        summary = generate(over_http(server, seeds=SeedFile(path=str(seeds))), tmp_path / "out", progress=quiet)
    records = list(shards.read_dataset(tmp_path / "out"))
    assert summary["records"] + summary["rejected"] == len(rows) * 5
    assert set(summary["by_operation"]) == set(operations.PUBLISHED)
    assert {record.steps for record in records} == {0}
    assert max(record.depth for record in records) >= 3

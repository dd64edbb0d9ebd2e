"""`wizard evolve` as Beam pipelines: what one process makes, and no reply paid for twice, whatever fails."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from test_generate import CONTENT_FAULTS, FREE, files, quiet, replies, serving

from configs.errors import UserError
from configs.folder import FolderError, open_stage, read_complete, write_atomically
from configs.interrupt import Interrupted, StopFlag
from configs.loader import load
from data_gen import shards, world
from data_gen.beam import evolving
from data_gen.beam.evolving import divide, evolve_shard, shard_folder
from data_gen.beam.pipeline import evolve_on_beam
from data_gen.config import (
    Budget,
    EvolveConfig,
    Measure,
    OpenAICompatible,
    Price,
    SeedFile,
    Shard,
    Simulated,
    SimulatedSeeds,
)
from data_gen.generate import generate
from data_gen.llm.pricing import dollars
from data_gen.llm.server import SimulatedServer
from data_gen.records import Record
from data_gen.side_by_side import BudgetReached

CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=30),
    llm=Simulated(faults=CONTENT_FAULTS),
    records_per_shard=40,
    measure=Measure(difficulty_lineages=4, diversity_sample=0, duplicate_threshold=0.7),
)
COUNT = 4
IN_THREADS = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")


def on_beam(config: EvolveConfig, folder: Path, **arguments: Any) -> dict[str, Any]:
    arguments = {"shards": COUNT, "say": quiet_line, **arguments}
    return evolve_on_beam(config, folder / "out", work=folder / "work", progress=quiet, **arguments)


def quiet_line(line: str) -> None:
    """What nobody reads."""


def with_repeats(folder: Path, **measure: Any) -> EvolveConfig:
    """Seeds of which some come twice and some are test items."""
    tasks = world.sample_seeds(24, 0)
    seeds, tests = folder / "seeds.jsonl", folder / "test.jsonl"
    seeds.write_text("".join(json.dumps({"instruction": task}) + "\n" for task in tasks + tasks[::3]))
    tests.write_text("".join(json.dumps({"question": task}) + "\n" for task in tasks[::5]))
    settings = replace(CONFIG.measure, contamination_files=(str(tests),), **measure)
    return replace(CONFIG, seeds=SeedFile(path=str(seeds)), measure=settings)


def records_of(folder: Path) -> list[Record]:
    return list(shards.read_dataset(folder))


def test_the_pipelines_give_the_bytes_and_flags_of_one_process(tmp_path: Path) -> None:
    config = with_repeats(tmp_path)
    one = generate(config, tmp_path / "whole", progress=quiet)
    summary = on_beam(config, tmp_path)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(shards.verify(tmp_path / "out").shards) > 1
    flags = [flag for record in records_of(tmp_path / "out") for flag in record.flags]
    assert flags.count("duplicate") > 5
    assert flags.count("contaminated") > 5
    for name in ("measures.json", "seeds.sha256", "config.gin"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert {name for name in summary.keys() | one.keys() if summary.get(name) != one.get(name)} == {"shards"}
    assert on_beam(config, tmp_path) == summary == read_complete(tmp_path / "out")


def test_shuffled_and_with_what_repeats_dropped_the_records_are_those_of_one_process(tmp_path: Path) -> None:
    config = with_repeats(tmp_path, duplicates="drop", contamination="drop")
    one = generate(config, tmp_path / "whole", progress=quiet)
    summary = on_beam(config, tmp_path, shards=3, order="shuffled")
    assert summary["by_rule"] == one["by_rule"]
    assert {"duplicate", "contaminated"} <= summary["by_rule"].keys()
    there, here = records_of(tmp_path / "whole"), records_of(tmp_path / "out")
    assert sorted(here, key=lambda record: record.id) == there
    assert [record.lineage for record in here] != sorted(record.lineage for record in here)
    assert (tmp_path / "out/rejected.jsonl").read_bytes() == (tmp_path / "whole/rejected.jsonl").read_bytes()
    sizes = [shard.records for shard in shards.verify(tmp_path / "out").shards]
    assert sizes == [40] * (len(there) // 40) + [len(there) % 40] * (len(there) % 40 > 0)


def test_stopped_and_out_of_budget_pipelines_are_gone_on_with_and_no_reply_is_asked_for_twice(tmp_path: Path) -> None:
    with serving(CONTENT_FAULTS, latency_seconds=0.05) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE)
        unjudged = replace(CONFIG.measure, difficulty_lineages=0)
        config = replace(CONFIG, llm=llm, concurrency=2, measure=unjudged)
        stop = StopFlag()
        after(server, 60, lambda: setattr(stop, "exit_code", 42))
        with pytest.raises(Interrupted) as stopped:
            on_beam(config, tmp_path, stop=stop, options=IN_THREADS)
        assert stopped.value.exit_code == 42
        assert kept_replies(tmp_path) == server.requests, "all that was in flight came home"
        asked = server.requests
        with pytest.raises(BudgetReached, match=r"leaves nothing for each of 4"):
            on_beam(replace(config, budget=Budget(calls=asked + 3)), tmp_path, stop=StopFlag())
        with pytest.raises(FolderError, match=r"shard\.count: 4 -> 8"):
            on_beam(config, tmp_path, shards=8)
        with pytest.raises(BudgetReached, match=r"budget\.calls"):
            on_beam(replace(config, budget=Budget(calls=asked + 40)), tmp_path, stop=StopFlag())
        assert asked < kept_replies(tmp_path) == server.requests <= asked + 40
        summary = on_beam(replace(config, concurrency=32), tmp_path, stop=StopFlag())
        assert kept_replies(tmp_path) == server.requests == summary["calls"], "each was asked for once"
    generate(replace(config, llm=Simulated(faults=CONTENT_FAULTS)), tmp_path / "whole", progress=quiet)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def after(server: SimulatedServer, requests: int, do: Callable[[], object]) -> None:
    """Does it, in a thread, as soon as the server has had so many requests."""

    def wait() -> None:
        while server.requests < requests:
            time.sleep(0.005)
        do()

    threading.Thread(target=wait, daemon=True).start()


def kept_replies(folder: Path) -> int:
    return sum(replies(file.parent) for file in (folder / "work").glob("*/journal.sqlite"))


def dies_once(index: int, *, work: str, count: int) -> Iterator[int]:
    """A worker that is stopped half-way through its shard and lost; the next try meets no obstacle."""
    yield from evolve_shard(index, work=work, count=count)
    stop = Path(work) / evolving.STOP
    if stop.exists():
        stop.unlink()
        raise RuntimeError("this worker is lost")


def test_a_bundle_that_the_runner_tries_again_asks_nothing_that_its_journal_holds(tmp_path: Path) -> None:
    with serving(CONTENT_FAULTS, latency_seconds=0.05) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE)
        config = replace(CONFIG, llm=llm, concurrency=2, shard=Shard(index=0, count=2))
        with open_stage(tmp_path, config, stage="evolve-beam"):
            divide(Budget(), work=tmp_path, count=2)
            after(server, 20, lambda: write_atomically(tmp_path / evolving.STOP, "42\n"))
            with beam.Pipeline(BundleBasedDirectRunner(), PipelineOptions([])) as pipeline:
                pipeline | beam.Create([1]) | beam.FlatMap(dies_once, work=str(tmp_path), count=2)
    folder = shard_folder(tmp_path, index=1, count=2)
    summary = read_complete(folder)
    assert 20 <= summary["calls"] - summary["asked"] < summary["calls"], "the first try was half-way"
    assert replies(folder) == server.requests == summary["calls"]


def test_of_two_bundles_with_one_shard_the_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    config = replace(CONFIG, shard=Shard(index=0, count=2))
    folder = shard_folder(tmp_path, index=1, count=2)
    with open_stage(tmp_path, config, stage="evolve-beam"):
        divide(Budget(), work=tmp_path, count=2)
        with open_stage(folder, replace(config, shard=Shard(index=1, count=2)), stage="evolve"):
            with pytest.raises(FolderError, match="in use by process"):
                list(evolve_shard(1, work=str(tmp_path), count=2))
            told = evolving.unfinished(tmp_path, count=2)
            assert told[0] is None
            assert told[1] is not None
            assert "in use by process" in told[1].why
        assert list(evolve_shard(1, work=str(tmp_path), count=2)) == [1]
        assert list(evolving.unfinished(tmp_path, count=2)) == [0]


def test_a_model_that_can_not_be_used_is_told_of_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    llm = OpenAICompatible(model="m", api_key_env="NO_SUCH_KEY", price=FREE)
    with pytest.raises(UserError, match=r"(?s)2 of 2 shards are not finished; shard 0/2: .*NO_SUCH_KEY"):
        on_beam(replace(CONFIG, llm=llm), tmp_path, shards=2)


def test_what_no_pipeline_could_do_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    def refused(config: EvolveConfig, says: str, **arguments: Any) -> None:
        with pytest.raises(UserError, match=says):
            on_beam(config, arguments.pop("folder", tmp_path), **arguments)

    dataflow = ("--runner=DataflowRunner",)
    refused(CONFIG, "no folder: journals are SQLite files", folder=Path("gs://bucket/run"))
    refused(CONFIG, "at least 2", shards=1)
    refused(replace(CONFIG, shard=Shard(index=1, count=4)), "leave the setting out")
    refused(replace(CONFIG, choice="bandit"), "pilot of its own")
    refused(replace(CONFIG, seeds=SeedFile(path="tasks.jsonl")), "absolute path", options=dataflow)
    refused(CONFIG, r"apache_beam\[gcp\]|apache-beam\[gcp\]|project", options=dataflow)
    refused(replace(CONFIG, seeds=SimulatedSeeds(count=2)), "make fewer parts")
    assert not list(tmp_path.rglob("journal.sqlite"))


def test_a_folder_that_is_another_s_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serving(CONTENT_FAULTS) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE)
        config = replace(CONFIG, llm=llm)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("Mine.")
        with pytest.raises(FolderError, match=r"out: holds thesis\.tex and is no stage's folder"):
            on_beam(config, tmp_path)
        with pytest.raises(UserError, match="--work and --out are both"):
            evolve_on_beam(
                config, tmp_path / "one", work=tmp_path / "a/../one", shards=2, progress=quiet, say=quiet_line
            )
        assert server.requests == 0
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_a_pipeline_tells_what_to_expect_and_what_all_shards_have_spent(tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    seen: list[Mapping[str, Any]] = []

    def watch(done: int, total: int, facts: Mapping[str, Any]) -> None:
        seen.append({**facts, "done": done, "total": total})

    with serving(replace(CONTENT_FAULTS, rate_limited=0.02), latency_seconds=0.02) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=Price(input=1e4, output=1e4))
        config = replace(CONFIG, llm=llm, concurrency=2, budget=Budget(calls=200))

        def run(budget: Budget) -> dict[str, Any]:
            return evolve_on_beam(
                replace(config, budget=budget),
                tmp_path / "out",
                work=tmp_path / "work",
                shards=2,
                progress=watch,
                say=lambda line: said.append((server.requests, line)),
                stop=StopFlag(),
            )

        with pytest.raises(BudgetReached):
            run(Budget(calls=200))
        assert [before for before, _ in said] == [0, 0]
        assert said[0][1].startswith("about 414 requests if nothing is dropped early, "), "of all, and of the judge"
        assert said[1][1].startswith("about $")
        assert (seen[-1]["done"], seen[-1]["total"], seen[-1]["requests"]) == (0, 2, 200)
        summary = run(Budget())
    shards_of = [read_complete(shard_folder(tmp_path / "work", index=index, count=2)) for index in range(2)]
    last = seen[-1]
    assert (last["done"], last["requests"]) == (2, sum(one["calls"] for one in shards_of))
    assert last["429s"] == sum(one["rate_limited"] for one in shards_of) > 0
    assert last["spent"] == dollars(sum(one["usd"] for one in shards_of))
    assert last["requests"] < summary["calls"], "there is the judge of what all have made"
    assert re.match(r"about \d\d requests to the judge of the finished records, about \$", said[-1][1])
    assert any(0 < one["requests"] < 200 for one in seen), "not only in the end"


def test_workers_read_the_settings_of_the_whole_from_the_work_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on a disk that every worker mounts"):
        list(evolve_shard(0, work=str(tmp_path / "elsewhere"), count=2))
    with open_stage(tmp_path, CONFIG, stage="evolve-beam"):
        assert load(EvolveConfig, [tmp_path / "config.gin"]) == CONFIG

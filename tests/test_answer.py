"""`wizard answer`: instructions and lineage stay, answers are new; budget, stops and damage as in any run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from signalled import stop_after
from test_generate import files, quiet, replies, serving

from configs.errors import UserError
from configs.folder import FolderError
from configs.loader import dump
from data_gen import finish, shards, world
from data_gen.answer import AnswerError, answer
from data_gen.config import (
    AnswerConfig,
    Budget,
    EvolveConfig,
    Faults,
    Measure,
    OpenAICompatible,
    Price,
    Simulated,
    SimulatedSeeds,
)
from data_gen.generate import generate
from data_gen.llm.server import SimulatedServer
from data_gen.records import Record
from data_gen.side_by_side import BudgetReached

FAULTS = Faults(refusal=0.1, empty=0.05)
QUICK = Measure(diversity_sample=0)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answer") / "evolved"
    seeds = SimulatedSeeds(count=20)
    generate(EvolveConfig(seeds=seeds, llm=Simulated(faults=FAULTS), rounds=3, measure=QUICK), out, progress=quiet)
    return out


def config(evolved: Path, **changes: Any) -> AnswerConfig:
    return replace(AnswerConfig(dataset=str(evolved), llm=Simulated(), measure=QUICK), **changes)


def over_http(evolved: Path, server: SimulatedServer, **changes: Any) -> AnswerConfig:
    llm = OpenAICompatible(
        model="simulated-llm", base_url=server.base_url, price=Price(input=1_000_000.0, output=1_000_000.0)
    )
    return config(evolved, llm=llm, **changes)


def asked_again(record: Record, answered: Record) -> bool:
    """Whether the second is the first but for its answer."""
    return replace(answered, turns=record.turns, model=record.model, flags=record.flags) == record


def test_instructions_and_lineage_stay_and_every_answer_is_new(evolved: Path, tmp_path: Path) -> None:
    summary = answer(config(evolved, style="brief"), tmp_path / "out", progress=quiet)
    before, after = list(shards.read_dataset(evolved)), list(shards.read_dataset(tmp_path / "out"))
    assert len(before) == len(after) == summary["records"] == summary["asked"]
    for record, answered in zip(before, after, strict=True):
        assert asked_again(record, answered)
        assert (answered.instruction, answered.context) == (record.instruction, record.context)
        task = world.parse(record.instruction)
        assert task is not None
        assert answered.answer == world.result(world.answer(task))
    assert max(Counter(record.id for record in after).values()) == 1
    assert summary["seeds"] == len({record.lineage for record in before})
    assert summary["answered_from_sha256"] == shards.verify(evolved).sha256


@pytest.mark.parametrize("rounds", [(0,), (1, 3)])
def test_only_the_rounds_asked_for_are_answered(rounds: tuple[int, ...], evolved: Path, tmp_path: Path) -> None:
    answer(config(evolved, rounds=rounds), tmp_path / "out", progress=quiet)
    ids = [record.id for record in shards.read_dataset(evolved) if record.round in rounds]
    assert [record.id for record in shards.read_dataset(tmp_path / "out")] == ids


def test_each_style_asks_for_answers_of_another_length(evolved: Path, tmp_path: Path) -> None:
    words: dict[str, float] = {}
    for style, count in (("brief", 0), ("plain", 0), ("detailed", 0), ("length", 30)):
        out = tmp_path / style
        answer(config(evolved, style=style, words=count, rounds=(2,)), out, progress=quiet)
        lengths = [len(record.answer.split()) for record in shards.read_dataset(out)]
        words[style] = sum(lengths) / len(lengths)
    assert words["brief"] < words["plain"] < words["detailed"]
    assert words["length"] > words["plain"]


def test_what_is_answered_badly_is_dropped_with_its_reason(evolved: Path, tmp_path: Path) -> None:
    summary = answer(config(evolved, llm=Simulated(faults=FAULTS), seed=3), tmp_path / "out", progress=quiet)
    assert set(summary["by_rule"]) == {"refusal", "empty_answer"}
    assert summary["records"] + summary["rejected"] == shards.verify(evolved).records
    off = answer(config(evolved, llm=Simulated(faults=FAULTS), seed=3, eliminate=()), tmp_path / "off", progress=quiet)
    assert off["by_rule"].keys() == {"empty_answer"}, "an answer that is not there is none"


def test_another_model_answers_and_is_named(evolved: Path, tmp_path: Path) -> None:
    with serving(Faults()) as server:
        summary = answer(over_http(evolved, server), tmp_path / "out", progress=quiet)
        again = answer(over_http(evolved, server), tmp_path / "out", progress=quiet)
    assert server.full_replies == shards.verify(evolved).records == summary["asked"]
    assert again == summary
    assert summary["usd"] == pytest.approx(summary["input_tokens"] + summary["output_tokens"])


def test_what_is_to_be_expected_is_told_before_anything_is_sent(evolved: Path, tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    with serving(Faults()) as server:

        def say(line: str) -> None:
            said.append((server.requests, line))

        summary = answer(over_http(evolved, server), tmp_path / "out", progress=quiet, say=say)
    (before, requests), (_, money) = said
    assert before == 0
    assert requests.startswith(f"about {summary['asked']:,} requests if nothing is dropped early, ")
    assert money.startswith("about $")


def test_started_again_it_has_spent_what_it_had(evolved: Path, tmp_path: Path) -> None:
    with serving(Faults()) as server:
        for calls in (20, 30):
            with pytest.raises(BudgetReached, match=rf"budget\.calls = {calls} .* {calls} calls spent"):
                answer(over_http(evolved, server, budget=Budget(calls=calls)), tmp_path / "out", progress=quiet)
            assert server.full_replies == replies(tmp_path / "out") == calls


def test_at_its_budget_it_stops_with_a_valid_data_set_and_goes_on(evolved: Path, tmp_path: Path) -> None:
    out, total = tmp_path / "out", shards.verify(evolved).records
    answer(config(evolved), tmp_path / "whole", progress=quiet)
    with serving(Faults()) as server:
        with pytest.raises(BudgetReached, match=rf"budget\.calls = 30 .* {total - 30} of {total} are left"):
            answer(over_http(evolved, server, budget=Budget(calls=30)), out, progress=quiet)
        assert shards.verify(out).records == 30
        answer(over_http(evolved, server), out, progress=quiet)
        assert server.full_replies == replies(out) == total
    assert files(out) == files(tmp_path / "whole")


CHILD = """
import sys
from pathlib import Path
from configs.interrupt import Interrupted
from configs.loader import load
from data_gen.config import AnswerConfig
from data_gen.answer import answer

try:
    answer(load(AnswerConfig, [sys.argv[1]]), Path(sys.argv[2]), progress=lambda done, total, facts: None)
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_or_killed_it_goes_on_to_the_same_bytes(number: int, evolved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer(config(evolved), tmp_path / "whole", progress=quiet)
    with serving(Faults(), latency_seconds=0.02) as server:
        slowly = over_http(evolved, server, concurrency=4)
        (tmp_path / "answer.gin").write_text(dump(slowly))
        command = [sys.executable, "-c", CHILD, str(tmp_path / "answer.gin"), str(out)]
        ended = stop_after(server, 25, subprocess.Popen(command, env=os.environ), number)
        assert ended == (42 if number == signal.SIGTERM else -signal.SIGKILL)
        assert not (out / "complete.json").exists()
        summary = answer(slowly, out, progress=quiet)
        extra = server.full_replies - replies(out)
    assert 0 <= extra <= (0 if number == signal.SIGTERM else 4)
    assert summary["from_journal"] <= 4, "only what was in flight is looked up"
    assert files(out) == files(tmp_path / "whole")


def test_a_data_set_that_changed_in_between_is_not_answered_in_part(evolved: Path, tmp_path: Path) -> None:
    copied, out = shutil.copytree(evolved, tmp_path / "copied"), tmp_path / "out"
    with pytest.raises(BudgetReached):
        answer(config(copied, budget=Budget(calls=10)), out, progress=quiet)
    records = list(shards.read_dataset(copied))
    write(copied / finish.DATASET, records[1:])
    with pytest.raises(AnswerError, match=r"copied is not the data set that .*out was begun with"):
        answer(config(copied), out, progress=quiet)
    write(copied / finish.DATASET, records)
    assert answer(config(copied), out, progress=quiet)["records"] == len(records)


def write(folder: Path, records: Sequence[Record]) -> None:
    shards.write_dataset(
        records, folder, name="evolved", count=len(records), records_per_shard=10_000, description="A test's."
    )


def test_a_damaged_or_missing_data_set_or_round_is_named_before_anything_is_made(evolved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(AnswerError, match=r"has no record of the rounds \(7,\)"):
        answer(config(evolved, rounds=(7,)), out, progress=quiet)
    with pytest.raises(UserError, match="no folder"):
        answer(config(tmp_path / "nowhere"), out, progress=quiet)
    copied = shutil.copytree(evolved, tmp_path / "copied")
    shard = next((copied / finish.DATASET).glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=shard.name):
        answer(config(copied), out, progress=quiet)
    assert not out.exists()


def test_a_folder_of_other_settings_is_not_gone_on_with(evolved: Path, tmp_path: Path) -> None:
    answer(config(evolved), tmp_path / "out", progress=quiet)
    with pytest.raises(FolderError, match="style"):
        answer(config(evolved, style="brief"), tmp_path / "out", progress=quiet)


def test_what_was_answered_can_be_answered_again(evolved: Path, tmp_path: Path) -> None:
    answer(config(evolved, style="brief"), tmp_path / "brief", progress=quiet)
    answer(config(tmp_path / "brief"), tmp_path / "plain", progress=quiet)
    answer(config(evolved), tmp_path / "once", progress=quiet)
    assert list(shards.read_dataset(tmp_path / "plain")) == list(shards.read_dataset(tmp_path / "once"))

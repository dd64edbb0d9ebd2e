"""`wizard evolve`, told to stop at random moments: all that was sent comes home, nothing is sent twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from run_files import files, left_behind, unwatched
from served import Served, serving
from wizard_children import Parent, parent_of_wizards, until

from configs.folder import read_complete
from configs.loader import dump
from data_gen.config import EvolveConfig, Faults, Measure, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.generate import generate

FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05, truncated=0.03, filtered=0.02)
CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=100),
    llm=Simulated(faults=FAULTS),
    measure=Measure(diversity_sample=0, duplicates="off"),
    concurrency=16,
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_wizards(tmp_path_factory.mktemp("wizards")) as parent:
        yield parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    generate(CONFIG, out, progress=unwatched)
    return out


def evolving(served: Served, folder: Path) -> list[str | Path]:
    """The command that evolves over HTTP into `folder`."""
    price = Price(input=1.0, output=1.0)
    llm = OpenAICompatible(model="simulated-llm", base_url=served.server.base_url, price=price)
    (folder / "config.gin").write_text(dump(replace(CONFIG, llm=llm)))
    return ["evolve", folder / "config.gin", "--out", folder / "out"]


def stopped_again_and_again(whole: Path, folder: Path, parent: Parent, *, signals: list[int]) -> None:
    draws = random.Random(len(signals))
    requests = read_complete(whole)["asked"]
    moments = [0, *sorted(draws.choices(range(int(requests * 0.35)), k=len(signals)))]
    with serving(FAULTS, latency_seconds=0.05, latency_spread=0.5) as served:
        came, answered = served.asked.came, served.asked.answered
        command = evolving(served, folder)
        for number, earlier, moment in zip(signals, moments, moments[1:], strict=False):
            child = parent.start(command)
            begun = came.total()
            until(lambda child=child: "evolve " in child.output)
            until(lambda goal=begun + moment - earlier: came.total() >= goal)
            time.sleep(draws.uniform(0.0, 0.03))
            child.send(number)
            assert child.wait() == {signal.SIGTERM: 42, signal.SIGINT: 130}[signal.Signals(number)], child.output
            assert "everything done so far is saved: run the same command to go on" in child.output
            assert "Traceback" not in child.output
            left = left_behind(folder / "out", folder / "copy")
            assert (left.marks, left.counted) == (0, 0), "something that was sent is not accounted for"
            assert came.total() == answered.total() == len(left.journalled), "all that was sent came home"
            assert not (folder / "out" / "complete.json").exists()
        code, output = parent.run(command)
        assert code == 0, output
        assert came.total() == answered.total() == len(came) == requests, "0 extra requests"
    assert read_complete(folder / "out")["possibly_paid_twice"] == 0
    assert files(folder / "out") == files(whole)


def test_20_times_sigterm_ends_with_42_and_costs_0_extra_requests(whole: Path, tmp_path: Path, parent: Parent) -> None:
    stopped_again_and_again(whole, tmp_path, parent, signals=[signal.SIGTERM] * 20)


def test_5_times_ctrl_c_ends_with_130_and_costs_0_extra_requests(whole: Path, tmp_path: Path, parent: Parent) -> None:
    stopped_again_and_again(whole, tmp_path, parent, signals=[signal.SIGINT] * 5)


def test_a_second_ctrl_c_ends_at_once_with_130_and_what_was_in_flight_is_counted(
    whole: Path, tmp_path: Path, parent: Parent
) -> None:
    with serving(FAULTS, latency_seconds=20.0) as served:
        child = parent.start(evolving(served, tmp_path))
        until(lambda: served.asked.open == 16)
        child.send(signal.SIGINT)
        time.sleep(0.3)
        assert served.asked.open == 16, "it waits for what is on the wire"
        child.send(signal.SIGINT)
        began = time.monotonic()
        assert child.wait() == 130, child.output
        assert time.monotonic() - began < 5.0
        assert "Traceback" not in child.output
    with serving(FAULTS) as served:
        code, output = parent.run(evolving(served, tmp_path))
    assert code == 0, output
    assert read_complete(tmp_path / "out")["possibly_paid_twice"] == 16
    assert files(tmp_path / "out") == files(whole)


def test_told_to_stop_while_a_reply_is_too_slow_it_is_counted_as_possibly_paid_twice(
    tmp_path: Path, parent: Parent
) -> None:
    with serving(FAULTS, latency_seconds=60.0) as served:
        child = parent.start([*evolving(served, tmp_path), "llm.timeout_seconds=3.0"])
        until(lambda: served.asked.open == 16)
        child.send(signal.SIGTERM)
        assert child.wait() == 42, child.output
        left = left_behind(tmp_path / "out", tmp_path / "copy")
        assert left.marks + left.counted == 16
        assert served.asked.came.total() == 16, "nothing is sent again once it was told to stop"

"""`wizard evolve`, killed at random moments: nothing that was paid for is lost or asked for again.

The server stands in this process and counts what came and what it answered in full, request by request; the journal
is looked at as each killed process left it.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from run_files import Left, files, left_behind, unwatched
from served import Served, serving
from wizard_children import Child, Parent, parent_of_wizards, until

from configs.folder import read_complete
from configs.loader import dump
from data_gen.config import EvolveConfig, Faults, Measure, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.evolve import keyed_number
from data_gen.generate import generate

CONCURRENCY = 16
UNMEASURED = Measure(diversity_sample=0, duplicates="off")
FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05, truncated=0.03, filtered=0.02)


def killed_again_and_again(tmp_path: Path, parent: Parent, *, kills: int, seeds: int, least: int) -> None:
    config = EvolveConfig(
        seeds=SimulatedSeeds(count=seeds),
        llm=Simulated(faults=FAULTS),
        measure=UNMEASURED,
        concurrency=CONCURRENCY,
    )
    whole = generate(config, tmp_path / "whole", progress=unwatched)
    requests = whole["asked"]
    assert requests >= least
    draws = random.Random(kills)
    out, settings = tmp_path / "out", tmp_path / "config.gin"
    moments = [0, *sorted(draws.choices(range(int(requests * 0.8)), k=kills))]
    with serving(FAULTS, latency_seconds=0.02, latency_spread=0.7) as served:
        llm = OpenAICompatible(
            model="simulated-llm", base_url=served.server.base_url, price=Price(input=1.0, output=1.0)
        )
        settings.write_text(dump(replace(config, llm=llm)))
        command = ["evolve", settings, "--out", out]
        before = Left(frozenset(), 0, 0)
        for earlier, moment in pairwise(moments):
            before = kill_once(
                lambda: parent.start(command), served, out, more=moment - earlier, before=before, draws=draws
            )
        code, output = parent.run(command)
    assert code == 0, output
    came, answered = served.asked.came, served.asked.answered
    assert len(came) == requests, "every request of the whole run came, and no other"
    extra = came.total() - requests
    lost = answered.total() - requests
    counted = read_complete(out)["possibly_paid_twice"]
    assert 0 < extra <= CONCURRENCY * kills, "at least one kill found something in flight"
    assert lost <= counted <= CONCURRENCY * kills
    assert files(out) == files(tmp_path / "whole")
    print(f"{kills} kills, {requests} requests: {extra} extra, {lost} of them paid twice, {counted} counted")


def kill_once(
    start: Callable[[], Child],
    served: Served,
    out: Path,
    *,
    more: int,
    before: Left,
    draws: random.Random,
    drawn_from: Callable[..., int] = keyed_number,
) -> Left:
    """Kills a run when so many more requests have come; 0: before any has."""
    asked = served.asked
    came = asked.came.copy()
    child = start()
    if more:
        until(lambda: asked.came.total() >= came.total() + more)
        time.sleep(draws.uniform(0.0, 0.03))
    else:
        time.sleep(draws.uniform(0.0, 0.5))
    assert child.killed() == -9, child.output
    until(lambda: not asked.open)
    time.sleep(0.005)
    after = left_behind(out, out.with_name("copy"), drawn_from=drawn_from)
    assert before.journalled <= after.journalled, "a reply was lost"
    again = [seed for seed in before.journalled if asked.came[seed] != came[seed]]
    assert not again, "a journalled reply was asked for again"
    assert asked.came.total() - came.total() - len(after.journalled - before.journalled) <= CONCURRENCY
    assert after.marks <= CONCURRENCY
    unjournalled = asked.answered.total() - sum(1 for seed in after.journalled if asked.answered[seed])
    assert unjournalled <= after.counted + after.marks, "the run's own count of what may be paid twice is too low"
    return after


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_wizards(tmp_path_factory.mktemp("wizards")) as parent:
        yield parent


def test_20_hard_kills_lose_nothing_and_ask_for_no_journalled_reply_again(tmp_path: Path, parent: Parent) -> None:
    killed_again_and_again(tmp_path, parent, kills=20, seeds=100, least=1000)


def test_10_hard_kills_while_what_comes_out_is_written_leave_all_of_it_or_a_run_that_goes_on(
    tmp_path: Path, parent: Parent
) -> None:
    config = EvolveConfig(
        seeds=SimulatedSeeds(count=24), llm=Simulated(faults=FAULTS), measure=UNMEASURED, records_per_shard=9
    )
    whole, out, settings = tmp_path / "whole", tmp_path / "out", tmp_path / "config.gin"
    settings.write_text(dump(config))
    began = time.monotonic()
    generate(config, whole, progress=unwatched)
    seconds = time.monotonic() - began
    draws = random.Random(10)
    for _ in range(10):
        shutil.rmtree(out / "dataset", ignore_errors=True)
        (out / "complete.json").unlink(missing_ok=True)
        child = parent.start(["evolve", settings, "--out", out])
        until(lambda child=child: "evolve 24/24" in child.output)
        time.sleep(draws.uniform(0.0, seconds / 2))
        child.killed()
        if (out / "complete.json").exists():
            assert files(out) == files(whole)
    code, output = parent.run(["evolve", settings, "--out", out])
    assert code == 0, output
    assert files(out) == files(whole)


@pytest.mark.slow
def test_200_hard_kills_over_5000_requests_lose_nothing_and_ask_for_no_journalled_reply_again(
    tmp_path: Path, parent: Parent
) -> None:
    killed_again_and_again(tmp_path, parent, kills=200, seeds=480, least=5000)

"""The same settings give the same bytes, whatever came first: any concurrency, any order of replies, any restart."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from run_files import files, unwatched
from served import serving

from configs.folder import open_stage, read_complete
from configs.interrupt import StopFlag
from data_gen import sources
from data_gen.config import EvolveConfig, Faults, Measure, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.evolve import rounds_of
from data_gen.generate import generate
from data_gen.llm.budget import Charged, Ledger
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.pacing import Pacing
from data_gen.llm.pricing import Prices
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.llm.stack import Stack
from data_gen.llm.standstill import Standstill
from data_gen.records import Record
from data_gen.run import Run, Work

FAULTS = Faults(unchanged=0.1, refusal=0.05, copied_prompt=0.05, empty=0.05, truncated=0.03, filtered=0.02)
SEEDS = 24
CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=SEEDS),
    llm=Simulated(faults=FAULTS),
    measure=Measure(diversity_sample=0, duplicates="off"),
    records_per_shard=40,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    generate(CONFIG, out, progress=unwatched)
    return out


@dataclass(frozen=True)
class Delayed:
    """A `ChatModel` that keeps every reply for a time drawn at random, and notes in which order they went home."""

    inner: ChatModel
    draws: random.Random
    order: list[str]

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = await self.inner.complete(request)
        await asyncio.sleep(self.draws.uniform(0.0, 0.01))
        self.order.append(request.digest)
        return reply


async def evolve_delayed(journal: Journal, *, seed: int, concurrency: int) -> list[str]:
    """Finishes every lineage in the journal; returns the order in which replies came."""
    draws = random.Random(seed)
    ledger, order = Ledger(CONFIG.budget), list[str]()
    delayed = Delayed(SimulatedChatModel(Simulated(faults=FAULTS)), draws, order)
    charged = Charged(journal.marked(delayed), prices=Prices(CONFIG.llm), ledger=ledger)
    pacing = Pacing(journal.wrap(charged), concurrency=concurrency, max_attempts=1)
    stack = Stack(model=pacing, ledger=ledger, standstill=Standstill(), pacings=(pacing,), batches=())
    run = Run(journal=journal, stack=stack, progress=unwatched, stop=StopFlag(), total=SEEDS)

    def pieces() -> Iterator[tuple[int, Record]]:
        shuffled = [(int(record.lineage), record) for record in sources.iter_seeds(CONFIG.seeds, shard=CONFIG.shard)]
        draws.shuffle(shuffled)  # the order of the seeds is nobody's business either
        return iter(shuffled)

    work = Work(
        total=SEEDS,
        pieces=pieces,
        outcomes=lambda record, model: rounds_of(record, model=model, config=CONFIG),
        open_at_once=2 * concurrency,
    )
    async with run.going_on():
        await run.through(work)
    return order


def test_20_orders_of_replies_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    expected = files(whole)
    orders: set[tuple[str, ...]] = set()
    for seed in range(20):
        out = tmp_path / f"{seed}"

        async def run(out: Path, seed: int) -> list[str]:
            async with Journal.open(out / JOURNAL) as journal:
                return await evolve_delayed(journal, seed=seed, concurrency=random.Random(seed).choice((8, 16, 64)))

        with open_stage(out, CONFIG, stage="evolve"):
            orders.add(tuple(asyncio.run(run(out, seed))))
        assert generate(CONFIG, out, progress=unwatched)["asked"] == 0
        assert files(out) == expected
    assert len(orders) == 20
    assert len({frozenset(order) for order in orders}) == 1, "the same requests, in 20 orders"


@pytest.mark.parametrize("concurrency", [1, 16, 256])
def test_concurrency_changes_no_byte(concurrency: int, whole: Path, tmp_path: Path) -> None:
    generate(replace(CONFIG, concurrency=concurrency), tmp_path / "out", progress=unwatched)
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize("concurrency", [1, 16, 256])
def test_concurrency_changes_no_byte_over_http_with_uneven_latency_and_lost_replies(
    concurrency: int, whole: Path, tmp_path: Path
) -> None:
    faults = replace(FAULTS, dropped=0.01)
    with serving(faults, latency_seconds=0.002, latency_spread=1.5, seed=concurrency) as served:
        price = Price(input=0.0, output=0.0)
        llm = OpenAICompatible(model="simulated-llm", base_url=served.server.base_url, price=price)
        generate(replace(CONFIG, llm=llm, concurrency=concurrency), tmp_path / "out", progress=unwatched)
        assert served.asked.came.total() > served.asked.answered.total(), "some replies were lost on the way"
    assert files(tmp_path / "out") == files(whole)


def test_the_same_journal_gives_the_same_bytes_with_or_without_what_was_made_of_it(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (JOURNAL, "identity.json", "config.gin"):
        shutil.copy(whole / name, out)
    assert generate(CONFIG, out, progress=unwatched)["asked"] == 0
    assert files(out) == files(whole)
    for name in ("measures.json", "README.md"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for name in ("report.html", "rejected.jsonl", "measures.json", "README.md", "complete.json"):
        (out / name).unlink()
    (out / "dataset" / "manifest.json").write_text("{}")
    generate(CONFIG, out, progress=unwatched)
    assert files(out) == files(whole)
    assert read_complete(out)["dataset_sha256"] == read_complete(whole)["dataset_sha256"]

"""A batch job that can not be found any more: nothing is paid for again unasked, and there is a way on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from batch_provider import Provider

from configs.errors import UserError
from data_gen.config import (
    Budget,
    EvolveConfig,
    OpenAIBatch,
    OpenAICompatible,
    Price,
    Simulated,
    SimulatedSeeds,
)
from data_gen.llm import jobs_file
from data_gen.llm.batch import BatchChat
from data_gen.llm.batch_service import LostJobs
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import ChatReply, ChatRequest, Message, Permanent, RequestKey
from data_gen.llm.jobs_file import Job
from data_gen.llm.journal import Journal
from data_gen.llm.server import SimulatedServer
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.llm.stack import Sending, cast, open_stack, prepare
from data_gen.llm.standstill import Standstill

LIMITS = OpenAIBatch(poll_seconds=0.01)
REQUESTS = [
    ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model="m",
        messages=(Message("user", f"Name {number} primes."),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )
    for number in range(10)
]


class Opened:
    """A journal and a batch model of one process."""

    def __init__(self, journal: Journal, batch: BatchChat, standstill: Standstill) -> None:
        self.journal, self.batch, self._standstill = journal, batch, standstill
        self._model = journal.wrap(batch, sends="in jobs")

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        async def one(request: ChatRequest) -> ChatReply:
            with self._standstill.lineage():
                return await self._model.complete(request)

        return await asyncio.gather(*(one(request) for request in requests))


@contextlib.asynccontextmanager
async def process(path: Path, provider: Provider, *, lost_jobs: LostJobs = "stop") -> AsyncIterator[Opened]:
    standstill = Standstill(settle_seconds=0.01)
    async with (
        asyncio.timeout(30),
        Journal.open(path / "journal.sqlite") as journal,
        BatchChat(provider, journal=journal, standstill=standstill, limits=LIMITS, lost_jobs=lost_jobs) as batch,
    ):
        yield Opened(journal, batch, standstill)


async def begun(path: Path, provider: Provider) -> None:
    """A process that is told to stop while it waits for its job."""
    provider.looks_until_done = 10**9
    async with process(path, provider) as held:
        asking = asyncio.create_task(held.ask_all(REQUESTS))
        while not provider.looked:  # noqa: ASYNC110 -- what is waited for knows of no event
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    provider.looks_until_done = 0


async def online() -> list[ChatReply]:
    return [await SimulatedChatModel(Simulated()).complete(request) for request in REQUESTS]


def test_a_job_that_is_gone_stops_each_start_until_its_requests_may_be_asked_again(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        await begun(tmp_path, provider)
        provider.jobs.clear()
        for _ in range(2):
            async with process(tmp_path, provider) as held:
                with pytest.raises(Permanent, match=r"job-0, with 10 requests.*lost_jobs=ask_again") as caught:
                    await held.ask_all(REQUESTS)
                assert caught.value.scope == "run"
                assert held.journal.possibly_paid_twice == 0
        assert not provider.jobs
        async with process(tmp_path, provider, lost_jobs="ask_again") as held:
            assert await held.ask_all(REQUESTS) == await online()
            assert (held.batch.counts.gone, held.batch.counts.jobs) == (1, 1)
            assert held.journal.possibly_paid_twice == 10
        async with process(tmp_path, provider) as held:
            assert await held.ask_all(REQUESTS) == await online()
            assert held.journal.possibly_paid_twice == 10
        assert [len(job.lines) for job in provider.jobs.values()] == [10]

    asyncio.run(body())


def test_of_a_job_whose_results_go_while_they_are_read_only_the_rest_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setattr("data_gen.llm.batch._ROWS", 1)
        provider = Provider(results_gone=1)
        await begun(tmp_path, provider)
        async with process(tmp_path, provider, lost_jobs="ask_again") as held:
            assert await held.ask_all(REQUESTS) == await online()
            assert held.journal.possibly_paid_twice == 5
        assert [len(job.lines) for job in provider.jobs.values()] == [10, 5]

    asyncio.run(body())


@pytest.mark.parametrize("batch", [None, LIMITS])
def test_a_job_of_other_settings_stops_the_run_until_its_requests_may_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: OpenAIBatch | None
) -> None:
    """As when a project is mistyped, or --out is given to the config file without batch jobs."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def body() -> None:
        async with SimulatedServer(Simulated()) as server, Journal.open(tmp_path / "journal.sqlite") as journal:
            llm = OpenAICompatible(model="m", base_url=server.base_url, batch=batch, price=Price(input=1, output=1))
            config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=llm)
            await journal.commit(jobs_file.create)
            job = Job("label", "m", {request.digest: "echo" for request in REQUESTS})
            await journal.commit(lambda db: jobs_file.intend(db, job=job, service="https://elsewhere m"))
            sending = Sending(concurrency=4, max_attempts=2)

            async def opens(lost_jobs: LostJobs) -> None:
                async with open_stack(
                    prepare(cast(config)),
                    journal=journal,
                    ledger=Ledger(Budget()),
                    sending=replace(sending, lost_jobs=lost_jobs),
                ):
                    pass

            for _ in range(2):
                with pytest.raises(UserError, match=r"10 requests at https://elsewhere m.*lost_jobs=ask_again"):
                    await opens("stop")
            assert journal.possibly_paid_twice == 0
            await opens("ask_again")
            assert journal.possibly_paid_twice == 10
            await opens("stop")
            assert journal.possibly_paid_twice == 10

    asyncio.run(body())


def test_the_settings_of_a_run_reach_its_models() -> None:
    config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=Simulated())
    assert Sending.of(config).lost_jobs == "stop"
    assert Sending.of(replace(config, lost_jobs="ask_again")).lost_jobs == "ask_again"

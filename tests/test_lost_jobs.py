"""A batch job that can not be found any more: nothing is paid for again unasked, and there is a way on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from batch_process import LIMITS, REQUESTS, begun, online, process
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
from data_gen.llm.batch_service import LostJobs
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import Permanent, Spent
from data_gen.llm.jobs_file import Asked, Job
from data_gen.llm.journal import Journal
from data_gen.llm.server import SimulatedServer
from data_gen.llm.stack import Sending, cast, open_stack, prepare

SENT = Spent(1, 10, 20, 0.5)


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
            job = Job("label", "m", {request.digest: Asked(request.key, "echo", SENT) for request in REQUESTS})
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
            assert journal.spent == Spent(10, 100, 200, 5.0)
            await opens("stop")
            assert journal.possibly_paid_twice == 10

    asyncio.run(body())


def test_the_settings_of_a_run_reach_its_models() -> None:
    config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=Simulated())
    assert Sending.of(config).lost_jobs == "stop"
    assert Sending.of(replace(config, lost_jobs="ask_again")).lost_jobs == "ask_again"

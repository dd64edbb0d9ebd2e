"""Calls that fail are repeated, no sooner than told, and a job whose creation failed is looked for before another."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from pathlib import Path

import pytest
from batch_provider import Provider
from test_batch import asking, online, opened, run

from data_gen.llm.batch_calls import PatientCalls
from data_gen.llm.chat import Ambiguous, NotSent, Permanent


@pytest.mark.parametrize("told", [None, 0.0, 7.0, 300.0])
def test_a_wait_that_is_told_is_the_least_between_two_calls(told: float | None) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def body() -> None:
        refused = NotSent("503", retry_after=told)
        provider = Provider(look_failures=[refused] * 3, submit_failures=[("before", refused)])
        calls = PatientCalls(provider, poll_seconds=60.0, sleep=sleep)
        await calls.repeated(partial(provider.find, "label"))
        assert waits == [max(told or 0.0, 60.0)] * 3
        waits.clear()
        await calls.submitted("label", model="m", lines=io.BytesIO(), forget=never)
        assert waits == [max(told or 0.0, 1.0), 60.0], "and one before it is looked for a second time"

    async def never() -> None:
        raise AssertionError

    run(body())


def test_a_job_whose_creation_is_in_doubt_is_looked_for_twice_for_a_list_may_lag_behind(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider(submit_failures=[("after", Ambiguous("dropped"))], lags=1)
        requests = [asking(n) for n in range(20)]
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
        assert len(provider.jobs) == 1

    run(body())


def test_a_job_that_may_exist_is_found_again_though_another_attempt_to_create_it_was_refused(tmp_path: Path) -> None:
    async def body() -> None:
        failures = [("after", Ambiguous("dropped")), ("before", Permanent("no quota", scope="run"))]
        provider = Provider(submit_failures=failures, lags=2)
        requests = [asking(n) for n in range(20)]
        async with opened(tmp_path, provider) as held:
            replies = await asyncio.gather(*map(held.ask, requests), return_exceptions=True)
            assert {type(reply) for reply in replies} == {Permanent}
            assert "no quota" in str(replies[0])
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
            assert held.batch.counts.found_again == 1
            assert held.journal.possibly_paid_twice == 0
        assert [len(job.lines) for job in provider.jobs.values()] == [20]

    run(body())

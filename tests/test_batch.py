"""Batch jobs answer as the online model does: a job per wave, a job per intent, no reply joined to the wrong request.

The provider here is in memory and fails as it is told; `test_batch_openai.py` and `test_batch_vertex.py` use real
clients and sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from batch_provider import Counting, Provider, free

from data_gen import world
from data_gen.config import EvolveConfig, OpenAIBatch, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage, evolve_lineage
from data_gen.llm.batch import MOST_JOBS, BatchChat
from data_gen.llm.batch_service import JobState
from data_gen.llm.budget import Account
from data_gen.llm.chat import (
    Ambiguous,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    RequestKey,
)
from data_gen.llm.journal import Journal
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.llm.standstill import Standstill
from data_gen.sources import load_seeds

LIMITS = OpenAIBatch(poll_seconds=0.01)


def asking(number: int, *, text: str = "", model: str = "m") -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model=model,
        messages=(Message("user", text or world.render(world.sample_task(random.Random(number), steps=3))),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


@dataclass
class Open:
    """What a test holds while a journal and a batch model are open."""

    model: ChatModel
    batch: BatchChat
    journal: Journal
    standstill: Standstill

    async def ask(self, request: ChatRequest) -> ChatReply:
        """As one lineage that asks one thing."""
        with self.standstill.lineage():
            return await self.model.complete(request)

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return await asyncio.gather(*(self.ask(request) for request in requests))


@contextlib.asynccontextmanager
async def opened(
    path: Path, provider: Provider, *, limits: OpenAIBatch = LIMITS, account: Account | None = None
) -> AsyncIterator[Open]:
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    standstill = Standstill(settle_seconds=0.01)
    async with (
        Journal.open(path / "journal.sqlite") as journal,
        BatchChat(
            provider, journal=journal, account=account or free(), standstill=standstill, limits=limits, sleep=sleep
        ) as batch,
    ):
        yield Open(journal.wrap(batch, saves="none"), batch, journal, standstill)


async def online(requests: Sequence[ChatRequest]) -> list[ChatReply]:
    return [await SimulatedChatModel(Simulated()).complete(request) for request in requests]


def run(body: Awaitable[None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await body

    asyncio.run(within())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 -- what is waited for knows of no event
        await asyncio.sleep(0.001)


def test_all_that_wait_go_into_one_job_and_get_what_the_online_model_says(tmp_path: Path) -> None:
    async def body() -> None:
        provider, requests = Provider(), [asking(n) for n in range(50)]
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
            assert [len(job.lines) for job in provider.jobs.values()] == [50]
            assert held.standstill.waiting == held.standstill.open == 0
            assert await held.ask_all(requests) == await online(requests)
        assert len(provider.jobs) == 1

    run(body())


@pytest.mark.parametrize("echoes_keys", [True, False])
def test_shuffled_1_percent_missing_1_percent_twice_1_percent_swapped_and_a_job_cut_short_join_nothing_wrongly(
    tmp_path: Path, *, echoes_keys: bool
) -> None:
    async def body() -> None:
        share = {"missing": 0.01, "duplicated": 0.01, "swapped": 0.01 if echoes_keys else 0.0}
        provider = Provider(echoes_keys=echoes_keys, share=share, endings=[JobState("cut short")])
        requests = [asking(n) for n in range(1000)]
        async with opened(tmp_path, provider) as held:
            replies = await held.ask_all(requests)
            assert replies == await online(requests)
            assert len({reply.text for reply in replies}) > 950  # so a reply in the wrong place would be seen
            counts, sent = held.batch.counts, [{key for key, _ in job.lines} for job in provider.jobs.values()]
            # Of 1,000, 500 were cut off, 5 are missing and 4 swapped; of 509, again 5 and 4; then 9, and none is.
            assert [len(keys) for keys in sent] == ([1000, 509, 9] if echoes_keys else [1000, 505, 5])
            assert sent[0] > sent[1] > sent[2]
            assert counts.swapped == (8 if echoes_keys else 0)
            assert (counts.duplicated, counts.conflicting, counts.unknown, counts.expired) == (10, 0, 0, 1)
            assert counts.resent == sum(map(len, sent[1:]))
            # The lines of a job that was cut short are not known to be billed; those of a whole one may be.
            assert held.journal.possibly_paid_twice == counts.missing == len(sent[2])

    run(body())


def test_requests_that_look_the_same_get_one_answer_each_without_keys(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider(echoes_keys=False)
        same = [replace(asking(0, text="Why?"), key=RequestKey(f"seed-{n}", 1, "answer")) for n in range(10)]
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(same) == await online(same)
            assert held.batch.counts.duplicated == held.batch.counts.resent == 0

    run(body())


def test_a_job_that_answers_in_no_known_echo_stops_the_run_instead_of_being_paid_for_again(tmp_path: Path) -> None:
    async def body() -> None:
        provider, requests = Provider(share={"missing": 0.6}), [asking(n) for n in range(40)]
        async with opened(tmp_path, provider) as held:
            replies = await asyncio.gather(*map(held.ask, requests), return_exceptions=True)
            told = [str(reply) for reply in replies if isinstance(reply, Permanent) and reply.scope == "run"]
            assert len(told) == 24
            assert "answered 16 of 40" in told[0]
        assert len(provider.jobs) == 1

    run(body())


def test_lines_that_failed_are_asked_again_or_refused_by_what_they_say(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        requests = [asking(0), asking(1, text="error 503 for ever"), asking(2, text="error 400 this prompt")]
        async with opened(tmp_path, provider) as held:
            good, busy, refused = await asyncio.gather(*map(held.ask, requests), return_exceptions=True)
            assert good == (await online(requests))[0]
            assert isinstance(busy, NotSent)
            assert isinstance(refused, Permanent)
            assert refused.scope == "request"
            assert [len(job.lines) for job in provider.jobs.values()] == [3] + [1] * (MOST_JOBS - 1)
            assert held.journal.possibly_paid_twice == 0
        async with opened(tmp_path, provider) as held:
            with pytest.raises(Permanent, match="flagged"):
                await held.ask(requests[2])  # from the journal
        assert len(provider.jobs) == MOST_JOBS

    run(body())


def test_a_collection_goes_out_when_it_is_full_or_old_though_others_still_move(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        by_number = replace(LIMITS, max_requests=4)
        requests = [asking(n, text=f"question {n}") for n in range(10)]
        size = len(provider.line(requests[0], key=requests[0].digest).text)
        by_size = replace(LIMITS, max_bytes=3 * size + 1)
        by_age = replace(LIMITS, max_wait_seconds=0.05)
        for number, limits in enumerate((by_number, by_size, by_age)):
            folder = tmp_path / str(number)
            folder.mkdir()
            async with opened(folder, provider, limits=limits) as held:
                with held.standstill.lineage():  # one that never waits
                    before, expected = len(provider.jobs), ([4, 4], [3, 3, 3], [10])[number]
                    asked = [asyncio.create_task(held.ask(request)) for request in requests]
                    last = before + len(expected)
                    await until(lambda last=last: len(provider.jobs) >= last)
                    await asyncio.sleep(0.1)
                    assert [len(job.lines) for job in list(provider.jobs.values())[before:]] == expected
                await asyncio.gather(*asked)

    run(body())


def test_a_job_holds_requests_of_one_model_only(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()  # refuses a file with two
        requests = [asking(n, model=f"model-{n % 3}") for n in range(9)]
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
        assert [len(job.lines) for job in provider.jobs.values()] == [3, 3, 3]

    run(body())


# --- what a failure leaves at the provider


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("failure", [NotSent("503"), Ambiguous("no answer within 1 s")])
def test_a_create_that_fails_before_or_after_the_job_exists_leaves_one_job(
    tmp_path: Path, when: str, failure: NotSent
) -> None:
    async def body() -> None:
        provider = Provider(submit_failures=[(when, failure)] * 3, broken_downloads=2)
        provider.look_failures = [NotSent("503"), Ambiguous("dropped")]
        requests = [asking(n) for n in range(20)]
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
            assert (held.batch.counts.jobs, held.batch.trouble) == (1, "")
            assert held.batch.counts.duplicated == 0
        assert len(provider.jobs) == 1

    run(body())


def test_a_process_that_dies_between_create_and_the_name_finds_its_job_again(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider(submit_failures=[("hang after", NotSent("never told"))])
        requests = [asking(n) for n in range(20)]
        async with opened(tmp_path, provider) as held:
            asked = asyncio.gather(*map(held.ask, requests), return_exceptions=True)
            await until(lambda: provider.jobs)
            asked.cancel()
        async with opened(tmp_path, provider) as held:
            assert held.journal.possibly_paid_twice == 0
            assert await held.ask_all(requests) == await online(requests)
            assert held.batch.counts.found_again == 1
        assert len(provider.jobs) == 1

    run(body())


def test_an_intent_that_never_reached_the_provider_is_struck_out_and_its_requests_go_out_once(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider(submit_failures=[("before", NotSent("503"))] * 1000)
        requests = [asking(n) for n in range(20)]
        async with opened(tmp_path, provider) as held:
            asked = asyncio.gather(*map(held.ask, requests), return_exceptions=True)
            await until(lambda: len(provider.submit_failures) < 998)
            asked.cancel()
        assert not provider.jobs
        provider.submit_failures = []
        async with opened(tmp_path, provider) as held:
            assert held.journal.possibly_paid_twice == 0
            assert await held.ask_all(requests) == await online(requests)
        assert [len(job.lines) for job in provider.jobs.values()] == [20]

    run(body())


def test_a_restart_while_polling_sends_no_new_job_and_keeps_replies_that_nobody_waits_for(tmp_path: Path) -> None:
    async def body() -> None:
        provider, requests = Provider(looks_until_done=10**9), [asking(n) for n in range(20)]
        for _ in range(3):
            async with opened(tmp_path, provider) as held:
                asked = asyncio.gather(*map(held.ask, requests), return_exceptions=True)
                await until(lambda looked=provider.looked: provider.looked > looked + 2)
                asked.cancel()
            assert held.batch.counts.jobs == (provider.looked < 5)
        provider.looks_until_done = 0
        async with opened(tmp_path, provider) as held:
            await until(lambda: not held.batch._followers)  # its results are read before anybody asks
            assert await held.ask_all(requests[:5]) == await online(requests[:5])
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(requests)
            assert held.journal.possibly_paid_twice == 0
            assert (held.batch.counts.jobs, held.batch.counts.found_again) == (0, 0)
        async with opened(tmp_path, provider):
            pass
        assert len(provider.jobs) == 1
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
            assert db.execute("SELECT count(*) FROM job_requests").fetchone() == (0,)

    run(body())


def test_told_to_stop_before_the_job_goes_out_sends_nothing_and_counts_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        async with opened(tmp_path, provider) as held, asyncio.timeout(10):
            with held.standstill.lineage():
                asked = [asyncio.create_task(held.ask(asking(n))) for n in range(20)]
                await until(lambda: held.standstill.waiting == 20)
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.sleep(0.05)
        assert not provider.jobs
        async with opened(tmp_path, provider) as held:
            assert held.journal.possibly_paid_twice == 0

    run(body())


def test_leaving_it_ends_every_wait_at_once_also_of_those_who_were_about_to_wait(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider(looks_until_done=10**9)
        async with asyncio.timeout(10):  # the journal would wait 30 seconds for what is on the wire
            for pause in (0, 0, 0.001, 0.003, 0.01, 0.05):
                async with opened(tmp_path, provider) as held:
                    asked = asyncio.ensure_future(held.ask_all([asking(n) for n in range(100)]))
                    await asyncio.sleep(pause)
                    asked.cancel()

    run(body())


def test_a_caller_that_goes_away_leaves_its_request_out_of_the_job(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        async with opened(tmp_path, provider) as held:
            gone = asyncio.create_task(held.batch.complete(asking(0)))
            stays = [asyncio.create_task(held.batch.complete(asking(n))) for n in (1, 1, 2)]
            with held.standstill.lineage(), held.standstill.lineage(), held.standstill.lineage():
                with held.standstill.lineage():
                    await until(lambda: held.standstill.waiting == 4)
                    gone.cancel()
                    await until(lambda: held.standstill.waiting == 3)
                first, second, other = await asyncio.gather(*stays)
            assert first == second != other
        assert [len(job.lines) for job in provider.jobs.values()] == [2]

    run(body())


# --- what ends a run


def test_a_job_that_can_not_be_created_stops_the_run_and_is_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        refused = Permanent("no such model", scope="unclear")
        provider = Provider(submit_failures=[("before", refused)])
        async with opened(tmp_path, provider) as held:
            with pytest.raises(Permanent, match="no such model") as caught:
                await held.ask(asking(0))
            assert caught.value.scope == "run"
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all([asking(0)]) == await online([asking(0)])
            assert held.batch.counts.found_again == 0

    run(body())


def test_a_job_that_fails_as_a_whole_stops_the_run_or_is_sent_again_by_what_it_says(tmp_path: Path) -> None:
    async def body() -> None:
        busy, wrong = NotSent("too many tokens in the queue"), Permanent("no permission to read the file", scope="run")
        provider = Provider(endings=[JobState("failed", busy), JobState("failed", wrong)])
        async with opened(tmp_path, provider) as held:
            with pytest.raises(Permanent, match="no permission"):
                await held.ask(asking(0))
        assert len(provider.jobs) == 2
        async with opened(tmp_path, provider) as held:  # mended since
            assert await held.ask_all([asking(0)]) == await online([asking(0)])
        assert len(provider.jobs) == 3

    run(body())


def test_a_provider_that_stays_away_ends_the_wait_and_leaves_the_job_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setattr("data_gen.llm.batch_calls._LOOKS", 20)
        provider = Provider(look_failures=[NotSent("connection refused")] * 20)
        async with opened(tmp_path, provider) as held:
            with pytest.raises(Permanent, match="connection refused"):
                await held.ask(asking(0))
            with pytest.raises(Permanent, match="connection refused"):
                await held.ask(asking(0))
        async with opened(tmp_path, provider) as held:
            assert await held.ask_all([asking(0)]) == await online([asking(0)])
        assert len(provider.jobs) == 1

    run(body())


# --- under a run


@pytest.mark.parametrize(("lineages", "rounds"), [(6, 2), (20, 4)])
def test_whole_lineages_take_one_job_per_wave_of_dependent_requests(tmp_path: Path, lineages: int, rounds: int) -> None:
    async def body() -> None:
        config = EvolveConfig(seeds=SimulatedSeeds(count=lineages), llm=Simulated(), rounds=rounds)
        seeds = load_seeds(config.seeds)
        direct = Counting(SimulatedChatModel(Simulated()))
        expected = [await evolve_lineage(seed, model=direct, config=config) for seed in seeds]
        provider = Provider()

        async def one(seed: object, held: Open) -> Lineage:
            with held.standstill.lineage():
                return await evolve_lineage(seed, model=held.model, config=config)

        async with opened(tmp_path, provider) as held:
            assert await asyncio.gather(*(one(seed, held) for seed in seeds)) == expected
        assert len(provider.jobs) == max(direct.asked.values())
        assert sum(len(job.lines) for job in provider.jobs.values()) == sum(direct.asked.values())

    run(body())

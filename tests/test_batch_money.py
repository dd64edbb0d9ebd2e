"""What batch jobs cost, over restarts: held while a job is under way, charged when it is read, by whoever reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from batch_process import LIMITS, REQUESTS, begun, online, process
from batch_provider import Provider, priced

from data_gen.config import Budget, EvolveConfig, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import NOTHING, BudgetSpent, ChatReply, Spent
from data_gen.llm.journal import Journal
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct
from data_gen.llm.stack import Sending, cast, open_stack, prepare

USD_PER_TOKEN = 0.5


def cost(replies: list[ChatReply]) -> Spent:
    tokens_in, tokens_out = (sum(getattr(r, name) for r in replies) for name in ("input_tokens", "output_tokens"))
    return Spent(len(replies), tokens_in, tokens_out, USD_PER_TOKEN * (tokens_in + tokens_out))


def test_what_a_job_brings_is_charged_once_in_the_journal_and_in_the_ledger(tmp_path: Path) -> None:
    async def body() -> None:
        account = priced()
        async with process(tmp_path, Provider(), account=account) as held:
            replies = await held.ask_all(REQUESTS)
            assert [reply.usd for reply in replies] == [cost([reply]).usd for reply in replies]
            assert held.journal.spent == account.ledger.spent == cost(replies)
            assert await held.ask_all(REQUESTS) == replies
            assert (account.ledger.spent, account.ledger.reserved) == (cost(replies), NOTHING)

    asyncio.run(body())


def test_a_job_under_way_is_held_and_its_answers_are_nobody_s_to_refuse(tmp_path: Path) -> None:
    async def body() -> None:
        provider, expected = Provider(), cost(await online())
        await begun(tmp_path, provider, account=priced())
        tight = priced(budget=Budget(usd=expected.usd))  # nothing at its full length would fit
        provider.looks_until_done = 10**9
        async with process(tmp_path, provider, account=tight) as held:
            assert tight.ledger.reserved.calls == 10
            assert tight.ledger.reserved.usd > expected.usd
        provider.looks_until_done = 0
        tight = priced(budget=Budget(usd=expected.usd))
        async with process(tmp_path, provider, account=tight) as held:
            assert len(await held.ask_all(REQUESTS)) == 10
            assert held.journal.spent == tight.ledger.spent == expected
        assert len(provider.jobs) == 1

    asyncio.run(body())


def test_answers_of_a_job_that_nobody_has_asked_for_since_are_in_the_journal_for_whoever_asks(tmp_path: Path) -> None:
    """As when `llm.batch` is taken away, or a budget ended the run before."""

    async def body() -> None:
        provider, expected = Provider(), await online()
        await begun(tmp_path, provider, account=priced())
        account = priced()
        async with process(tmp_path, provider, account=account) as held:
            while held.journal.spent.calls < 10:  # noqa: ASYNC110 -- what is waited for knows of no event
                await asyncio.sleep(0.001)
            assert account.ledger.spent == held.journal.spent == cost(expected)
            assert account.ledger.reserved == NOTHING

        class Nobody:
            async def complete(self, request: object) -> ChatReply:
                raise AssertionError(f"{request} was asked again")

        async with Journal.open(tmp_path / "journal.sqlite") as journal:
            model = journal.wrap(journal.marked(Nobody()))
            replies = [await model.complete(request) for request in REQUESTS]
            assert [reply.text for reply in replies] == [reply.text for reply in expected]
            assert journal.spent == cost(replies)

    asyncio.run(body())


def test_lines_that_are_missing_cost_what_was_expected_and_are_paid_for_again(tmp_path: Path) -> None:
    async def body() -> None:
        provider, account = Provider(share={"missing": 0.4}), priced()
        async with process(tmp_path, provider, account=account) as held:
            asked = asyncio.create_task(held.ask_all(REQUESTS))
            while not held.journal.possibly_paid_twice:  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.001)
            provider.share.clear()
            replies = await asked
            assert held.journal.possibly_paid_twice == 4
            assert held.journal.spent.calls == account.ledger.spent.calls == 14
            assert held.journal.spent == account.ledger.spent
            assert account.ledger.assumed.usd == account.ledger.spent.usd - cost(replies).usd > 0
        async with process(tmp_path, provider) as held:
            assert held.journal.spent == account.ledger.spent

    asyncio.run(body())


def test_a_job_that_is_gone_cost_what_was_expected(tmp_path: Path) -> None:
    async def body() -> None:
        provider = Provider()
        await begun(tmp_path, provider, account=priced())
        provider.jobs.clear()
        account = priced()
        async with process(tmp_path, provider, account=account, lost_jobs="ask_again") as held:
            replies = await held.ask_all(REQUESTS)
            assert held.journal.spent.calls == account.ledger.spent.calls == 20
            assert held.journal.spent.usd == account.ledger.spent.usd > cost(replies).usd

    asyncio.run(body())


def test_lines_that_are_missing_are_not_asked_again_beyond_the_budget(tmp_path: Path) -> None:
    async def body() -> None:
        provider, account = Provider(share={"missing": 0.4}), priced(budget=Budget(calls=12))
        async with process(tmp_path, provider, account=account) as held:
            asked = asyncio.gather(*map(held.ask, REQUESTS), return_exceptions=True)
            while not held.journal.possibly_paid_twice:  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.001)
            provider.share.clear()
            outcomes = await asked
            assert sum(isinstance(outcome, BudgetSpent) for outcome in outcomes) == 2
            assert account.ledger.spent.calls == held.journal.spent.calls == 12

    asyncio.run(body())


def test_a_budget_with_room_for_one_request_at_a_time_sends_each_in_a_job_of_its_own_and_waits_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lineage that waits for room stands still as one that waits for a job; else `max_wait_seconds` ends it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def body() -> None:
        async with SimulatedServer(Simulated(), conduct=Conduct(latency_seconds=0.0)) as server:
            price = Price(input=1e6, output=1e6)
            llm = OpenAICompatible(model="m", base_url=server.base_url, batch=LIMITS, price=price)
            prepared = prepare(cast(EvolveConfig(seeds=SimulatedSeeds(count=1), llm=llm)))
            async with asyncio.timeout(30), Journal.open(tmp_path / "journal.sqlite") as journal:
                ledger = Ledger(Budget(usd=1.5 * USD_PER_TOKEN * 90))  # 64 of output, and the text
                sending = Sending(concurrency=4, max_attempts=2)
                async with open_stack(prepared, journal=journal, ledger=ledger, sending=sending) as stack:

                    async def one(number: int) -> ChatReply:
                        with stack.standstill.lineage():
                            return await stack.model.complete(REQUESTS[number])

                    replies = await asyncio.gather(one(0), one(1))
                    assert stack.batches[0].counts.jobs == 2
                assert ledger.spent == journal.spent == cost(replies)

    asyncio.run(body())

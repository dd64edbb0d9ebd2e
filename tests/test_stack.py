"""Who is asked for what, at which price, through what: each provider once, whatever it is there for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from configs.errors import UserError
from data_gen.config import Budget, EvolveConfig, Mixture, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import NOTHING, ChatRequest, Message, Purpose, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct
from data_gen.llm.stack import Sending, cast, open_stack, prepare

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
LLM = OpenAICompatible(model="gpt-4o-mini", api_key_env="WIZARD_TEST_KEY")
CONFIG = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=LLM)
SENDING = Sending(concurrency=4, max_attempts=2)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIZARD_TEST_KEY", "not-a-key")


def asking(purpose: Purpose, *, model: str, number: int = 0) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"{number:06d}", 1, purpose),
        model=model,
        messages=(Message("user", "Name a prime."),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=0,
    )


def test_every_purpose_is_somebody_s() -> None:
    answerer, judge = replace(LLM, model="gpt-4o"), replace(LLM, model="gpt-4.1")
    assert set(cast(CONFIG).values()) == {LLM}
    assert set(cast(CONFIG)) == set(PURPOSES)
    several = cast(replace(CONFIG, answerer=answerer, judge=judge))
    assert {purpose for purpose in PURPOSES if several[purpose] == LLM} == {"evolve"}
    assert {purpose for purpose in PURPOSES if several[purpose] == answerer} == {"answer"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": replace(LLM, model="nobody-knows")}, r"nobody knows what nobody-knows costs.* llm\.price=@Price"),
        ({"judge": replace(LLM, model="nobody-knows")}, r"judge\.price=@Price"),
        ({"answerer": replace(LLM, model="nobody-knows")}, r"answerer\.price=@Price"),
        ({"judge": replace(LLM, api_key_env="NO_SUCH_KEY_IS_SET")}, "NO_SUCH_KEY_IS_SET"),
        ({"llm": replace(LLM, base_url="llm.example", price=Price(input=0.0, output=0.0))}, r"llm\.example"),
    ],
)
def test_what_has_no_price_no_key_or_no_address_is_named_by_its_setting(
    changes: dict[str, OpenAICompatible], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(cast(replace(CONFIG, **changes)))


def test_every_model_of_a_mixture_needs_a_price() -> None:
    mixture = Mixture(models=("gpt-4o", "nobody-knows"), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="nobody knows what nobody-knows costs"):
        prepare(cast(CONFIG), models=mixture.models)
    prepare(cast(CONFIG), models=("gpt-4o", "gpt-4o-mini"))


def test_each_provider_is_opened_once_charged_at_its_price_and_counted_in_one_ledger(tmp_path: Path) -> None:
    async def ask_all() -> None:
        async with SimulatedServer(Simulated()) as one, SimulatedServer(Simulated()) as other:
            llm = replace(LLM, base_url=one.base_url, price=Price(input=1e6, output=1e6))
            judge = replace(LLM, base_url=other.base_url, price=Price(input=1e7, output=1e7))
            prepared = prepare(cast(replace(CONFIG, llm=llm, judge=judge)))
            async with Journal.open(tmp_path / "journal.sqlite") as journal:
                ledger = Ledger(Budget(), spent=journal.spent)
                async with open_stack(prepared, journal=journal, ledger=ledger, sending=SENDING) as stack:
                    assert (len(stack.pacings), len(stack.batches)) == (2, 0)
                    usd = 0.0
                    for purpose in PURPOSES:
                        reply = await stack.model.complete(asking(purpose, model="m"))
                        tokens = reply.input_tokens + reply.output_tokens
                        assert reply.usd == pytest.approx(tokens * (1 if purpose in ("evolve", "answer") else 10))
                        usd += reply.usd
                    again = await stack.model.complete(asking("judge", model="m"))
                    assert again.usd > 0, "what it cost is known from the journal"
                assert ledger.spent.usd == pytest.approx(usd) == journal.spent.usd
                assert (ledger.spent.calls, journal.asked, journal.cached) == (len(PURPOSES), len(PURPOSES), 1)
            assert (one.requests, other.requests) == (2, len(PURPOSES) - 2)

    asyncio.run(ask_all())


def test_the_same_provider_for_all_is_one_client_with_one_pace(tmp_path: Path) -> None:
    async def count() -> None:
        prepared = prepare(cast(replace(CONFIG, answerer=LLM, judge=replace(LLM))))
        assert len(prepared.clients) == len(prepared.prices) == 1
        async with (
            Journal.open(tmp_path / "journal.sqlite") as journal,
            open_stack(prepared, journal=journal, ledger=Ledger(Budget()), sending=SENDING) as stack,
        ):
            assert len(stack.pacings) == 1

    asyncio.run(count())


def test_requests_that_wait_for_room_in_the_budget_are_not_marked_as_sent_nor_sent_after_the_stop(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        conduct = Conduct(latency_seconds=0.3)
        async with SimulatedServer(Simulated(), conduct=conduct) as server:
            llm = replace(LLM, base_url=server.base_url, price=Price(input=1e6, output=1e6))
            async with Journal.open(tmp_path / "journal.sqlite") as journal:
                ledger = Ledger(Budget(usd=100.0))  # one at its full length
                prepared = prepare(cast(replace(CONFIG, llm=llm)))
                sending = Sending(concurrency=20, max_attempts=1)
                async with open_stack(prepared, journal=journal, ledger=ledger, sending=sending) as stack:
                    requests = [asking("answer", model="m", number=number) for number in range(20)]
                    callers = [asyncio.create_task(stack.model.complete(request)) for request in requests]
                    while not server.requests:  # noqa: ASYNC110 -- what is waited for knows of no event
                        await asyncio.sleep(0.001)
                    marks = journal.read(lambda db: db.execute("SELECT count(*) FROM in_flight").fetchone())
                    assert (stack.pacings[0].in_flight, marks) == (20, (1,))
                    for caller in callers:
                        caller.cancel()
                assert (server.requests, ledger.spent.calls, journal.spent.calls) == (1, 1, 1)
                assert ledger.reserved == NOTHING

    asyncio.run(run())

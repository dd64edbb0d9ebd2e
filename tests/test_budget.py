"""What a run may spend holds: counted over restarts, reserved in flight, passed by no more than what is in flight."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.config import Budget, OpenAICompatible, Price
from data_gen.llm.budget import Charged, Ledger
from data_gen.llm.chat import (
    Ambiguous,
    BudgetSpent,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    Purpose,
    RequestKey,
    Spent,
)
from data_gen.llm.pricing import Prices

DOLLARS = Prices(OpenAICompatible(model="m", price=Price(input=1_000_000.0, output=1_000_000.0)))
"""One USD a token."""


def asking(number: int = 0, *, purpose: Purpose = "answer") -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 1, purpose),
        model="m",
        messages=(Message("user", "why?"),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


AT_FULL_LENGTH = 4 // 3 + 8 + 64


@dataclass
class Sized:
    """A `ChatModel` whose replies have the given sizes, one after another; an exception is raised instead."""

    sizes: Sequence[int | BaseException]
    sent: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    paid: list[int] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> ChatReply:
        size = self.sizes[self.sent % len(self.sizes)]
        self.sent += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(request.seed % 7 + 1):
                await asyncio.sleep(0)
        finally:
            self.in_flight -= 1
        if isinstance(size, BaseException):
            raise size
        self.paid.append(size)
        return ChatReply(
            text="x", finish_reason="stop", model="m-1", input_tokens=size // 2, output_tokens=-(-size // 2)
        )


async def spend_all(charged: Charged, *, concurrency: int, requests: int = 2000) -> list[BudgetSpent]:
    """Asks until the budget is spent; returns the refusals."""
    refused: list[BudgetSpent] = []
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            try:
                await charged.complete(asking(number))
            except BudgetSpent as refusal:
                refused.append(refusal)
                return
            except (NotSent, Ambiguous, Permanent):
                continue

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return refused


ADVERSARIAL = {
    "ever larger": list(range(1, 400)),
    "small, then a thousand times as large": [1] * 40 + [1000],
    "all the same": [10],
    "large, then small": [1000, *[1] * 60],
    "heavy-tailed": [int(random.Random(i).paretovariate(0.8)) + 1 for i in range(500)],
}


@pytest.mark.parametrize("concurrency", [1, 16, 64])
@pytest.mark.parametrize("sizes", ADVERSARIAL.values(), ids=ADVERSARIAL)
@pytest.mark.parametrize("limit", ["usd", "tokens"])
def test_a_limit_is_passed_by_at_most_concurrency_times_the_dearest_request(
    concurrency: int, sizes: list[int], limit: str
) -> None:
    model, ledger = Sized(sizes), Ledger(Budget(**{limit: 3000}))
    refused = asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=ledger), concurrency=concurrency))
    assert refused
    assert ledger.spent.usd == sum(model.paid) == ledger.spent.input_tokens + ledger.spent.output_tokens
    assert ledger.spent.usd <= 3000 + concurrency * max(model.paid)
    assert ledger.reserved == Spent()
    # Nothing that would have fitted was kept back: at most the dearest request seen is left.
    assert ledger.spent.usd >= 3000 - max(max(model.paid), AT_FULL_LENGTH)


@pytest.mark.parametrize("concurrency", [1, 16, 64])
def test_a_limit_of_calls_is_kept_exactly(concurrency: int) -> None:
    model, ledger = Sized([10]), Ledger(Budget(calls=100))
    (*_, refusal) = asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=ledger), concurrency=concurrency))
    assert model.sent == ledger.spent.calls == 100
    assert str(refusal).startswith("budget.calls = 100 has no room for another request: 100 calls spent")
    assert refusal.scope == "run"


@given(
    st.lists(
        st.integers(1, 500) | st.sampled_from([NotSent("no"), Ambiguous("lost"), Permanent("bad", scope="request")]),
        min_size=1,
    ),
    st.sampled_from([1, 16, 64]),
)
@settings(max_examples=40)
def test_what_was_spent_adds_up_whatever_happens(sizes: list[int | BaseException], concurrency: int) -> None:
    model, ledger = Sized(sizes), Ledger(Budget(usd=2000.0))
    asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=ledger), concurrency=concurrency, requests=300))
    assert ledger.reserved == Spent()
    assert ledger.spent.usd == pytest.approx(sum(model.paid) + ledger.assumed.usd)
    assert ledger.spent.calls == len(model.paid) + ledger.assumed.calls


def outcome(size: int | BaseException, *, ledger: Ledger) -> ChatReply | BaseException:
    async def run() -> ChatReply | BaseException:
        try:
            return await Charged(Sized([size]), prices=DOLLARS, ledger=ledger).complete(asking())
        except (NotSent, Ambiguous, Permanent) as error:
            return error

    return asyncio.run(run())


def test_a_reply_says_what_it_cost() -> None:
    ledger = Ledger(Budget())
    reply = outcome(50, ledger=ledger)
    assert isinstance(reply, ChatReply)
    assert reply.usd == 50.0
    assert ledger.spent == Spent(1, 25, 25, 50.0)


def test_what_may_have_been_billed_counts_with_its_reservation_and_what_was_not_sent_is_free() -> None:
    ledger = Ledger(Budget())
    outcome(NotSent("no"), ledger=ledger)
    outcome(Permanent("bad", scope="request"), ledger=ledger)
    assert ledger.spent == Spent()
    outcome(Ambiguous("lost"), ledger=ledger)
    assert ledger.spent == ledger.assumed == Spent(1, 9, 64, AT_FULL_LENGTH)


def test_a_reply_that_tells_no_tokens_is_charged_what_was_reserved() -> None:
    ledger = Ledger(Budget())
    reply = outcome(0, ledger=ledger)
    assert isinstance(reply, ChatReply)
    assert (reply.usd, reply.input_tokens) == (AT_FULL_LENGTH, 0)
    assert ledger.spent.usd == AT_FULL_LENGTH


@dataclass
class Fixed:
    """A `ChatModel` with one reply."""

    reply: ChatReply

    async def complete(self, request: ChatRequest) -> ChatReply:  # noqa: ARG002 -- as every ChatModel
        return self.reply


@pytest.mark.parametrize(("text", "usd"), [("x" * 1000, AT_FULL_LENGTH), ("", 9)])
def test_a_text_of_no_tokens_is_charged_what_was_reserved_and_an_empty_reply_what_it_says(
    text: str, usd: float
) -> None:
    told = ChatReply(text=text, finish_reason="stop", model="m-1", input_tokens=9)
    charged = Charged(Fixed(told), prices=DOLLARS, ledger=Ledger(Budget()))
    assert asyncio.run(charged.complete(asking())).usd == usd


def test_a_cancelled_request_counts_as_lost_if_it_was_sent_and_not_if_it_waited() -> None:
    async def run() -> tuple[Ledger, int]:
        model, ledger = Sized([10]), Ledger(Budget(usd=AT_FULL_LENGTH + 10.0))
        charged = Charged(model, prices=DOLLARS, ledger=ledger)
        sent, waiting, behind = (asyncio.create_task(charged.complete(asking(6))) for _ in range(3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert ledger.spent == Spent()
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        assert ledger.spent.usd == AT_FULL_LENGTH
        with pytest.raises(BudgetSpent):
            await behind
        return ledger, model.sent

    ledger, sent = asyncio.run(run())
    assert (ledger.reserved, sent) == (Spent(), 1)


def test_a_budget_that_the_first_requests_could_exhaust_at_full_length_lets_them_in_one_by_one() -> None:
    """73 USD are reserved for each, 20 of them for 100 USD; they cost 2."""
    model, ledger = Sized([2]), Ledger(Budget(usd=100.0))
    refused = asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=ledger), concurrency=20, requests=50))
    assert not refused
    assert (model.sent, ledger.spent.usd) == (50, 100.0)
    assert model.most_in_flight > 10


def test_a_budget_that_is_too_small_for_one_request_sends_none() -> None:
    model, ledger = Sized([2]), Ledger(Budget(usd=5.0))
    refused = asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=ledger), concurrency=4))
    assert model.sent == 0
    assert str(refused[0]) == (
        "budget.usd = 5.0 has no room for another request: $0.00 spent, and the next may take $73.00; "
        "raise budget.usd and start the same command again to go on"
    )


def test_each_purpose_is_reserved_by_what_its_own_requests_cost() -> None:
    async def run() -> tuple[Spent, Spent]:
        ledger = Ledger(Budget())
        await Charged(Sized([10, 21]), prices=DOLLARS, ledger=ledger).complete(asking())
        judge = asking(purpose="judge")
        return (
            await ledger.reserve(asking(), prices=DOLLARS),
            await ledger.reserve(judge, prices=DOLLARS),
        )

    assert asyncio.run(run()) == (Spent(1, 5, 5, 10.0), Spent(1, 9, 64, AT_FULL_LENGTH))


def test_what_earlier_processes_spent_counts() -> None:
    model = Sized([1])
    spent = Ledger(Budget(calls=10), spent=Spent(7, 0, 0, 0.0))
    asyncio.run(spend_all(Charged(model, prices=DOLLARS, ledger=spent), concurrency=4))
    assert model.sent == 3


@pytest.mark.parametrize("concurrency", [8, 64])
def test_long_requests_after_short_ones_are_reserved_by_their_own_length(concurrency: int) -> None:
    """As seeds that were sorted by length: the mean of the short ones says nothing of them."""

    class ByLength:
        async def complete(self, request: ChatRequest) -> ChatReply:
            await asyncio.sleep(0)
            words = len(request.messages[0].content.split())
            return ChatReply(text="x", finish_reason="stop", model="m-1", input_tokens=words, output_tokens=2)

    ledger = Ledger(Budget(usd=150_000.0))
    charged = Charged(ByLength(), prices=DOLLARS, ledger=ledger)
    numbers = iter(range(400))
    dearest = 0

    async def work() -> None:
        nonlocal dearest
        for number in numbers:
            text = "word " * (300 if number < 200 else 3000)
            try:
                reply = await charged.complete(replace(asking(number), messages=(Message("user", text),)))
            except BudgetSpent:
                return
            dearest = max(dearest, reply.input_tokens)

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(run())
    assert dearest == 3000
    assert 150_000 - 3100 < ledger.spent.usd <= 150_000 + 50 * concurrency  # the guess is 1.5 % too low

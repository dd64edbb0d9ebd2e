"""What a run may spend, and the wrapper that asks before it spends.

    ledger = Ledger(config.budget, spent=journal.spent)          # one for all models of a run
    model = journal.wrap(Charged(OpenAIChat(llm), prices=Prices(llm), ledger=ledger))

What a request will cost is known when it is answered. So each one in flight holds a reservation: the mean of what
requests of its purpose to its model have cost so far, and before the first one what it would cost at its full
length. Beyond a limit goes at most what the requests then in flight cost more than was reserved for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from data_gen.config import Budget
from data_gen.llm.chat import (
    NOTHING,
    Ambiguous,
    BudgetSpent,
    ChatModel,
    ChatReply,
    ChatRequest,
    NotSent,
    Permanent,
    Purpose,
    Spent,
)
from data_gen.llm.pricing import Prices, dollars

_BYTES_PER_TOKEN = 3  # of UTF-8; English has 4 to 5, and a guess should rather be high
_TOKENS_PER_MESSAGE = 8


@dataclass
class _Answered:
    """What all requests of one kind have cost."""

    total: Spent

    def mean(self) -> Spent:
        calls, tokens_in, tokens_out, usd = self.total
        return Spent(1, -(-tokens_in // calls), -(-tokens_out // calls), usd / calls)  # tokens rounded up


@dataclass(frozen=True)
class _Waiting:
    """A request that fits once others have cost less than was reserved for them."""

    kind: tuple[Purpose, str]
    at_first: Spent
    """What it is likely to cost, as long as no request of its kind was answered."""
    admitted: asyncio.Future[Spent]


class Ledger:
    """Counts what a run spends, over all restarts, and what is reserved for requests in flight.

    `spent` begins with what earlier processes spent. `assumed` is the part of it that was reserved for requests of
    this process that were lost on the way, or answered without a word about tokens: nobody knows what they cost.
    """

    def __init__(self, budget: Budget, *, spent: Spent = NOTHING) -> None:
        self.spent = spent
        self.assumed = NOTHING
        self.while_waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        """Entered around each wait for room: a batch model must know that such a lineage stands still."""
        self.reserved = NOTHING
        self._budget = budget
        self._answered: dict[tuple[Purpose, str], _Answered] = {}
        self._waiting: deque[_Waiting] = deque()

    async def reserve(self, request: ChatRequest, *, prices: Prices) -> Spent:
        """Holds what the request is likely to cost, and returns that.

        Where it fits only once others have come home below what was reserved for them, it waits for that.

        Raises:
          BudgetSpent: with this request, what was spent would pass a limit.
        """
        kind = (request.key.purpose, request.model)
        at_first = NOTHING if kind in self._answered else _at_full_length(request, prices=prices)
        waiting = _Waiting(kind, at_first, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._admit()
        try:
            if waiting.admitted.done():
                return waiting.admitted.result()
            with self.while_waiting():
                return await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.done() and not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self.release(waiting.admitted.result())
            else:
                waiting.admitted.cancel()
            raise

    def release(self, reserved: Spent) -> None:
        """The request was not sent, or refused: it cost nothing."""
        self._settle(reserved, cost=NOTHING)

    def charge(self, request: ChatRequest, *, reserved: Spent, cost: Spent) -> None:
        """The request was answered."""
        answered = self._answered.setdefault((request.key.purpose, request.model), _Answered(NOTHING))
        answered.total = answered.total.plus(cost)
        self._settle(reserved, cost=cost)

    def assume(self, reserved: Spent) -> None:
        """The request may have been answered: it is taken to have cost what was reserved."""
        self.assumed = self.assumed.plus(reserved)
        self._settle(reserved, cost=reserved)

    def _settle(self, reserved: Spent, *, cost: Spent) -> None:
        self.reserved = self.reserved.minus(reserved)
        if not self.reserved.calls:
            self.reserved = NOTHING  # what rounding has left of the USD would be in the way of the last request
        self.spent = self.spent.plus(cost)
        self._admit()

    def _admit(self) -> None:
        """Lets those in who fit, in the order in which they came."""
        while self._waiting:
            first = self._waiting[0]
            if first.admitted.done():
                self._waiting.popleft()  # it was cancelled
                continue
            answered = self._answered.get(first.kind)
            likely = answered.mean() if answered else first.at_first
            held = self.spent.plus(self.reserved)
            if any(limit.of(held.plus(likely)) > limit.most for limit in self._limits()):
                passed = [limit for limit in self._limits() if limit.of(self.spent.plus(likely)) > limit.most]
                if not passed:
                    return  # those in flight may yet make room
                first.admitted.set_exception(self._refusal(passed[0], likely=likely))
            else:
                self.reserved = self.reserved.plus(likely)
                first.admitted.set_result(likely)
            self._waiting.popleft()

    def _limits(self) -> Iterator[_Limit]:
        for name, most in vars(self._budget).items():
            if most is not None:
                yield _Limit(name, most)

    def _refusal(self, limit: _Limit, *, likely: Spent) -> BudgetSpent:
        return BudgetSpent(
            f"budget.{limit.name} = {limit.most} has no room for another request: "
            f"{limit.shown(limit.of(self.spent))} spent, and the next may take {limit.shown(limit.of(likely))}; "
            f"raise budget.{limit.name} and start the same command again to go on"
        )


@dataclass(frozen=True)
class _Limit:
    """One limit of a budget."""

    name: str
    most: float

    def of(self, spent: Spent) -> float:
        """What of `spent` this limit is about."""
        if self.name == "tokens":
            return spent.input_tokens + spent.output_tokens
        return spent.usd if self.name == "usd" else spent.calls

    def shown(self, amount: float) -> str:
        if self.name == "usd":
            return dollars(amount)
        return f"{amount:,} {self.name if amount != 1 else self.name.removesuffix('s')}"


class Charged:
    """A `ChatModel` that prices each reply, and sends only what the ledger has room for.

    A reply that says nothing of its tokens, or nothing of those of a text, is charged what was reserved for it.
    """

    def __init__(self, inner: ChatModel, *, prices: Prices, ledger: Ledger) -> None:
        self._inner = inner
        self._prices = prices
        self._ledger = ledger

    async def complete(self, request: ChatRequest) -> ChatReply:
        """`inner`'s reply with its price.

        Raises:
          BudgetSpent: the request was not sent, for the budget would not hold it.
          NotSent, Ambiguous, Permanent: as `inner` raised it; what is lost on the way counts as spent.
        """
        reserved = await self._ledger.reserve(request, prices=self._prices)
        try:
            reply = await self._inner.complete(request)
        except (NotSent, Permanent):
            self._ledger.release(reserved)
            raise
        except BaseException as error:  # lost, or cancelled on the wire
            self._ledger.assume(reserved)
            if isinstance(error, Ambiguous):
                error.assumed = reserved
            raise
        if not reply.output_tokens and (reply.text or not reply.input_tokens):
            self._ledger.assume(reserved)
            return replace(reply, usd=reserved.usd)
        usd = self._prices.price_of(reply, model=request.model)
        cost = Spent(1, reply.input_tokens, reply.output_tokens, usd)
        self._ledger.charge(request, reserved=reserved, cost=cost)
        return replace(reply, usd=usd)


def _at_full_length(request: ChatRequest, *, prices: Prices) -> Spent:
    """What a request costs at its full length, as far as its text tells the number of tokens."""
    size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
    tokens_in = size // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * len(request.messages)
    usd = prices.usd(model=request.model, input_tokens=tokens_in, output_tokens=request.max_tokens)
    return Spent(1, tokens_in, request.max_tokens, usd)

"""What a run may spend, and the wrapper that asks before it spends.

    ledger = Ledger(config.budget, spent=journal.spent)          # one for all models of a run
    model = journal.wrap(Charged(journal.marked(OpenAIChat(llm)), prices=Prices(llm), ledger=ledger))

What a request will cost is known when it is answered. So each one in flight holds a reservation: the mean of what
requests of its purpose to its model have cost so far, more where its own text is longer, and before the first one what
it would cost at its full length. Beyond a limit goes at most what the requests then in flight cost more than was
reserved for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict, deque
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


Kind = tuple[Purpose, str]
"""Requests of one purpose to one model, which cost about the same."""


@dataclass
class _Known:
    """What requests of one kind that were answered have cost; `counted` of their input tokens were `guessed`."""

    answered: Spent = NOTHING
    counted: int = 0
    guessed: int = 0

    def likely(self, waiting: _Waiting) -> Spent:
        """As the others on average, and more where its text is longer; at its full length while none is known."""
        if not self.answered.calls:
            return waiting.at_most
        calls, tokens_in, tokens_out, usd = self.answered
        mean = Spent(1, -(-tokens_in // calls), -(-tokens_out // calls), usd / calls)  # tokens rounded up
        own = waiting.at_most.input_tokens
        if self.guessed:
            own = math.ceil(own * self.counted / self.guessed)
        if own <= mean.input_tokens:
            return mean
        return Spent(1, own, mean.output_tokens, max(mean.usd, waiting.usd(own, mean.output_tokens)))


@dataclass(frozen=True)
class _Waiting:
    """A request that fits once others have cost less than was reserved for them."""

    kind: Kind
    at_most: Spent
    """What it costs at its full length."""
    usd: Callable[[int, int], float]
    """What so many input and output tokens cost."""
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
        self._known: defaultdict[Kind, _Known] = defaultdict(_Known)
        self._waiting: deque[_Waiting] = deque()

    async def reserve(self, request: ChatRequest, *, prices: Prices) -> Spent:
        """Holds what the request is likely to cost, and returns that.

        Where it fits only once others have come home below what was reserved for them, it waits for that.

        Raises:
          BudgetSpent: with this request, what was spent would pass a limit.
        """
        at_most = _at_full_length(request, prices=prices)
        admitted = asyncio.get_running_loop().create_future()

        def usd(tokens_in: int, tokens_out: int) -> float:
            return prices.usd(model=request.model, input_tokens=tokens_in, output_tokens=tokens_out)

        waiting = _Waiting(kind_of(request), at_most, usd, admitted)
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

    def hold(self, reserved: Spent) -> None:
        """Reserves for what an earlier process sent, whether there is room or not."""
        self.reserved = self.reserved.plus(reserved)

    def charge(self, kind: Kind, *, reserved: Spent, cost: Spent, guessed: int = 0) -> None:
        """A request of this kind was answered; its text, where that is known, was guessed to have so many tokens."""
        known = self._known[kind]
        known.answered = known.answered.plus(cost)
        if guessed:
            known.counted += cost.input_tokens
            known.guessed += guessed
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
            likely = self._known[first.kind].likely(first)
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


class Account:
    """What requests to one provider cost, in the ledger that all models of a run share."""

    def __init__(self, *, prices: Prices, ledger: Ledger) -> None:
        self._prices = prices
        self.ledger = ledger

    async def reserve(self, request: ChatRequest) -> Spent:
        """See `Ledger.reserve`; raises BudgetSpent."""
        return await self.ledger.reserve(request, prices=self._prices)

    def priced(self, reply: ChatReply, *, model: str, reserved: Spent) -> ChatReply:
        """The reply with its price: what was reserved for it, where it does not say how many tokens it took."""
        usd = self._prices.price_of(reply, model=model) if _tells_tokens(reply) else reserved.usd
        return replace(reply, usd=usd)

    def settle(self, reply: ChatReply, *, kind: Kind, reserved: Spent, request: ChatRequest | None = None) -> None:
        """Charges a priced reply; to which request, if that is still known."""
        if _tells_tokens(reply):
            cost = Spent(1, reply.input_tokens, reply.output_tokens, reply.usd)
            self.ledger.charge(kind, reserved=reserved, cost=cost, guessed=_text_tokens(request) if request else 0)
        else:
            self.ledger.assume(reserved)


class Charged:
    """A `ChatModel` that prices each reply, and sends only what the ledger has room for."""

    def __init__(self, inner: ChatModel, *, prices: Prices, ledger: Ledger) -> None:
        self._inner = inner
        self._account = Account(prices=prices, ledger=ledger)
        self._ledger = ledger

    async def complete(self, request: ChatRequest) -> ChatReply:
        """`inner`'s reply with its price.

        Raises:
          BudgetSpent: the request was not sent, for the budget would not hold it.
          NotSent, Ambiguous, Permanent: as `inner` raised it; what is lost on the way counts as spent.
        """
        reserved = await self._account.reserve(request)
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
        reply = self._account.priced(reply, model=request.model, reserved=reserved)
        self._account.settle(reply, kind=kind_of(request), reserved=reserved, request=request)
        return reply


def kind_of(request: ChatRequest) -> Kind:
    return request.key.purpose, request.model


def _tells_tokens(reply: ChatReply) -> bool:
    """Whether it says how many it took, and how many its text."""
    return bool(reply.output_tokens or (reply.input_tokens and not reply.text))


def _text_tokens(request: ChatRequest) -> int:
    """The input tokens of a request, as its text tells them."""
    size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
    return size // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * len(request.messages)


def _at_full_length(request: ChatRequest, *, prices: Prices) -> Spent:
    """What a request costs at its full length."""
    tokens_in = _text_tokens(request)
    usd = prices.usd(model=request.model, input_tokens=tokens_in, output_tokens=request.max_tokens)
    return Spent(1, tokens_in, request.max_tokens, usd)

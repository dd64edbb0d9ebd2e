"""As many requests at once and as fast as the provider permits, and the one layer of retries (the SDKs' are off).

    model = Pacing(journal.wrap(provider), concurrency=512, max_attempts=8, known=journal.known)

A rate limit is the only measure of what is permitted, so the pace is learned from it: see `rates.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from data_gen.llm import rates
from data_gen.llm.chat import Ambiguous, ChatModel, ChatReply, ChatRequest, NotSent
from data_gen.llm.wire import LONGEST_WAIT_SECONDS

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 60.0
_DOUBLINGS = 7  # from the first to beyond the longest
_LATE_SECONDS = 0.05  # what a busy event loop may catch up on
_DROUGHT, _DROUGHT_SECONDS = 16, 10.0  # so many refusals in a row, so long: the provider takes nobody
_PATIENCE = 25  # times as many refusals as attempts: a request refused while others pass may be at fault itself

Known = Callable[[ChatRequest], Awaitable[ChatReply | None]]


class Pacing:
    """A `ChatModel` that sends at most `concurrency` requests at once, each at most `max_attempts` times.

    The number in flight starts at 20 and doubles each round while it is used. A rate limit stops every sender until
    the provider's Retry-After, or else an exponential back-off, has passed; then they go one by one at the pace that
    the provider let through, which grows again. Oldest first: a request that was refused is the next to go.
    Other failures hold back their own sender only, which keeps its place, so that a server that is down for a while
    exhausts the attempts of few requests. A rate limit costs no attempt while the provider answers others: it is
    there, and takes one after another. (A request that it refuses 25 times `max_attempts` times is given up.)

    `requests_per_minute` and `tokens_per_minute` are limits that the user knows. A request for which `known` has a
    reply is answered with it at once, without a place.

    Counted: `ambiguous` (lost after sending: may have been paid), `not_sent`, and of those `rate_limited`. `trouble` is
    what the last request failed of, while none was answered since.
    """

    def __init__(
        self,
        inner: ChatModel,
        *,
        concurrency: int,
        max_attempts: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        known: Known | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if concurrency < 1 or max_attempts < 1:
            raise ValueError(f"concurrency ({concurrency}) and max_attempts ({max_attempts}) must be at least 1")
        for name, value in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} ({value}) must be above 0; leave it out for no limit")
        self.ambiguous = 0
        self.not_sent = 0
        self.rate_limited = 0
        self.trouble = ""
        self._inner = inner
        self._known = known
        self._max_attempts = max_attempts
        self._clock = clock
        self._sleep = sleep
        self._waiting: list[tuple[int, asyncio.Future[float], ChatRequest]] = []  # a heap: who came first is first
        self._alarm: asyncio.Task[None] | None = None
        self._arrivals = itertools.count()
        self._window = rates.opened(concurrency)
        self._places_taken = 0
        self._on_wire = 0
        self._refused_in_a_row = _DROUGHT  # until somebody is answered
        self._answered_at = float("-inf")
        self._open_at = float("-inf")
        self._pace: rates.Pace | None = None
        self._set_rate = None if requests_per_minute is None else requests_per_minute / 60.0
        self._tokens = None if tokens_per_minute is None else rates.TokenBucket(tokens_per_minute, at=clock())
        self._sent = rates.Sent(at=clock())
        self._sends = 0
        self._last_slot: _Slot | None = None
        self._lowered, self._refused_since = _Lowered(0, clock()), 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return self._window.limit

    @property
    def in_flight(self) -> int:
        """Requests that were sent and not answered yet."""
        return self._on_wire

    @property
    def rate(self) -> float | None:
        """Requests per second that are sent at most now; None while no limit is known."""
        if self._pace is None:
            return self._set_rate
        return min(self._pace.per_second, self._set_rate or math.inf)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """`inner`'s reply.

        Raises:
          NotSent, Ambiguous: the last one, after `max_attempts` attempts.
          Permanent: at once.
        """
        if self._known is not None and (reply := await self._known(request)) is not None:
            return reply
        arrival, tries = next(self._arrivals), _Tries(self._max_attempts)
        while True:
            tokens = await self._get_place(arrival, request)
            try:
                answer = await self._answer(request, tries, tokens=tokens)
            finally:
                self._leave_place()
            if answer is not None:
                return answer

    async def _answer(self, request: ChatRequest, tries: _Tries, *, tokens: float) -> ChatReply | None:
        """The reply, after failures that hold back nobody else; None after a rate limit, to be asked for again.

        Args:
          tokens: reserved for it.
        """
        while True:
            send = self._begin(tokens)
            used = tokens
            try:
                reply = await self._inner.complete(request)
            except (NotSent, Ambiguous) as error:
                is_limit = isinstance(error, NotSent) and error.rate_limited
                seconds = _wait(error, request, tries.attempt)
                if isinstance(error, NotSent):
                    used = 0.0
                self._count(error)
                if is_limit:
                    self._refused(send, seconds=seconds)
                else:
                    self._window = rates.paused(self._window)
                if not tries.go_on(is_crowded_out=is_limit and not self._takes_nobody()):
                    raise
                if is_limit:
                    return None
            else:
                self._refused_in_a_row, self._answered_at = 0, self._clock()
                self.trouble = ""
                self._window = rates.widened(self._window, in_flight=self._places_taken)
                used = self._used(reply) or used
                return reply
            finally:
                self._end(send, used=used)
            await self._sleep(seconds)
            while (seconds := self._seconds_to_wait(request)) > 0:  # it may have moved on while we slept
                await self._sleep(seconds)
            tokens = self._take_slot(request)

    # --- places, and the pace at which they are given

    async def _get_place(self, arrival: int, request: ChatRequest) -> float:
        """Waits for one of the places in the window, at this request's turn and when the pace permits.

        Returns:
          the tokens that were reserved.
        """
        called: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (arrival, called, request))
        self._admit()
        try:
            return await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._leave_place()  # it got one just before it went away
            else:
                self._admit()  # nobody may be left to come back for
            raise

    def _leave_place(self) -> None:
        self._places_taken -= 1
        self._admit()

    def _admit(self) -> None:
        """Lets in who waited longest, all that window and pace permit, and comes back when the pace permits more."""
        while self._waiting:
            _, called, request = self._waiting[0]
            if called.done():
                heapq.heappop(self._waiting)  # it went away
                continue
            if self._places_taken >= self._window.limit:
                return  # whoever leaves a place comes here
            if (seconds := self._seconds_to_wait(request)) > 0:
                if self._alarm is None:
                    self._alarm = asyncio.create_task(self._admit_in(seconds))
                return
            heapq.heappop(self._waiting)
            self._places_taken += 1
            called.set_result(self._take_slot(request))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _admit_in(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._alarm = None
        self._admit()

    def _seconds_to_wait(self, request: ChatRequest) -> float:
        now = self._clock()
        seconds = self._open_at - now
        if self._tokens is not None:
            seconds = max(seconds, self._tokens.wait(self._estimate(request), at=now))
        return seconds

    def _take_slot(self, request: ChatRequest) -> float:
        """Moves the time of the next send on by what the pace says, and reserves tokens; returns how many."""
        now, last = self._clock(), self._last_slot
        if self._pace is not None and last is not None and last.others_waited:
            self._pace = rates.quickened(self._pace, seconds=now - last.at)
        if self.rate is not None:
            self._open_at = max(self._open_at, now - _LATE_SECONDS) + 1.0 / self.rate
        others_waited = bool(self._waiting) and self._places_taken < self._window.limit
        self._last_slot = _Slot(now, others_waited=others_waited)
        if self._tokens is None:
            return 0.0
        tokens = self._estimate(request)
        self._tokens.reserve(tokens)
        return tokens

    def _begin(self, tokens: float) -> _Send:
        self._sends += 1
        self._on_wire += 1
        now = self._clock()
        self._sent.add(at=now)
        return _Send(self._sends, now, tokens)

    def _end(self, send: _Send, *, used: float) -> None:
        self._on_wire -= 1
        if self._tokens is not None:
            self._tokens.settle(send.tokens, used=used)

    def _refused(self, send: _Send, *, seconds: float) -> None:
        """Closes for so long, and goes on slower; once for all that were sent before this was known."""
        self._refused_in_a_row += 1
        self._last_slot = None  # the time that nobody may send is no time in which the pace was of use
        self._open_at = max(self._open_at, self._clock() + seconds)
        self._sent.refuse(sent_at=send.at)
        if send.number <= self._lowered.sends:
            return
        self._refused_since += 1
        lately = self._sent.lately(since=self._lowered.sent_at, until=send.at, pace=self._pace)
        seconds = send.at - self._lowered.sent_at
        if self._pace is None:
            pace = rates.first_pace(lately, growth="curve" if seconds >= rates.BRIEF_SECONDS else "doubling")
        else:
            since = rates.Count(self._sends - self._lowered.sends, self._refused_since, seconds)
            pace = rates.slowed(self._pace, lately, since=since)
        if pace is not None and pace is not self._pace:
            self._pace, self._lowered, self._refused_since = pace, _Lowered(self._sends, send.at), 0

    # --- what was heard

    def _count(self, error: NotSent | Ambiguous) -> None:
        self.trouble = str(error)
        if isinstance(error, Ambiguous):
            self.ambiguous += 1
            return
        self.not_sent += 1
        self.rate_limited += error.rate_limited

    def _takes_nobody(self) -> bool:
        dry = self._refused_in_a_row >= _DROUGHT
        return dry and self._clock() - self._answered_at >= _DROUGHT_SECONDS

    def _estimate(self, request: ChatRequest) -> float:
        assert self._tokens is not None
        chars = sum(len(message.content) for message in request.messages)
        return self._tokens.estimate(chars=chars, max_tokens=request.max_tokens)

    def _used(self, reply: ChatReply) -> float:
        """Tokens; 0 if the provider did not say."""
        if self._tokens is not None and reply.output_tokens:
            self._tokens.heard(reply.output_tokens)
        return float(reply.input_tokens + reply.output_tokens)


@dataclass(frozen=True)
class _Slot:
    """When a place was given; `others_waited` for nothing but the pace."""

    at: float
    others_waited: bool


@dataclass(frozen=True)
class _Send:
    """The n-th send of the run, and the tokens that were reserved for it."""

    number: int
    at: float
    tokens: float


@dataclass(frozen=True)
class _Lowered:
    """When the pace was last lowered: after how many sends, and when the refused one was sent."""

    sends: int
    sent_at: float


@dataclass
class _Tries:
    """Of one request."""

    most: int
    attempt: int = 1
    crowded_out: int = 0

    def go_on(self, *, is_crowded_out: bool) -> bool:
        """After a failure, which is no attempt if the provider took others instead."""
        if is_crowded_out and self.crowded_out < _PATIENCE * self.most:
            self.crowded_out += 1
            return True
        self.attempt += 1
        return self.attempt <= self.most


def _wait(error: NotSent | Ambiguous, request: ChatRequest, attempt: int) -> float:
    """Seconds: the back-off, or longer if the provider says so; of a limit it knows the end, unless that is now."""
    own = _back_off(request, attempt)
    told = error.retry_after if isinstance(error, NotSent) else None
    if told is None or told <= 0:
        return own
    is_limit = isinstance(error, NotSent) and error.rate_limited
    return min(told if is_limit else max(told, own), LONGEST_WAIT_SECONDS)


def _back_off(request: ChatRequest, attempt: int) -> float:
    """Seconds: doubling from half a second, times a factor in [0.5, 1) that depends on request and attempt alone."""
    digest = hashlib.sha256(f"{request.digest}/{attempt}".encode()).digest()
    jitter = 0.5 + int.from_bytes(digest[:4], "big") / 2**33
    return min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(attempt - 1, _DOUBLINGS)) * jitter

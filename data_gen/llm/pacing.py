"""So many requests at once and no more, and the one layer of retries (those of the client libraries are off)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from data_gen.llm.chat import Ambiguous, ChatModel, ChatReply, ChatRequest, NotSent

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 60.0
_DOUBLINGS = 7  # from the first to beyond the longest


class Pacing:
    """A `ChatModel` that sends at most `concurrency` requests at once, each at most `max_attempts` times.

    A rate limit stops every sender until the provider's Retry-After, or else an exponential back-off, has passed.
    Other failures hold back their own sender only, which keeps its place, so that a server that is down
    for a while exhausts the attempts of few requests. A rate limit costs no attempt while the provider answers
    others: it is there, and takes one after another. Counted: `ambiguous` (lost after sending: may have been paid),
    `not_sent`, and of those `rate_limited`.
    """

    def __init__(
        self,
        inner: ChatModel,
        *,
        concurrency: int,
        max_attempts: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if concurrency < 1 or max_attempts < 1:
            raise ValueError(f"concurrency ({concurrency}) and max_attempts ({max_attempts}) must be at least 1")
        self.ambiguous = 0
        self.not_sent = 0
        self.rate_limited = 0
        self._inner = inner
        self._max_attempts = max_attempts
        self._answered = 0
        self._clock = clock
        self._sleep = sleep
        self._places = asyncio.Semaphore(concurrency)
        self._open_at = float("-inf")

    async def complete(self, request: ChatRequest) -> ChatReply:
        """`inner`'s reply.

        Raises:
          NotSent, Ambiguous: the last one, after `max_attempts` attempts.
          Permanent: at once.
        """
        async with self._places:
            attempt, answered = 1, self._answered
            while True:
                await self._until_open()
                try:
                    reply = await self._inner.complete(request)
                except (NotSent, Ambiguous) as error:
                    self._count(error)
                    others_got_through = self._answered > answered
                    answered = self._answered
                    is_crowded_out = isinstance(error, NotSent) and error.rate_limited and others_got_through
                    if attempt >= self._max_attempts and not is_crowded_out:
                        raise
                    await self._hold_back(error, seconds=_back_off(request, attempt))
                    attempt += not is_crowded_out
                else:
                    self._answered += 1
                    return reply

    def _count(self, error: NotSent | Ambiguous) -> None:
        if isinstance(error, Ambiguous):
            self.ambiguous += 1
            return
        self.not_sent += 1
        self.rate_limited += error.rate_limited

    async def _hold_back(self, error: NotSent | Ambiguous, *, seconds: float) -> None:
        if isinstance(error, NotSent) and error.retry_after is not None:
            seconds = error.retry_after
        if isinstance(error, NotSent) and error.rate_limited:
            self._open_at = max(self._open_at, self._clock() + seconds)
        else:
            await self._sleep(seconds)

    async def _until_open(self) -> None:
        while (seconds := self._open_at - self._clock()) > 0:  # it may have moved on while we slept
            await self._sleep(seconds)


def _back_off(request: ChatRequest, attempt: int) -> float:
    """Seconds: doubling from half a second, times a factor in [0.5, 1) that depends on request and attempt alone."""
    digest = hashlib.sha256(f"{request.digest}/{attempt}".encode()).digest()
    jitter = 0.5 + int.from_bytes(digest[:4], "big") / 2**33
    return min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(attempt - 1, _DOUBLINGS)) * jitter

"""The simulated model as a provider serves it, with a rate, a latency and faults of the wire, in no wire format.

What a reply says, and its faults of content, come from `SimulatedChatModel`. Latency and faults of the wire are drawn
from the server's seed, the request's content and how often that request has come before, so neither order nor
concurrency changes what becomes of a request, and asking again may help.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from configs.errors import UserError
from data_gen.config import Simulated
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.llm.server.batch_faults import BatchFaults
from data_gen.llm.server.faults import (
    RetryAfter,
    TokenBucket,
    WireFault,
    drawn_fault,
    drawn_latency,
    retry_after_header,
)
from data_gen.llm.simulated import SimulatedChatModel

_SLOW_FACTOR = 10
_CACHEABLE_TOKENS = 1024  # hosted models serve from their cache no prompt below some such length,
_CACHE_BLOCK_TOKENS = 128  # and count what came from it in blocks


@dataclass(frozen=True)
class Answered:
    """A request that gets its reply. `arrival` counts from 1."""

    reply: ChatReply
    arrival: int


@dataclass(frozen=True)
class Failed:
    """A request that gets none. `draws` decides what is still open about how it fails."""

    fault: WireFault
    draws: random.Random
    retry_after: str | None = None
    """The header's value, where there is to be one."""


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How the service behaves beside its faults.

    Args:
      seed: of the faults of the wire, and of the latency.
      requests_per_second: what is permitted, above which the answer is 429; None is no limit. The bucket of tokens
        behind it holds one second.
      schedule: the permitted rate over time instead, as (from second, requests per second).
      tokens_per_minute: of input and output together, as they are counted in the replies; the bucket holds six seconds.
      latency_seconds: the median time to an answer.
      latency_spread: sigma of the log-normal distribution of the latency; 0 makes it constant.
      retry_after: the form of that header in a 429.
      batch: what goes wrong with batch jobs.
      clock: seconds, for the permitted rates.
    """

    seed: int = 0
    requests_per_second: float | None = None
    schedule: Sequence[tuple[float, float]] = ()
    tokens_per_minute: float | None = None
    latency_seconds: float = 0.01
    latency_spread: float = 0.0
    retry_after: RetryAfter = "seconds"
    batch: BatchFaults = BatchFaults()
    clock: Callable[[], float] = time.monotonic


ORDINARY = Conduct()


class Service:
    """Answers requests; `requests` counts those that were read, `full_replies` those answered whole with a success,
    which is what a provider would bill, whatever the body holds, `limited` those answered with 429.

    Raises:
      UserError: a rate or a latency that is none.
    """

    def __init__(self, config: Simulated, conduct: Conduct) -> None:
        self.requests = 0
        self.full_replies = 0
        self.limited = 0
        self.clock = conduct.clock
        self.batch_faults = conduct.batch
        self._conduct = conduct
        self._faults = config.faults
        self._model = SimulatedChatModel(config)
        self._requests, self._tokens = _buckets(conduct)
        for name in ("latency_seconds", "latency_spread"):
            if not 0 <= getattr(conduct, name) < math.inf:
                raise UserError(f"{name} = {getattr(conduct, name)} must be 0 or more")
        shares = (
            getattr(config.faults, name) for name in ("malformed", "rate_limited", "server_error", "dropped", "slow")
        )
        self._draws_something = any(shares) or (conduct.latency_seconds > 0 and conduct.latency_spread > 0)
        self._arrivals: Counter[bytes] = Counter()

    async def reply(self, request: ChatRequest) -> ChatReply:
        """What the model says: no rate, no latency, no fault of the wire, and nothing counted. Batch jobs ask this.

        Half of all prompts that are long enough for it came in part from the provider's cache.
        """
        reply = await self._model.complete(request)
        if reply.input_tokens <= _CACHEABLE_TOKENS or content_digest(request)[0] % 2:
            return reply
        return replace(reply, cached_tokens=(reply.input_tokens - 1) // _CACHE_BLOCK_TOKENS * _CACHE_BLOCK_TOKENS)

    async def serve(self, request: ChatRequest) -> Answered | Failed:
        """What becomes of a request that came over the wire."""
        self.requests += 1
        arrival = self.requests
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket]
        if buckets and (wait := max(bucket.wait() for bucket in buckets)):
            self.limited += 1
            return Failed("rate_limited", random.Random(0), self._retry_after(wait))
        if self._requests:
            self._requests.spend()
        reply = await self.reply(request)
        if self._tokens:
            self._tokens.spend(reply.input_tokens + reply.output_tokens)
        if not self._draws_something:  # 5,000 requests a second are to be measured against this server
            if self._conduct.latency_seconds:
                await asyncio.sleep(self._conduct.latency_seconds)
            return Answered(reply, arrival)
        return await self._drawn(request, Answered(reply, arrival))

    async def _drawn(self, request: ChatRequest, answered: Answered) -> Answered | Failed:
        content = content_digest(request)
        self._arrivals[content] += 1
        draws = random.Random(b"%d %d " % (self._conduct.seed, self._arrivals[content]) + content)
        fault, slow = drawn_fault(self._faults, draws), draws.random() < self._faults.slow
        if self._conduct.latency_seconds:
            seconds = drawn_latency(self._conduct.latency_seconds, self._conduct.latency_spread, draws)
            await asyncio.sleep(seconds * (_SLOW_FACTOR if slow else 1))
        if fault is None:
            return answered
        if fault != "rate_limited":
            return Failed(fault, draws)
        self.limited += 1
        return Failed(fault, draws, self._retry_after(1.0) if draws.random() < 0.5 else None)

    def _retry_after(self, wait: float) -> str | None:
        return retry_after_header(wait, form=self._conduct.retry_after, now=time.time())

    def count_full_reply(self) -> None:
        self.full_replies += 1


def content_digest(request: ChatRequest) -> bytes:
    """What draws about a request are keyed by: its messages and its seed, in whatever format they came."""
    return hashlib.sha256(repr((request.messages, request.seed)).encode("utf-8", "surrogatepass")).digest()


def _buckets(conduct: Conduct) -> tuple[TokenBucket | None, TokenBucket | None]:
    """For requests and for tokens."""
    if conduct.schedule and conduct.requests_per_second is not None:
        raise UserError("give requests_per_second or a schedule of it, not both")
    rates = conduct.schedule or conduct.requests_per_second
    requests = None if rates is None else TokenBucket(rates, clock=conduct.clock)
    if conduct.tokens_per_minute is None:
        return requests, None
    return requests, TokenBucket(conduct.tokens_per_minute / 60, clock=conduct.clock, holds_seconds=6.0)

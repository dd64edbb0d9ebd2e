"""The simulated model as a provider serves it, with a rate, a latency and faults of the wire, in no wire format.

What a reply says, and its faults of content, come from `SimulatedChatModel`. A fault of the wire is drawn from the
server's seed, the request's content and how often that request has come before, so neither order nor concurrency
changes what becomes of a request, and asking again may help.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from data_gen.config import Simulated
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.llm.server.faults import TokenBucket, WireFault, drawn_fault
from data_gen.llm.simulated import SimulatedChatModel

_SLOW_FACTOR = 10


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


class Service:
    """Answers requests; `requests` counts those that were read, `full_replies` those answered whole with a success,
    which is what a provider would bill, whatever the body holds, `limited` those answered with 429.
    """

    def __init__(
        self,
        config: Simulated,
        *,
        seed: int = 0,
        requests_per_second: float | None = None,
        latency_seconds: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = 0
        self.full_replies = 0
        self.limited = 0
        self.clock = clock
        self._faults = config.faults
        self._model = SimulatedChatModel(config)
        self._seed = seed
        self._latency = latency_seconds
        self._bucket = TokenBucket(requests_per_second, clock=clock) if requests_per_second else None
        self._arrivals: Counter[bytes] = Counter()

    async def reply(self, request: ChatRequest) -> ChatReply:
        """What the model says: no rate, no latency, no fault of the wire, and nothing counted. Batch jobs ask this."""
        return await self._model.complete(request)

    async def serve(self, request: ChatRequest) -> Answered | Failed:
        """What becomes of a request that came over the wire."""
        self.requests += 1
        arrival = self.requests
        if self._bucket and (wait := self._bucket.take()):
            self.limited += 1
            return Failed("rate_limited", random.Random(0), f"{wait:.3f}")
        content = hashlib.sha256(repr((request.messages, request.seed)).encode("utf-8", "surrogatepass")).digest()
        self._arrivals[content] += 1
        draws = random.Random(b"%d %d " % (self._seed, self._arrivals[content]) + content)
        fault, slow = drawn_fault(self._faults, draws), draws.random() < self._faults.slow
        if self._latency:
            await asyncio.sleep(self._latency * (_SLOW_FACTOR if slow else 1))
        if fault == "rate_limited":
            self.limited += 1
            return Failed(fault, draws, "1" if draws.random() < 0.5 else None)
        if fault is not None:
            return Failed(fault, draws)
        return Answered(await self.reply(request), arrival)

    def count_full_reply(self) -> None:
        self.full_replies += 1

"""A provider that limits rates, in virtual time: how much of what it permits is used, and what that costs in 429s.

The provider is a token bucket that holds one second's worth, with log-normal latency (sigma 0.5). "Settled" leaves out
the first 60 seconds after each change of the rate. Every case runs with eight seeds of latency.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from virtual_loop import run_virtually

from data_gen.llm.chat import ChatReply, ChatRequest, Message, NotSent, RequestKey
from data_gen.llm.openai import retry_after
from data_gen.llm.pacing import Pacing

SEEDS = range(8)
SETTLING = 60.0


def asking(number: int) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 0, "answer"),
        model="m",
        messages=(Message("user", "?"),),
        temperature=1.0,
        top_p=1.0,
        max_tokens=8,
        seed=number,
    )


@dataclass(frozen=True, kw_only=True)
class Segment:
    until: float
    per_second: float


@dataclass(kw_only=True)
class LimitedProvider:
    """Permits what the segment says; notes when it took and when it refused, and whom."""

    clock: Callable[[], float]
    segments: Sequence[Segment]
    seed: int = 0
    bucket_seconds: float = 1.0
    median: float = 0.3
    refusal_seconds: float = 0.005
    says_when: bool = True
    refuses_at_random: float = 0.0
    taken: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._tokens = max(1.0, self.segments[0].per_second * self.bucket_seconds)
        self._at = 0.0

    async def complete(self, request: ChatRequest) -> ChatReply:
        now = self.clock()
        rate = next(segment.per_second for segment in self.segments if now < segment.until)
        most = max(1.0, rate * self.bucket_seconds)
        self._tokens, self._at = min(most, self._tokens + (now - self._at) * rate), now
        if self._tokens < 1.0 or self._rng.random() < self.refuses_at_random:
            self.refused.append((now, request.seed))
            wait = max(0.0, 1.0 - self._tokens) / rate
            await asyncio.sleep(self.refusal_seconds)
            raise NotSent("slow down", retry_after=wait if self.says_when else None, rate_limited=True)
        self._tokens -= 1.0
        self.taken.append((now, request.seed))
        await asyncio.sleep(self.median * math.exp(0.5 * self._rng.gauss(0.0, 1.0)))
        return ChatReply(text="yes", finish_reason="stop", model="m")


def storm(*segments: Segment, lineages: int = 300, seed: int = 0, **provider: float | bool) -> LimitedProvider:
    """As many requests as the provider takes until the last segment ends, each lineage one after another."""

    async def run(clock: Callable[[], float]) -> LimitedProvider:
        limited = LimitedProvider(clock=clock, segments=segments, seed=seed, **provider)
        pacing = Pacing(limited, concurrency=512, max_attempts=8, clock=clock, sleep=asyncio.sleep)
        numbers = iter(range(10**9))

        async def lineage() -> None:
            while True:
                await pacing.complete(asking(next(numbers)))

        work = [asyncio.create_task(lineage()) for _ in range(lineages)]
        await asyncio.sleep(segments[-1].until - clock() - 1e-6)
        for task in work:
            task.cancel()
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}, "nobody gives up"
        assert pacing.rate_limited >= len(limited.refused) - 600
        return limited

    return run_virtually(run)


def used(provider: LimitedProvider, segment: Segment, *, begin: float) -> float:
    """Of what was permitted from then to the segment's end."""
    taken = sum(begin <= at < segment.until for at, _ in provider.taken)
    return taken / (segment.per_second * (segment.until - begin))


STORM = (Segment(until=180, per_second=10), Segment(until=360, per_second=2), Segment(until=540, per_second=20))
LONG_STORM = (Segment(until=600, per_second=10), Segment(until=1200, per_second=2), Segment(until=1800, per_second=20))


@pytest.mark.parametrize("seed", SEEDS)
def test_10_then_2_then_20_per_second_0_98_is_used_once_settled_for_0_03_429_per_success(seed: int) -> None:
    provider = storm(*STORM, seed=seed)
    assert len(provider.refused) / len(provider.taken) <= 0.03
    for begin, segment in zip((0.0, 180.0, 360.0), STORM, strict=True):
        assert used(provider, segment, begin=begin + SETTLING) >= 0.98
        assert used(provider, segment, begin=begin) >= 0.80, "with the time of settling"


@pytest.mark.slow
@pytest.mark.parametrize("says_when", [True, False], ids=["Retry-After", "no Retry-After"])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_an_hour_of_10_then_2_then_20_per_second_is_used_to_0_98_for_0_02_429_per_success(
    seed: int, says_when: bool
) -> None:
    provider = storm(*LONG_STORM, seed=seed, says_when=says_when)
    assert len(provider.refused) / len(provider.taken) <= 0.02
    for begin, segment in zip((0.0, 600.0, 1200.0), LONG_STORM, strict=True):
        assert used(provider, segment, begin=begin + SETTLING) >= 0.98
        assert used(provider, segment, begin=begin) >= 0.93, "with the time of settling"


def test_the_storm_with_latency_of_2_7_seconds_and_slow_refusals_is_used_to_0_97() -> None:
    provider = storm(*STORM, median=2.7, refusal_seconds=0.3)
    assert len(provider.refused) / len(provider.taken) <= 0.03
    for begin, segment in zip((0.0, 180.0, 360.0), STORM, strict=True):
        assert used(provider, segment, begin=begin + SETTLING) >= 0.97


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("per_second", [20, 200])
def test_a_fixed_rate_is_used_to_0_98_from_the_first_second_for_0_02_429_per_success(
    per_second: int, seed: int
) -> None:
    segment = Segment(until=2100 / per_second, per_second=per_second)
    provider = storm(segment, seed=seed, lineages=600)
    assert used(provider, segment, begin=0.0) >= 0.98
    assert len(provider.refused) / len(provider.taken) <= 0.02


@pytest.mark.parametrize("bucket_seconds", [0.05, 60.0])
def test_a_bucket_of_another_depth_is_used_to_0_90(bucket_seconds: float) -> None:
    segment = Segment(until=240, per_second=20)
    provider = storm(segment, bucket_seconds=bucket_seconds)
    assert used(provider, segment, begin=SETTLING) >= 0.90
    assert len(provider.refused) / len(provider.taken) <= 0.05


def test_refusals_that_no_pace_prevents_do_not_stop_a_run() -> None:
    segment = Segment(until=300, per_second=1000)
    provider = storm(segment, refuses_at_random=0.05, median=0.01, says_when=False)
    assert len(provider.taken) / segment.until >= 5.0
    assert len(provider.refused) / len(provider.taken) <= 0.10


def test_after_a_hold_back_senders_go_one_by_one() -> None:
    async def run(clock: Callable[[], float]) -> list[float]:
        class OnceClosed:
            def __init__(self) -> None:
                self.sent: list[float] = []

            async def complete(self, request: ChatRequest) -> ChatReply:
                del request
                self.sent.append(clock())
                await asyncio.sleep(0.2)
                if 1.0 < clock() < 2.0:
                    raise NotSent("closed", retry_after=30.0, rate_limited=True)
                return ChatReply(text="yes", finish_reason="stop", model="m")

        provider = OnceClosed()
        pacing = Pacing(provider, concurrency=64, max_attempts=8, clock=clock, sleep=asyncio.sleep)
        await asyncio.gather(*(pacing.complete(asking(number)) for number in range(600)))
        return provider.sent

    sent = run_virtually(run)
    after = [at for at in sent if at > 20.0]
    before = [at for at in sent if at < 2.0]
    assert min(after) >= max(before) + 30.0 - 0.2
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(after))
    assert gaps[len(gaps) // 2] > 0.001
    assert sum(at < min(after) + 0.05 for at in after) <= 0.1 * len(after), "not all at once"


def test_every_request_is_served_in_the_order_of_its_arrival_and_none_starves() -> None:
    segment = Segment(until=400, per_second=10)

    async def run(clock: Callable[[], float]) -> LimitedProvider:
        limited = LimitedProvider(clock=clock, segments=[segment])
        pacing = Pacing(limited, concurrency=512, max_attempts=8, clock=clock, sleep=asyncio.sleep)
        await asyncio.gather(*(pacing.complete(asking(number)) for number in range(2000)))
        return limited

    provider = run_virtually(run)
    order = [number for _, number in provider.taken]
    assert sorted(order) == list(range(2000))
    assert max(abs(place - number) for place, number in enumerate(order)) <= 40, "those refused in the first burst"


NOW = 1_700_000_000.0

RETRY_AFTER = {
    "seconds": ("7", 7.0),
    "a fraction": ("0.25", 0.25),
    "a date": ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
    "10^9": ("1000000000", 600.0),
    "a date next year": ("Tue, 14 Nov 2024 22:13:30 GMT", 600.0),
}
NO_RETRY_AFTER = {
    "garbage": "soon",
    "negative": "-3",
    "not a number": "nan",
    "infinite": "inf",
    "empty": "",
    "now": "0",
    "a date that is past": "Tue, 14 Nov 2023 22:00:00 GMT",
}


def waited(seconds: float | None) -> float:
    """From the answer to a request that was refused once, to its second send."""

    async def run(clock: Callable[[], float]) -> float:
        class Once:
            def __init__(self) -> None:
                self.sent: list[float] = []

            async def complete(self, request: ChatRequest) -> ChatReply:
                del request
                self.sent.append(clock())
                if len(self.sent) == 1:
                    raise NotSent("slow down", retry_after=seconds, rate_limited=True)
                return ChatReply(text="yes", finish_reason="stop", model="m")

        provider = Once()
        await Pacing(provider, concurrency=1, max_attempts=2, clock=clock, sleep=asyncio.sleep).complete(asking(0))
        return provider.sent[1] - provider.sent[0]

    return run_virtually(run)


@pytest.mark.parametrize("form", RETRY_AFTER)
def test_retry_after_is_honoured_to_0_1_seconds_in_the_form(form: str) -> None:
    header, seconds = RETRY_AFTER[form]
    assert waited(retry_after(header, now=NOW)) == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("form", NO_RETRY_AFTER)
def test_a_retry_after_that_says_nothing_is_a_back_off_that_is(form: str) -> None:
    assert 0.25 <= waited(retry_after(NO_RETRY_AFTER[form], now=NOW)) <= 0.5

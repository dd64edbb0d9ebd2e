"""What a provider does beside answering: permitted rates, latency, and when it says to come again; in virtual time."""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import selectors
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from raw_http import exchange, post

from configs.errors import UserError
from data_gen.config import Faults, Simulated
from data_gen.llm.chat import ChatRequest, Message, RequestKey
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.faults import RetryAfter, TokenBucket, drawn_latency
from data_gen.llm.server.service import Answered, Conduct, Failed, Service
from data_gen.llm.simulated import NAME
from wizard_jax.cli import main

T = TypeVar("T")
STORM = ((0.0, 10.0), (600.0, 2.0), (1200.0, 20.0))


class VirtualTime(selectors.SelectSelector):
    """A clock that an event loop sets forward where it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def run_in_virtual_time(run: Callable[[Callable[[], float]], Coroutine[Any, Any, T]]) -> T:
    time = VirtualTime()
    loop = asyncio.SelectorEventLoop(time)
    loop.time = lambda: time.now
    loop._clock_resolution = 1e-9
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run(loop.time))


def asking(text: str = "Why?", *, seed: int = 0) -> ChatRequest:
    return ChatRequest(
        key=RequestKey("a", 0, "answer"),
        model=NAME,
        messages=(Message("user", text),),
        temperature=1.0,
        top_p=1.0,
        max_tokens=64,
        seed=seed,
    )


def latencies(texts: list[str], *, seed: int = 0, slow: float = 0.0) -> list[float]:
    """Seconds to each answer, all asked at once."""

    async def run(clock: Callable[[], float]) -> list[float]:
        conduct = Conduct(seed=seed, latency_seconds=0.3, latency_spread=0.5, clock=clock)
        service = Service(Simulated(faults=Faults(slow=slow)), conduct)

        async def seconds(text: str) -> float:
            assert isinstance(await service.serve(asking(text)), Answered)
            return clock()

        return await asyncio.gather(*(seconds(text) for text in texts))

    return run_in_virtual_time(run)


def test_latency_is_log_normal_around_its_median() -> None:
    draws = random.Random(3)
    logs = [math.log(drawn_latency(0.3, 0.5, draws)) for _ in range(20_000)]
    assert math.exp(statistics.fmean(logs)) == pytest.approx(0.3, rel=0.02)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.02)
    assert drawn_latency(0.3, 0.0, draws) == 0.3


def test_latency_depends_on_content_and_arrival_and_seed_but_not_on_order() -> None:
    texts = [f"question {i}" for i in range(200)]
    drawn = latencies(texts)
    assert latencies(texts[::-1]) == drawn[::-1]
    assert latencies(texts, seed=1) != drawn
    assert len(set(drawn)) == 200
    assert 0.25 < statistics.median(drawn) < 0.35
    assert len(set(latencies(["the same"] * 50))) == 50
    assert latencies(texts, slow=1.0) == pytest.approx([10 * seconds for seconds in drawn])


def test_a_schedule_permits_10_then_2_then_20_requests_a_second() -> None:
    now = [1000.0]
    bucket = TokenBucket(STORM, clock=lambda: now[0])
    passed: Counter[int] = Counter()
    for tick in range(1800 * 40):
        now[0] = 1000.0 + tick / 40
        if not bucket.wait():
            bucket.spend()
            passed[tick // 40 // 600] += 1
    assert passed == {0: 6009, 1: 1200, 2: 12_000}  # the bucket was full at first


def test_who_waits_as_long_as_told_is_let_through_and_no_sooner() -> None:
    now = [0.0]
    bucket = TokenBucket(4.0, clock=lambda: now[0])
    for _ in range(4):
        assert bucket.wait() == 0
        bucket.spend()
    wait = bucket.wait()
    assert wait == pytest.approx(0.25)
    now[0] += wait * 0.99
    assert bucket.wait() > 0
    now[0] += wait * 0.02
    assert bucket.wait() == 0


def test_a_bucket_that_was_left_alone_over_two_steps_is_full_at_the_last_rate_only() -> None:
    now = [0.0]
    bucket = TokenBucket(STORM, clock=lambda: now[0])
    assert bucket.wait() == 0
    now[0] = 1200.06  # it held 2 at second 1200, and 20 a second have come since
    passed = 0
    while not bucket.wait():
        bucket.spend()
        passed += 1
    assert passed == 3


@pytest.mark.parametrize("rates", [0.0, -1.0, math.nan, math.inf, (), ((1.0, 2.0),), ((0.0, 2.0), (0.0, 3.0))])
def test_a_rate_or_schedule_that_is_none_is_refused(rates: Any) -> None:
    with pytest.raises(UserError, match="rate"):
        TokenBucket(rates, clock=time.monotonic)


def served_in_a_minute(conduct: Callable[[Callable[[], float]], Conduct], *, every: float) -> list[Answered | Failed]:
    async def run(clock: Callable[[], float]) -> list[Answered | Failed]:
        service = Service(Simulated(), conduct(clock))
        outcomes = []
        while clock() < 60:
            outcomes.append(await service.serve(asking(f"question {len(outcomes)}")))
            await asyncio.sleep(every)
        assert service.requests == len(outcomes)
        assert service.limited == sum(isinstance(outcome, Failed) for outcome in outcomes)
        return outcomes

    return run_in_virtual_time(run)


def test_tokens_per_minute_are_what_passes_in_a_minute_and_a_tenth_more() -> None:
    outcomes = served_in_a_minute(
        lambda clock: Conduct(tokens_per_minute=6000, latency_seconds=0.0, clock=clock), every=0.05
    )
    replies = [outcome.reply for outcome in outcomes if isinstance(outcome, Answered)]
    tokens = sum(reply.input_tokens + reply.output_tokens for reply in replies)
    assert len(replies) < len(outcomes)
    assert 6000 * 1.08 < tokens < 6000 * 1.12


def test_a_request_that_the_tokens_forbid_costs_no_request() -> None:
    limits: dict[str, float] = {"requests_per_second": 2, "tokens_per_minute": 1200, "latency_seconds": 0}
    outcomes = served_in_a_minute(lambda clock: Conduct(**limits, clock=clock), every=0.05)
    replies = [outcome.reply for outcome in outcomes if isinstance(outcome, Answered)]
    assert 1200 < sum(reply.input_tokens + reply.output_tokens for reply in replies) < 1400


def told_to_wait(form: RetryAfter, *, faults: Faults | None = None, rate: float | None = 0.5) -> list[str | None]:
    """The header of each 429; None stands for none."""

    async def run() -> list[str | None]:
        server = SimulatedServer(
            Simulated(faults=faults or Faults()),
            conduct=Conduct(requests_per_second=rate, latency_seconds=0.0, retry_after=form),
        )
        async with server:
            raw = b"".join(post({"model": NAME, "messages": [{"role": "user", "content": str(i)}]}) for i in range(20))
            answers = await exchange(server, raw)
            assert server.limited == sum(status == 429 for status, _, _ in answers)
            return [headers.get("retry-after") for status, headers, _ in answers if status == 429]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("form", "header"), [("garbage", "presently"), ("negative", "-5"), ("huge", "1000000000"), ("none", None)]
)
def test_when_to_come_again_is_said_in_every_way_that_means_nothing(form: RetryAfter, header: str | None) -> None:
    assert told_to_wait(form) == [header] * 19
    drawn = told_to_wait(form, faults=Faults(rate_limited=1.0), rate=None)
    assert set(drawn) == {header, None}


def test_when_to_come_again_is_said_in_seconds_or_as_a_date() -> None:
    assert all(1.0 < float(wait or 0) <= 2.0 for wait in told_to_wait("seconds"))
    before = time.time()
    for date in told_to_wait("date"):
        assert date is not None
        assert date.endswith(" GMT")
        assert before < email.utils.parsedate_to_datetime(date).timestamp() < time.time() + 3.0


def test_long_prompts_come_in_part_from_the_cache_half_of_the_time_always_the_same_half() -> None:
    async def cached() -> list[int]:
        service = Service(Simulated(), Conduct())
        return [(await service.reply(asking("word " * 3000, seed=seed))).cached_tokens for seed in range(60)]

    counts = asyncio.run(cached())
    assert set(counts) == {0, 2944}
    assert 15 < counts.count(0) < 45
    assert counts == asyncio.run(cached())
    short = asyncio.run(Service(Simulated(), Conduct()).reply(asking("word " * 1000)))
    assert short.cached_tokens == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--requests-per-second", "0"), "above 0"),
        (("--tokens-per-minute", "-1"), "above 0"),
        (("--latency-seconds", "-1"), "latency_seconds = -1.0"),
        (("--latency-spread", "nan"), "latency_spread = nan"),
        (("--port", "99999"), "--port"),
    ],
)
def test_what_can_not_be_is_refused_by_the_command(
    flags: tuple[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate-llm", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_rate_and_a_schedule_are_not_given_both() -> None:
    with pytest.raises(UserError, match="not both"):
        SimulatedServer(Simulated(), conduct=Conduct(requests_per_second=1.0, schedule=STORM))


def test_limits_that_change_show_at_the_socket() -> None:
    now = [0.0]

    async def run() -> list[int]:
        conduct = Conduct(schedule=((0.0, 5.0), (10.0, 1.0)), latency_seconds=0.0, clock=lambda: now[0])
        async with SimulatedServer(Simulated(), conduct=conduct) as server:
            full = [server.full_replies]
            for second in range(20):
                now[0] = float(second)
                raw = b"".join(post({"model": NAME, "messages": [{"role": "user", "content": "?"}]}) for _ in range(8))
                await exchange(server, raw)
                full.append(server.full_replies)
            assert server.requests == 160
            assert server.limited == 160 - server.full_replies
            return [after - before for before, after in pairwise(full)]

    assert asyncio.run(run()) == [5] * 11 + [1] * 9

"""So many requests at once, waits that are honoured, and no more attempts than allowed; in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

import pytest

from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.pacing import Pacing


def asking(number: int = 0) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 0, "answer"),
        model="m",
        messages=(Message("user", "?"),),
        temperature=1.0,
        top_p=1.0,
        max_tokens=8,
        seed=number,
    )


class VirtualTime:
    """A clock that jumps to the next sleeper when nobody has anything else to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), woken))
        await woken

    async def run(self, *work: asyncio.Task[ChatReply]) -> list[ChatReply | BaseException]:
        while not all(task.done() for task in work):
            for _ in range(20):  # lets everyone who can go on do so
                await asyncio.sleep(0)
            if self._sleepers and not all(task.done() for task in work):
                at, _, woken = heapq.heappop(self._sleepers)
                self.now = max(self.now, at)
                woken.set_result(None)
        return await asyncio.gather(*work, return_exceptions=True)


class Provider:
    """Takes a second for an answer, and fails as `failure` says of the n-th request; notes when what was sent."""

    def __init__(self, time: VirtualTime, failure: Callable[[int], Exception | None]) -> None:
        self.sent: list[tuple[float, int]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._time = time
        self._failure = failure

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.sent.append((self._time.now, request.seed))
        failure = self._failure(len(self.sent))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._time.sleep(1.0)
        self.in_flight -= 1
        if failure is not None:
            raise failure
        return ChatReply(text="yes", finish_reason="stop", model="m")


def paced(
    failure: Callable[[int], Exception | None], *, requests: int, concurrency: int, max_attempts: int = 4
) -> tuple[list[ChatReply | BaseException], Provider, Pacing]:
    async def run() -> tuple[list[ChatReply | BaseException], Provider, Pacing]:
        time = VirtualTime()
        provider = Provider(time, failure)
        pacing = Pacing(
            provider, concurrency=concurrency, max_attempts=max_attempts, clock=time.clock, sleep=time.sleep
        )
        work = [asyncio.create_task(pacing.complete(asking(i))) for i in range(requests)]
        return await time.run(*work), provider, pacing

    return asyncio.run(run())


def test_no_more_requests_are_in_flight_than_allowed_and_no_fewer() -> None:
    outcomes, provider, _ = paced(lambda _: None, requests=50, concurrency=7)
    assert provider.most_in_flight == 7
    assert len(outcomes) == len(provider.sent) == 50


def test_retry_after_of_a_rate_limit_stops_every_sender() -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("slow down", retry_after=30.0, rate_limited=True) if sent == 4 else None

    outcomes, provider, pacing = paced(failure, requests=40, concurrency=4)
    assert all(isinstance(outcome, ChatReply) for outcome in outcomes)
    assert pacing.rate_limited == pacing.not_sent >= 1
    told = 1.0  # the fourth request is one of those sent at 0, and its answer takes a second
    assert not [at for at, _ in provider.sent if told < at < told + 30.0]
    assert sum(at == told + 30.0 for at, _ in provider.sent) >= 1


def test_a_later_rate_limit_holds_those_who_already_wait() -> None:
    # Both are sent at 0. The first is told at 1 to wait until 3; the second at 1, just after, until 31.
    def failure(sent: int) -> Exception | None:
        return NotSent("slow", retry_after={1: 2.0, 2: 30.0}[sent], rate_limited=True) if sent <= 2 else None

    _, provider, _ = paced(failure, requests=2, concurrency=2)
    assert sorted(at for at, _ in provider.sent) == [0.0, 0.0, 31.0, 31.0]


def test_a_rate_limit_without_retry_after_backs_off_further_each_time() -> None:
    _, provider, _ = paced(lambda _: NotSent("slow down", rate_limited=True), requests=1, concurrency=1, max_attempts=6)
    waits = [after - before - 1.0 for (before, _), (after, _) in itertools.pairwise(provider.sent)]
    for attempt, wait in enumerate(waits):
        assert 0.25 * 2**attempt <= wait < 0.5 * 2**attempt
    assert len(waits) == 5


def test_a_rate_limit_drops_nobody_while_others_are_answered() -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("slow down", retry_after=1.0, rate_limited=True) if sent % 8 and sent < 300 else None

    outcomes, provider, _ = paced(failure, requests=64, concurrency=16, max_attempts=4)
    assert all(isinstance(outcome, ChatReply) for outcome in outcomes)
    assert len(provider.sent) > 4 * 64, "more sends than attempts that each has"


def test_a_rate_limit_that_lets_nobody_through_ends() -> None:
    outcomes, provider, _ = paced(
        lambda sent: NotSent("no quota today", rate_limited=True) if sent > 8 else None, requests=64, concurrency=8
    )
    assert sum(isinstance(outcome, NotSent) for outcome in outcomes) == 56
    assert len(provider.sent) <= 8 + 56 * 5


def test_any_number_of_attempts_has_a_longest_wait() -> None:
    (outcome,), provider, _ = paced(lambda _: Ambiguous("down"), requests=1, concurrency=1, max_attempts=1100)
    assert isinstance(outcome, Ambiguous)
    assert max(after - before for (before, _), (after, _) in itertools.pairwise(provider.sent)) <= 61.0


def test_a_failure_that_is_no_rate_limit_holds_back_its_own_sender_only() -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("refused", retry_after=100.0) if sent == 1 else None

    _, provider, _ = paced(failure, requests=20, concurrency=2)
    assert [at for at, number in provider.sent if number == 0] == [0.0, 101.0]
    assert max(at for at, number in provider.sent if number != 0) < 20.0


def test_equal_runs_wait_equally_and_different_requests_differently() -> None:
    def at(number: int) -> list[float]:
        async def run() -> list[float]:
            time = VirtualTime()
            provider = Provider(time, lambda _: Ambiguous("lost"))
            pacing = Pacing(provider, concurrency=1, max_attempts=4, clock=time.clock, sleep=time.sleep)
            await time.run(asyncio.create_task(pacing.complete(asking(number))))
            return [at for at, _ in provider.sent]

        return asyncio.run(run())

    assert at(1) == at(1)
    assert at(1) != at(2)


@pytest.mark.parametrize("error", [NotSent("refused"), Ambiguous("lost")], ids=["not sent", "ambiguous"])
def test_the_last_error_is_raised_after_the_last_attempt(error: Exception) -> None:
    (outcome,), provider, pacing = paced(lambda _: error, requests=1, concurrency=1, max_attempts=3)
    assert outcome is error
    assert len(provider.sent) == 3
    assert (pacing.ambiguous, pacing.not_sent) == ((3, 0) if isinstance(error, Ambiguous) else (0, 3))


def test_what_will_never_succeed_is_not_tried_again() -> None:
    error = Permanent("bad key", scope="run")
    (outcome,), provider, _ = paced(lambda _: error, requests=1, concurrency=1)
    assert outcome is error
    assert len(provider.sent) == 1


def test_a_server_that_is_down_exhausts_only_those_that_were_sent() -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("connection refused") if sent <= 9 else None

    outcomes, _, _ = paced(failure, requests=100, concurrency=3, max_attempts=4)
    assert sum(isinstance(outcome, NotSent) for outcome in outcomes) == 0


@pytest.mark.parametrize("setting", [{"concurrency": 0, "max_attempts": 1}, {"concurrency": 1, "max_attempts": 0}])
def test_limits_below_one_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pacing(Provider(VirtualTime(), lambda _: None), **setting)

"""So many requests at once, waits that are honoured, and no more attempts than allowed; in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace

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
                if not woken.done():  # its sleeper may have been cancelled
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
    at = [at for at, _ in provider.sent]
    assert at[:3] == [0.0, 0.0, 31.0]
    assert 31.0 < at[3] < 33.0, "one after the other"


def test_a_rate_limit_without_retry_after_backs_off_further_each_time() -> None:
    _, provider, _ = paced(lambda _: NotSent("slow down", rate_limited=True), requests=1, concurrency=1, max_attempts=6)
    waits = [after - before - 1.0 for (before, _), (after, _) in itertools.pairwise(provider.sent)]
    for attempt, wait in enumerate(waits):
        assert 0.25 * 2**attempt <= wait < 0.5 * 2**attempt
    assert len(waits) == 5


@pytest.mark.parametrize("is_limit", [True, False], ids=["429", "503"])
def test_told_to_come_back_at_once_a_request_backs_off_as_if_it_were_told_nothing(is_limit: bool) -> None:
    def waits(retry_after: float | None) -> list[float]:
        refused = NotSent("no", retry_after=retry_after, rate_limited=is_limit)
        _, provider, _ = paced(lambda _: refused, requests=1, concurrency=1, max_attempts=8)
        return [after - before - 1.0 for (before, _), (after, _) in itertools.pairwise(provider.sent)]

    assert waits(0.0) == waits(None)
    assert sum(waits(0.0)) > 30.0, "a server that restarts is waited for"


def test_a_wait_that_is_told_is_the_least_that_a_server_in_trouble_is_left_alone() -> None:
    _, provider, _ = paced(lambda _: NotSent("down", retry_after=2.0), requests=1, concurrency=1, max_attempts=6)
    waits = [after - before - 1.0 for (before, _), (after, _) in itertools.pairwise(provider.sent)]
    assert waits[:2] == [2.0, 2.0]
    assert 4.0 <= waits[4] < 8.0, "by then the own back-off is longer"


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


def test_the_number_in_flight_starts_at_20_and_doubles_each_round_up_to_the_limit() -> None:
    _, provider, _ = paced(lambda _: None, requests=500, concurrency=100)
    rounds = [sum(at == second for at, _ in provider.sent) for second in range(5)]
    assert rounds == [20, 40, 80, 100, 100]


def test_a_failure_that_is_no_rate_limit_pauses_growth_for_a_round() -> None:
    def failure(sent: int) -> Exception | None:
        return Ambiguous("lost") if sent == 1 else None

    _, provider, _ = paced(failure, requests=100, concurrency=100)
    assert [sum(at == second for at, _ in provider.sent) for second in range(2)] == [20, 19]


def test_who_waited_longest_goes_first_and_who_was_refused_before_all() -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("slow down", retry_after=5.0, rate_limited=True) if sent in (3, 4) else None

    _, provider, _ = paced(failure, requests=12, concurrency=4)
    assert [number for _, number in provider.sent] == [0, 1, 2, 3, 4, 5, 2, 3, *range(6, 12)]


@pytest.mark.parametrize("retry_after", [-5.0, 0.0, 1e9, float("inf")])
def test_a_wait_that_is_no_wait_or_too_long_is_bounded_by_0_and_ten_minutes(retry_after: float) -> None:
    def failure(sent: int) -> Exception | None:
        return NotSent("slow down", retry_after=retry_after, rate_limited=True) if sent == 2 else None

    outcomes, provider, _ = paced(failure, requests=2, concurrency=1)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    last, again = [at for at, number in provider.sent if number == 1]
    waited = again - last - 1.0
    assert waited == 600.0 if retry_after > 0 else 0.0 <= waited <= 2.0


def test_a_request_that_is_refused_while_all_others_pass_is_given_up_in_the_end() -> None:
    class Choosy(Provider):
        async def complete(self, request: ChatRequest) -> ChatReply:
            await super().complete(request)
            if request.seed == 7:
                raise NotSent("too large for your tier", retry_after=0.1, rate_limited=True)
            return ChatReply(text="yes", finish_reason="stop", model="m")

    async def run() -> list[ChatReply | BaseException]:
        time = VirtualTime()
        pacing = Pacing(Choosy(time, lambda _: None), concurrency=4, max_attempts=2, clock=time.clock, sleep=time.sleep)
        return await time.run(*(asyncio.create_task(pacing.complete(asking(i))) for i in range(400)))

    outcomes = asyncio.run(run())
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, NotSent)] == [7]


def test_requests_per_minute_are_kept_and_used() -> None:
    async def run() -> list[float]:
        time = VirtualTime()
        provider = Provider(time, lambda _: None)
        pacing = Pacing(
            provider, concurrency=50, max_attempts=1, requests_per_minute=120, clock=time.clock, sleep=time.sleep
        )
        assert pacing.rate == 2.0
        await time.run(*(asyncio.create_task(pacing.complete(asking(i))) for i in range(240)))
        return [at for at, _ in provider.sent]

    sent = asyncio.run(run())
    assert max(sum(begin <= at < begin + 60.0 for at in sent) for begin in sent) <= 121
    assert sent[-1] < 120.0


@pytest.mark.parametrize("tokens", [40, 400])
def test_tokens_per_minute_are_kept_and_used_whatever_replies_hold(tokens: int) -> None:
    class Wordy(Provider):
        async def complete(self, request: ChatRequest) -> ChatReply:
            reply = await super().complete(request)
            return replace(reply, input_tokens=100, output_tokens=tokens)

    async def run() -> list[float]:
        time = VirtualTime()
        provider = Wordy(time, lambda _: None)
        pacing = Pacing(
            provider, concurrency=50, max_attempts=1, tokens_per_minute=60_000, clock=time.clock, sleep=time.sleep
        )
        questions = [replace(asking(i), messages=(Message("user", "?" * 400),), max_tokens=2048) for i in range(600)]
        await time.run(*(asyncio.create_task(pacing.complete(question)) for question in questions))
        return [at for at, _ in provider.sent]

    sent = asyncio.run(run())
    used = (100 + tokens) * len(sent)
    assert 0.9 * used / 1000.0 - 6.0 < sent[-1] < 1.1 * used / 1000.0


def test_what_is_known_is_answered_without_a_place_and_tells_nothing_about_the_provider() -> None:
    old = ChatReply(text="before", finish_reason="stop", model="m")

    async def known(request: ChatRequest) -> ChatReply | None:
        return old if request.seed % 2 else None

    async def run() -> tuple[list[ChatReply | BaseException], Provider, float]:
        time = VirtualTime()
        provider = Provider(time, lambda _: None)
        pacing = Pacing(provider, concurrency=1, max_attempts=1, known=known, clock=time.clock, sleep=time.sleep)
        work = [asyncio.create_task(pacing.complete(asking(i))) for i in range(6)]
        return await time.run(*work), provider, time.now

    replies, provider, seconds = asyncio.run(run())
    assert [reply is old for reply in replies] == [False, True] * 3
    assert ([number for _, number in provider.sent], seconds) == ([0, 2, 4], 3.0)


def test_who_gives_up_waiting_leaves_the_turn_and_the_place_to_others() -> None:
    async def run() -> int:
        time = VirtualTime()
        provider = Provider(time, lambda _: None)
        pacing = Pacing(provider, concurrency=2, max_attempts=1, clock=time.clock, sleep=time.sleep)
        work = [asyncio.create_task(pacing.complete(asking(i))) for i in range(40)]
        for doomed in (*work[0:2], *work[3:30:2]):  # some on the wire, the one whose turn it is, and some in the queue
            await asyncio.sleep(0)
            doomed.cancel()
        outcomes = await time.run(*work)
        assert (pacing.in_flight, pacing.limit) == (0, 2)
        return sum(isinstance(outcome, ChatReply) for outcome in outcomes)

    assert asyncio.run(run()) == 40 - 16


@pytest.mark.parametrize("setting", [{"requests_per_minute": 0.0}, {"tokens_per_minute": -1.0}])
def test_rates_of_nothing_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pacing(
            Provider(VirtualTime(), lambda _: None),
            concurrency=1,
            max_attempts=1,
            requests_per_minute=setting.get("requests_per_minute"),
            tokens_per_minute=setting.get("tokens_per_minute"),
        )


@pytest.mark.parametrize("setting", [{"concurrency": 0, "max_attempts": 1}, {"concurrency": 1, "max_attempts": 0}])
def test_limits_below_one_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pacing(Provider(VirtualTime(), lambda _: None), **setting)


def test_what_requests_fail_of_is_told_until_one_is_answered() -> None:
    _, _, pacing = paced(lambda _: NotSent("no route to host"), requests=1, concurrency=1)
    assert pacing.trouble == "no route to host"
    _, _, pacing = paced(lambda n: NotSent("no route to host") if n < 3 else None, requests=1, concurrency=1)
    assert not pacing.trouble

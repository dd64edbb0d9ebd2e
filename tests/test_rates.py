"""What the window, the pace and the token bucket do after answers and rate limits."""

from __future__ import annotations

import pytest

from data_gen.llm import rates
from data_gen.llm.rates import Count, Pace, Sent, TokenBucket


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = rates.opened(100)
    assert rates.widened(window, in_flight=15) == window
    assert rates.widened(window, in_flight=16).limit == window.limit + 1
    assert rates.opened(7).limit == 7


def test_a_pace_starts_a_tenth_lower_is_back_after_eight_seconds_and_then_grows_ever_faster() -> None:
    pace = rates.slowed(Pace(10.0, 10.0), Count(50, 1, 5.0), since=Count(50, 1, 5.0))
    at = [rates.quickened(pace, seconds=seconds).per_second for seconds in (0, 4, 8, 12, 16, 50)]
    assert at[0] == pytest.approx(0.9 * 9.8)
    assert at[2] == pytest.approx(9.8)
    assert at[3] < 1.03 * 9.8
    assert at[4] == pytest.approx(1.1 * 9.8)
    assert at[5] > 10 * 9.8
    assert at == sorted(at)


def test_a_pace_follows_what_passed_when_that_was_far_less() -> None:
    told = Count(sent=50, refused=40, seconds=5.0)
    assert rates.slowed(Pace(10.0, 10.0), told, since=told).plateau == pytest.approx(2.0)


def test_when_nothing_passes_the_pace_is_halved_and_comes_back() -> None:
    told = Count(sent=5, refused=5, seconds=5.0)
    pace = rates.slowed(Pace(10.0, 10.0), told, since=told)
    assert pace.per_second == pytest.approx(5.0)
    assert rates.quickened(pace, seconds=20.0).per_second > 10.0
    for _ in range(100):
        pace = rates.slowed(pace, told, since=told)
    assert pace.per_second == pytest.approx(0.05)


def lowered_far(refused_share: float) -> Pace:
    """A pace that was lowered, again and again, with such a share refused each time."""
    pace = Pace(100.0, 100.0)
    for _ in range(40):
        sent = max(20, int(pace.per_second * 5))
        told = Count(sent, max(1, round(sent * refused_share)), 5.0 if pace.per_second > 4 else sent / pace.per_second)
        pace = rates.slowed(pace, told, since=told)
        if pace.growth == "none":
            return pace
    raise AssertionError("no trial was begun")


def test_a_share_that_is_refused_at_any_rate_is_tolerated_after_a_trial() -> None:
    trial = lowered_far(0.1)
    assert trial.per_second > 2 * trial.plateau
    early = Count(10, 1, 1.0)
    assert rates.slowed(trial, early, since=early) is trial
    same = Count(60, 6, 5.0)
    free = rates.slowed(trial, same, since=same)
    assert free.per_second == pytest.approx(trial.per_second)
    assert rates.slowed(free, same, since=same) is free


def test_a_trial_that_refuses_more_goes_back_to_what_passed() -> None:
    trial = lowered_far(0.1)
    more = Count(60, 40, 5.0)
    assert rates.slowed(trial, more, since=more).plateau == pytest.approx(4.0)


def test_refusals_are_counted_where_they_were_sent_and_only_of_late() -> None:
    sent = Sent(at=0.0)
    for tick in range(200):
        sent.add(at=tick / 10)
    sent.refuse(sent_at=19.5)
    sent.refuse(sent_at=12.0)
    told = sent.lately(since=0.0, until=19.9, pace=Pace(1.0, 1.0))
    assert told.passed_per_second == pytest.approx(10.0, rel=0.1)
    assert told.refused == 1


def test_tokens_are_reserved_settled_and_refilled() -> None:
    bucket = TokenBucket(600.0, at=0.0)  # 10 a second, 60 at once
    assert bucket.wait(60.0, at=0.0) == 0.0
    bucket.reserve(60.0)
    assert bucket.wait(20.0, at=1.0) == pytest.approx(1.0)
    bucket.settle(60.0, used=40.0)
    assert bucket.wait(20.0, at=1.0) == 0.0
    assert bucket.wait(1e6, at=1000.0) == 0.0, "more than it ever holds waits for a full one, and goes"


def test_what_replies_hold_is_learned() -> None:
    bucket = TokenBucket(600.0, at=0.0)
    assert bucket.estimate(chars=400, max_tokens=2048) == 2148.0
    for _ in range(100):
        bucket.heard(50)
    assert bucket.estimate(chars=400, max_tokens=2048) == pytest.approx(150.0)

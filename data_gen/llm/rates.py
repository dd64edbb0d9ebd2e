"""How many requests at once, and how fast: what `pacing.py` learns from answers and rate limits, without a clock.

A provider limits requests (or tokens) per time, so it is the rate that a rate limit lowers, by multiplication, and
that grows again. The number in flight follows from rate and latency: its window doubles each round until it is wide
enough, and a rate limit does not narrow it. (Narrowed by a fifth as well, the same simulated provider was used to
0.62 of what it permitted, for 1.00, where an answer takes 45 s: a window comes back only once per round.)

The learned rate follows the curve of TCP CUBIC (RFC 9438), made relative to the rate itself so that one constant
serves 2 and 2,000 requests per second: down by a tenth, back in eight seconds to where the limit was met, slowly
past it, then ever faster, for the limit may have been lifted. Where the provider refuses one in twenty at random, that
alone would end at one or two requests per second; a trial finds out, and such a share is then no reason to slow down.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

FIRST_IN_FLIGHT = 20
_FULL = 0.8  # a window that is used less than this says nothing about a wider one

_SLOWER = 0.9
_BACK_SECONDS = 8.0
_CURVATURE = (1.0 - _SLOWER) / _BACK_SECONDS**3
_SLOWEST = 1.0 / 20.0  # one in twenty seconds: slower limits are held by their waits
_MOST_DOUBLINGS = 20.0
_TWICE = 2  # while the rate doubles, a true limit refuses the second within the second
_FAR, _LOW = 4.0, 3  # three times lowered below a quarter of the best: is it our rate at all?
_TRIAL_SECONDS, _TRIAL_SENDS = 4.0, 40
_MOST_TOLERATED = 0.5

_BIN_SECONDS = 0.25
BRIEF_SECONDS, _LONG_SECONDS = 1.0, 5.0

_BURST, _ROUNDING = 0.1, 1e-9  # of a minute's tokens; of a burst
_CHARS_PER_TOKEN = 4.0
_NEWEST = 0.05  # of the mean length of replies, the newest one's share


@dataclass(frozen=True)
class Window:
    """`limit` requests may be in flight, never more than `most`; it does not grow before `pause` more answers."""

    limit: int
    most: int
    pause: int = 0


def opened(most: int) -> Window:
    """The window that a run starts with."""
    return Window(min(FIRST_IN_FLIGHT, most), most)


def widened(window: Window, *, in_flight: int) -> Window:
    """After an answer: one wider if it was in use, so a round of answers doubles it."""
    if window.pause:
        return replace(window, pause=window.pause - 1)
    is_full = in_flight >= _FULL * window.limit
    return replace(window, limit=window.limit + 1) if is_full and window.limit < window.most else window


def paused(window: Window) -> Window:
    """After a failure that is no rate limit: no growth for a round."""
    return replace(window, pause=window.limit)


class Count(NamedTuple):
    """Requests that were sent within so many seconds, and those of them that were refused."""

    sent: int = 0
    refused: int = 0
    seconds: float = 0.0

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.sent)

    @property
    def passed_per_second(self) -> float:
        return (self.sent - self.refused) / max(BRIEF_SECONDS, self.seconds)

    def plus(self, other: Count) -> Count:
        return Count(self.sent + other.sent, self.refused + other.refused, self.seconds + other.seconds)


@dataclass(frozen=True)
class Pace:
    """A rate: `start` when it was last lowered, after `seconds` of use; the limit was last met at `plateau`.

    `growth` is "doubling" (every second) after the first limit, if that may only have met a burst; "none" in a trial.
    `low` counts how often it was lowered when it was far below the `best` already, and `slow` what was sent then.
    A refused share of `tolerated` lowers nothing.
    """

    plateau: float
    start: float
    growth: Literal["doubling", "curve", "none"] = "curve"
    seconds: float = 0.0
    best: float = 0.0
    low: int = 0
    slow: Count = Count()
    tolerated: float = 0.0

    @property
    def per_second(self) -> float:
        if self.growth == "none":
            return self.start
        if self.growth == "doubling":
            return self.start * math.exp2(min(self.seconds, _MOST_DOUBLINGS))
        return self.plateau * (1.0 + _CURVATURE * (self.seconds - self._back) ** 3)

    @property
    def _back(self) -> float:
        """Seconds to the plateau."""
        return math.cbrt((1.0 - self.start / self.plateau) / _CURVATURE)


def quickened(pace: Pace, *, seconds: float) -> Pace:
    """After so many seconds in which the pace was what held requests back."""
    return replace(pace, seconds=pace.seconds + seconds)


def first_pace(lately: Count, *, growth: Literal["doubling", "curve"]) -> Pace | None:
    """After the first rate limit of a run; None if nothing has passed yet."""
    passed = lately.passed_per_second
    return Pace(passed, _SLOWER * passed, growth) if passed else None


def slowed(pace: Pace, lately: Count, *, since: Count) -> Pace:
    """After a rate limit: a tenth below what passed.

    If nothing passed, the provider is closed, which does not say what it permits: the plateau stays, to come back
    to. If it was lowered far and is still refused, the provider may refuse a share of all requests, whatever their
    rate; a trial at a higher rate tells.

    Args:
      since: what became of all requests that were sent since the pace was last lowered.
    """
    now = pace.per_second
    if pace.growth == "none":
        return _tried(pace, lately, since=since)
    if not lately.passed_per_second:
        return replace(pace, start=max(_SLOWEST, min(pace.plateau, now) / 2.0), growth="curve", seconds=0.0)
    is_chance = pace.growth == "doubling" and lately.refused < _TWICE
    if is_chance or lately.refused_share <= pace.tolerated:
        return pace
    best = max(pace.best, now)
    lower = _below(min(now, lately.passed_per_second), best=best)
    if now >= best / _FAR:
        return lower
    if since.seconds < BRIEF_SECONDS:  # so soon, it was only not low enough yet
        return replace(lower, low=pace.low, slow=pace.slow)
    lower = replace(lower, low=pace.low + 1, slow=pace.slow.plus(since))
    return lower if lower.low < _LOW else replace(lower, start=min(best, _FAR * now), growth="none")


def _tried(pace: Pace, lately: Count, *, since: Count) -> Pace:
    """What a trial says, once it has lasted: where no smaller share was refused at slow rates, they are no help."""
    if since.seconds < _TRIAL_SECONDS or since.sent < _TRIAL_SENDS:
        return pace
    tolerated = min(_MOST_TOLERATED, 2.0 * pace.slow.refused_share)
    if since.refused_share <= tolerated:
        return Pace(pace.start, pace.start, best=pace.best, tolerated=tolerated)
    return _below(min(pace.start, lately.passed_per_second), best=lately.passed_per_second)


def _below(met: float, *, best: float) -> Pace:
    plateau = max(_SLOWEST, met)
    return Pace(plateau, max(_SLOWEST, _SLOWER * plateau), best=best)


@dataclass
class _Bin:
    since: float
    sent: int = 0
    refused: int = 0


class Sent:
    """The requests that were sent lately, in bins of a quarter second of sending, and how many were refused."""

    def __init__(self, *, at: float) -> None:
        self._bins = deque([_Bin(at)])

    def add(self, *, at: float) -> None:
        if at - self._bins[-1].since >= _BIN_SECONDS:
            self._bins.append(_Bin(at))
            while at - self._bins[1].since > _LONG_SECONDS:
                self._bins.popleft()
        self._bins[-1].sent += 1

    def refuse(self, *, sent_at: float) -> None:
        for bin_ in reversed(self._bins):
            if bin_.since <= sent_at:
                bin_.refused += 1
                return

    def lately(self, *, since: float, until: float, pace: Pace | None) -> Count:
        """Between the last two limits, but of the last five seconds at most, and as if they were one at least.

        Before the first limit, and while the rate doubles each second, only the last one tells.
        """
        longest = BRIEF_SECONDS if pace is None or pace.growth == "doubling" else _LONG_SECONDS
        begin = min(max(since, until - longest), until - BRIEF_SECONDS)
        sent, refused, first = 0, 0, until
        for bin_ in reversed(self._bins):
            if bin_.since > until:
                continue  # what was sent since is not known to have passed
            sent, refused, first = sent + bin_.sent, refused + bin_.refused, bin_.since
            if bin_.since <= begin:
                break
        return Count(sent, refused, until - first)


class TokenBucket:
    """Tokens per minute: reserved by an estimate before a request, settled with what it used after.

    A tenth of a minute's worth can be used at once. What a reply will hold is estimated as the mean of those before.
    """

    def __init__(self, per_minute: float, *, at: float) -> None:
        self._per_second = per_minute / 60.0
        self._most = per_minute * _BURST
        self._balance = self._most
        self._at = at
        self._mean_output: float | None = None

    def estimate(self, *, chars: int, max_tokens: int) -> float:
        return chars / _CHARS_PER_TOKEN + (max_tokens if self._mean_output is None else self._mean_output)

    def wait(self, tokens: float, *, at: float) -> float:
        """Seconds until so many may be reserved; a request larger than the bucket waits for a full one."""
        self._balance = min(self._most, self._balance + (at - self._at) * self._per_second)
        self._at = at
        missing = min(tokens, self._most) - self._balance
        return missing / self._per_second if missing > _ROUNDING * self._most else 0.0

    def reserve(self, tokens: float) -> None:
        self._balance -= tokens

    def settle(self, reserved: float, *, used: float) -> None:
        self._balance += reserved - used

    def heard(self, output_tokens: int) -> None:
        """Learns from the length of a reply."""
        mean = output_tokens if self._mean_output is None else self._mean_output
        self._mean_output = mean + _NEWEST * (output_tokens - mean)

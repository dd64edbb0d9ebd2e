"""What a provider does to a request beside answering it: faults of the wire, a permitted rate, and a Retry-After."""

from __future__ import annotations

import email.utils
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

from configs.errors import UserError
from data_gen.config import Faults

WireFault = Literal["malformed", "rate_limited", "server_error", "dropped"]
_KINDS: tuple[WireFault, ...] = ("malformed", "rate_limited", "server_error", "dropped")

RetryAfter = Literal["seconds", "date", "garbage", "negative", "huge", "none"]
"""How a 429 says when to come again. Only the first two mean something."""


def drawn_fault(faults: Faults, draws: random.Random) -> WireFault | None:
    """One draw decides between the faults; None, and so a whole answer, for the rest of the probability."""
    draw = draws.random()
    for kind in _KINDS:
        draw -= getattr(faults, kind)
        if draw < 0:
            return kind
    return None


def drawn_latency(median: float, spread: float, draws: random.Random) -> float:
    """Seconds: log-normal with this median, `spread` being the sigma of its logarithm; 0 makes it the median."""
    return median * math.exp(spread * draws.gauss()) if spread else median


def retry_after_header(wait: float, *, form: RetryAfter, now: float) -> str | None:
    """The header's value for a wait in seconds; `now` is the time of day, in seconds since 1970. None: no header."""
    if form == "seconds":
        return f"{wait:.3f}".removesuffix(".000")
    if form == "date":
        return email.utils.formatdate(math.ceil(now + wait), usegmt=True)
    return {"garbage": "presently", "negative": "-5", "huge": "1000000000", "none": None}[form]


class TokenBucket:
    """Permits `rates` tokens a second, of which it holds at most `holds_seconds`' worth, and one token at least.

    `rates` is one rate, or a schedule: ((0, 10), (600, 2)) permits 10 a second for the first ten minutes and 2 from
    then on. The first second is that of the first request.

    Raises:
      UserError: a rate that is not above 0, or a schedule that does not begin at 0 and go on in order.
    """

    def __init__(
        self, rates: float | Sequence[tuple[float, float]], *, clock: Callable[[], float], holds_seconds: float = 1.0
    ) -> None:
        steps = [(0.0, rates)] if isinstance(rates, (int, float)) else list(rates)
        self._begins = [begin for begin, _ in steps]
        self._rates = [rate for _, rate in steps]
        if not all(0 < rate < math.inf for rate in self._rates):
            raise UserError(f"a permitted rate must be above 0: {self._rates}; leave it out for no limit")
        if (
            not steps
            or self._begins[0] != 0
            or any(a >= b for a, b in zip(self._begins, self._begins[1:], strict=False))
        ):
            raise UserError(f"a schedule of rates begins at second 0 and goes on in order, not {self._begins}")
        self._clock = clock
        self._holds_seconds = holds_seconds
        self._began: float | None = None
        self._at = 0.0
        self._tokens = self._most(0)

    def wait(self) -> float:
        """0 if there is a token to spend, else the seconds until there is one."""
        self._refill()
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rates[self._step()]

    def spend(self, tokens: float = 1.0) -> None:
        """May spend more than there is: what is owed comes out of what flows in next."""
        self._tokens -= tokens

    def _refill(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now
        now -= self._began
        while self._at < now:
            step = self._step()
            end = min(now, self._begins[step + 1]) if step + 1 < len(self._begins) else now
            self._tokens = min(self._most(step), self._tokens + (end - self._at) * self._rates[step])
            self._at = end

    def _step(self) -> int:
        return bisect_right(self._begins, self._at) - 1

    def _most(self, step: int) -> float:
        return max(1.0, self._rates[step] * self._holds_seconds)

"""What a provider does to a request beside answering it: drawn faults of the wire, and a permitted rate."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from data_gen.config import Faults

WireFault = Literal["malformed", "rate_limited", "server_error", "dropped"]
_KINDS: tuple[WireFault, ...] = ("malformed", "rate_limited", "server_error", "dropped")


def drawn_fault(faults: Faults, draws: random.Random) -> WireFault | None:
    """One draw decides between the faults; None, and so a whole answer, for the rest of the probability."""
    draw = draws.random()
    for kind in _KINDS:
        draw -= getattr(faults, kind)
        if draw < 0:
            return kind
    return None


class TokenBucket:
    """A token bucket that holds at most one second's worth, and one token at least."""

    def __init__(self, rate: float, *, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._most = max(1.0, rate)
        self._tokens = self._most
        self._at = clock()

    def take(self) -> float:
        """0 for a request that may pass, else the seconds until the next token."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

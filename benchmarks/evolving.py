"""What the benchmarks of `wizard evolve` share: a simulated server in its own process, and a run that is watched."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.config import EvolveConfig, OpenAICompatible, Price
from data_gen.generate import generate

MODEL = "simulated-llm"
LATENCY = ("--latency-seconds", "0.3", "--latency-spread", "0.5")
"""A median of 300 ms, log-normal."""


@dataclass(frozen=True)
class Moment:
    """What a run had done at a time (seconds of a monotonic clock)."""

    at: float
    asked: int
    refused: int
    in_flight: int

    @property
    def answered(self) -> int:
        return self.asked - self.refused - self.in_flight


@dataclass(frozen=True)
class Watched:
    moments: tuple[Moment, ...]
    summary: Mapping[str, Any]

    @property
    def begin(self) -> float:
        """Just before the first request."""
        return max(moment.at for moment in self.moments if not moment.asked)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer, as far as was noted; what comes before and after asks nobody."""
        asked = self.moments[-1].asked
        return next(one.at for one in self.moments if one.asked == asked and not one.in_flight) - self.begin


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The base URL of `wizard simulate-llm` with these flags."""
    command = [sys.executable, "-m", "wizard_jax", "simulate-llm", "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"http://\S+", server.stdout.readline())
        if found is None:
            raise RuntimeError(f"{' '.join(command)} did not come up")
        yield found[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def provider(base_url: str) -> OpenAICompatible:
    return OpenAICompatible(model=MODEL, base_url=base_url, price=Price(input=0.0, output=0.0))


def watched(config: EvolveConfig, out: Path) -> Watched:
    """A whole run: journal, pacing, elimination, shards and pages."""
    moments: list[Moment] = []

    def progress(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        del done, total
        numbers = [int(facts.get(name, 0)) for name in ("asked", "429s", "in flight")]
        moments.append(Moment(time.monotonic(), *numbers))

    summary = generate(config, out, progress=progress, say=lambda _: None)
    return Watched(tuple(moments), summary)

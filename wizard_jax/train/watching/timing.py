"""Where the time of a run goes and how full its devices are: nothing here is the same twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

import jax
from jax import monitoring

T = TypeVar("T")

COMPILE = "/jax/core/compile/"
"""Prefix of JAX's events of tracing, lowering and compiling a function, or reading it from the compilation cache."""


class CompileClock:
    """Adds up what JAX spends on compiling, in any thread, while it is entered."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> Self:
        monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        monitoring.unregister_event_duration_listener(self._heard)

    def take(self) -> float:
        """The seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILE):
            self._seconds += duration_secs


class Waiting(Generic[T]):
    """Iterates over `items`, and knows how long the last one was waited for."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        began = time.perf_counter()
        item = next(self._items)
        self.seconds = time.perf_counter() - began
        return item


def device_memory() -> dict[str, int]:
    """Bytes of the fullest device of this process: in use, their peak so far, the limit; empty where none is known.

    Of the three, those that the platform tells: a CPU tells none.
    """
    names = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not told:
        return {}
    fullest = max(told, key=lambda stats: stats.get("peak_bytes_in_use", stats.get("bytes_in_use", 0)))
    return {name: int(fullest[key]) for name, key in names.items() if key in fullest}

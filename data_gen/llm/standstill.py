"""Whether any lineage of a run can still move without an answer from a batch job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator


class Standstill:
    """Counts the `open` lineages of a run and those `waiting` for a batch job; a run and its batch models share it.

    When all of them wait, and still do `settle_seconds` later (a run opens its next lineage a moment after it closed
    one), every batch model is told to send what it has collected. A lineage must wait for one request at a time.
    """

    def __init__(self, *, settle_seconds: float = 0.1) -> None:
        self.open = 0
        self.waiting = 0
        self._settle_seconds = settle_seconds
        self._senders: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    @contextlib.contextmanager
    def lineage(self) -> Iterator[None]:
        """Around all that one lineage asks. One that is cancelled ends it all: its run stops, and sends no more."""
        self.open += 1
        try:
            yield
        except asyncio.CancelledError:
            self._is_over = True
            raise
        finally:
            self.open -= 1
            self.look()

    def join(self, send: Callable[[], None]) -> None:
        """`send` is called at each standstill, until it leaves."""
        self._senders.append(send)

    def leave(self, send: Callable[[], None]) -> None:
        self._senders.remove(send)

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Around a wait of one lineage for what only answers can bring, such as room in a budget."""
        self.stands()
        try:
            yield
        finally:
            self.moves()

    def stands(self) -> None:
        """One more lineage waits."""
        self.waiting += 1
        self.look()

    def moves(self, count: int = 1) -> None:
        """So many have what they waited for."""
        self.waiting -= count

    def look(self) -> None:
        """To be called where there may be a standstill now."""
        if self._timer is None and self._is_here():
            self._timer = asyncio.get_running_loop().call_later(self._settle_seconds, self._settled)

    def _is_here(self) -> bool:
        return not self._is_over and 0 < self.waiting >= self.open

    def _settled(self) -> None:
        self._timer = None
        if self._is_here():
            for send in list(self._senders):
                send()

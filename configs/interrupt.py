"""Being told to stop: a signal becomes a flag that a stage looks at between two pieces of work."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 42, signal.SIGINT: 130}


class Interrupted(Exception):
    """The stage was told to stop; what it had done is saved, and the same command goes on from there."""

    def __init__(
        self,
        exit_code: int,
        why: str = "stopped as told; everything done so far is saved: run the same command to go on",
    ) -> None:
        super().__init__(why)
        self.exit_code = exit_code


class StopFlag:
    """`exit_code` is None until the process is told to stop, then the code that it should end with."""

    exit_code: int | None = None

    def raise_if_set(self) -> None:
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """While it is entered, SIGTERM (42) and Ctrl-C (130) set the flag; a second Ctrl-C stops at once.

    Enter it in the main thread. The handlers that were there before are put back.
    """
    flag = StopFlag()

    def told(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag.exit_code is not None:
            signal.default_int_handler(number, frame)
        flag.exit_code = EXIT_CODES[signal.Signals(number)]

    before = {number: signal.signal(number, told) for number in EXIT_CODES}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C and SIGTERM while the compiler is at work.

A compile is one call that Python does not come back from for minutes, and no handler of Python's runs before it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from configs.interrupt import EXIT_CODES

STOPPED = "stopped at once: a compile can not be saved; run the same command to begin it again"


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Meanwhile a signal that is handled at all ends the process, with 130 or 42: nothing here is half written.

    The number of a signal is written to a socket as it arrives (`signal.set_wakeup_fd`), which a thread reads. Enter
    it in the main thread.
    """
    told, teller = socket.socketpair()
    teller.setblocking(False)
    watch = threading.Thread(target=_watch, args=(told,), daemon=True)
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        teller.close()  # the thread reads an end, and is done
        watch.join()


def _watch(told: socket.socket) -> None:
    with told:
        while number := told.recv(1):
            code = EXIT_CODES.get(signal.Signals(number[0]))
            if code is not None:
                print(f"wizard: {STOPPED}", file=sys.stderr, flush=True)
                os._exit(code)

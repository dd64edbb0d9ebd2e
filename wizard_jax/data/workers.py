"""One function over many arguments in several processes, with results in the order of the arguments."""

from __future__ import annotations

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from wizard_jax.data.config import DataError

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

_AHEAD = 2  # arguments handed out for each process: one at work, one waiting
_shared: list[Any] = []  # in a worker: the function


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[_Argument], _Result], arguments: Iterable[_Argument], *, processes: int
) -> Iterator[_Result]:
    """`function` of each argument, in `processes` of their own; in this one if that is 1.

    The function is sent to each process once, an argument when its turn is near, so memory is bounded by the
    number of processes. They are spawned, as JAX's threads do not survive a fork, and end with this process,
    whatever ends it.

    Raises:
      DataError: a process died.
      Exception: what the function raised.
    """
    if processes == 1:
        yield from map(function, arguments)
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(function,)
    )
    waiting: collections.deque[Future[_Result]] = collections.deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(_call, argument))
            if len(waiting) >= _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {processes} processes that prepare data was killed, most likely for want of memory: set "
            "data.processes to fewer and start the same command again, which goes on from what is finished"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says what becomes of it
    _shared.append(function)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _call(argument: Any) -> Any:
    return _shared[0](argument)

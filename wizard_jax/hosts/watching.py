"""Threads that end a process rather than let it hang: when others do not come or are gone, or no step is finished."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from wizard_jax.hosts.group import HostLost, Hosts

_GRACE_SECONDS = 10.0
"""What a process has for ending by itself, and in its own words, after another one has failed."""
_LAST_SECONDS = 20.0
_FIRST_STEP = 4.0
"""The first step of a process compiles: so many times as long is allowed."""


class PeerWatch:
    """Tells the others every moment that this process is alive, and ends it when another one no longer does.

    It ends it from a thread, as the main one may be waiting in a collective for ever.
    """

    def __init__(self, hosts: Hosts, *, heartbeat: float) -> None:
        """`heartbeat`: seconds without a sign of life after which a process is taken for dead."""
        self._hosts = hosts
        self._patience = heartbeat
        self._leaving, self._is_stuck = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving.set()

    def wait_for_cause(self, error: BaseException) -> None:
        """After an error that may come of another process's end: returns if all the others prove to be well."""
        first = (str(error).strip().splitlines() or [""])[0][:300]
        _say(
            f"{self._name} stopped ({first}): another one may have ended, and that is looked for. Everything up to the "
            "newest checkpoint is saved: the same command goes on from there"
        )
        self._is_stuck.set()
        time.sleep(self._patience + 2 * self._period)

    def leave(self, *, code: int, why: str) -> None:
        """Say to the others why this process ends, for them to end with the same code."""
        self._leaving.set()
        self._hosts.publish("ended", json.dumps([code, why]))

    @property
    def _name(self) -> str:
        return self._hosts.called(self._hosts.index)

    @property
    def _period(self) -> float:
        return self._patience / 10

    def _watch(self) -> None:
        beats = 0
        heard = {index: ("", time.monotonic()) for index in range(self._hosts.count)}
        failed_at: float | None = None
        while not self._leaving.wait(self._period):
            beats += 1
            self._hosts.publish("alive", str(beats))
            now = time.monotonic()
            ended = self._hosts.published("ended")
            if ended:
                failed_at = failed_at or now
                if now - failed_at >= (0 if self._is_stuck.is_set() else _GRACE_SECONDS):
                    self._end_as(*sorted(ended.items())[0])
                continue
            for index, told in self._hosts.published("alive").items():
                if told != heard[index][0]:
                    heard[index] = (told, now)
            silent = [index for index, (_, at) in heard.items() if now - at > self._patience]
            if silent and not self._leaving.is_set():
                self._end_without(silent, seconds=self._patience)

    def _end_as(self, index: int, told: str) -> None:
        code, why = json.loads(told)
        _say(f"{self._name} ends, as {self._hosts.called(index)} has ended: {why}")
        threading.Timer(_LAST_SECONDS, os._exit, (code,)).start()
        import jax

        jax.distributed.shutdown()  # type: ignore[no-untyped-call]  # jax leaves it so
        os._exit(code)

    def _end_without(self, silent: list[int], *, seconds: float) -> None:
        who = " and ".join(self._hosts.called(index) for index in silent)
        lost = HostLost(f"{who} gave no sign of life for {seconds:.0f} s: killed, out of memory, or cut off")
        _say(f"{self._name} ends: {lost}")
        if self._hosts.is_first:  # the coordination service goes with it, and with that every other process at once
            time.sleep(3 * self._period)
        os._exit(lost.exit_code)


@contextlib.contextmanager
def ending_unless_met(address: str, *, index: int, count: int, seconds: float) -> Iterator[None]:
    """Ends the process when what is inside, meeting the other processes at `address`, takes longer than `seconds`."""

    met = threading.Event()

    def watch() -> None:
        deadline, answered = time.monotonic() + seconds, index == 0
        while not met.wait(seconds / 10):
            answered = answered or _answers(address)
            if time.monotonic() > deadline:
                missing = "another one has not come" if answered else "process 0 does not answer there"
                lost = HostLost(
                    f"process {index} of {count} on {socket.gethostname()} did not meet all others at {address} within "
                    f"{seconds:.0f} s: {missing}"
                )
                _say(f"{lost}. The one that says nothing like this is the one to look at")
                os._exit(lost.exit_code)

    threading.Thread(target=watch, name="meeting", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


class StallWatch:
    """Ends the process, with the stacks of all threads, when no step was finished for so many minutes."""

    def __init__(self, folder: Path, *, minutes: float, index: int) -> None:
        self._file = folder / f"stalled.{index}.txt"
        self._limit, self._since = 60 * minutes * _FIRST_STEP, time.monotonic()
        self._minutes = minutes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def step_is_done(self) -> None:
        self._limit, self._since = 60 * self._minutes, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(self._limit / 10, 10.0)):
            if time.monotonic() - self._since > self._limit:
                lost = HostLost(f"no step was finished for {self._limit / 60:g} minutes (stall_minutes)")
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                with open(self._file, "w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                _say(f"{lost}. What every thread was doing is in {self._file}")
                os._exit(lost.exit_code)


def _say(text: str) -> None:
    sys.stdout.flush()
    print(f"wizard: {text}", file=sys.stderr, flush=True)

"""A command on this machine, in one process or several, started again when cut off: what a cluster does for a job."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from configs.errors import UserError
from configs.interrupt import EXIT_CODES

START_AGAIN = EXIT_CODES[signal.SIGTERM]
"""The exit code of a command that was told to stop or lost another process, and goes on when it is started again."""
GRACE_SECONDS = 30.0
"""What the others have to end by themselves once one process has ended badly."""
HEARTBEAT_SECONDS = 10


class LaunchError(UserError):
    """A command that can not be started."""


def run_locally(
    command: Sequence[str],
    *,
    processes: int = 1,
    devices: int | None = None,
    restarts: int = 3,
    log: Path | None = None,
    grace: float = GRACE_SECONDS,
) -> int:
    """Runs a command to its end and returns its exit code: 128 + N where signal N ended it, as in a shell.

    Exit code 42 and death by a signal start it again, at most `restarts` times. SIGTERM and Ctrl-C are passed on
    to it, and then it is not started again. Its output goes where this process's goes; with `log` it is appended
    to that file as well. Must be called in the main thread, which gets the signals.

    With several `processes` each runs the command, told its place among them by JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, and every line it prints begins with its number: `[1] ...`. They end and
    are started again together: once one has ended badly, the others have `grace` seconds. The exit code is that of
    the first to end badly. `devices` simulates so many CPU devices in each process.

    Raises:
      LaunchError: a command or a log that can not be opened, or counts that can not be.
    """
    for name, count, least in (("restarts", restarts, 0), ("processes", processes, 1), ("devices", devices, 1)):
        if count is not None and count < least:
            raise LaunchError(f"{name} is {count}: give {least} or more")
    with _opened(log) as copy, _Group(command, size=processes, devices=devices, grace=grace, copy=copy) as group:
        for restart in range(1, restarts + 2):
            ended = group.run()
            if group.was_told_to_stop or not _is_cut_off(ended.code):
                break
            then = f"restart {restart} of {restarts}" if restart <= restarts else "no restart is left"
            who = "the command" if processes == 1 else f"process {ended.index} of {processes}"
            group.say(f"launch: {who} {_ending(ended.code)}: {then}")
        return ended.code if ended.code >= 0 else 128 - ended.code


def _is_cut_off(code: int) -> bool:
    return code == START_AGAIN or code < 0


def _ending(code: int) -> str:
    if code == START_AGAIN:
        return f"asked to be started again ({START_AGAIN})"
    return f"died by signal {-code}, {signal.strsignal(-code)}"


def _opened(log: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    if log is None:
        return contextlib.nullcontext()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab", buffering=0)
    except OSError as error:
        raise LaunchError(f"{log} can not be written: {error.strerror}") from error


def _environment(index: int, *, size: int, devices: int | None, port: int) -> dict[str, str]:
    """Of process `index`: where it finds the others, and how many devices it simulates."""
    environment = dict(os.environ)
    if devices is not None:
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    if size > 1:
        environment.setdefault("WIZARD_HEARTBEAT_SECONDS", str(HEARTBEAT_SECONDS))
        place = {"JAX_NUM_PROCESSES": str(size), "JAX_PROCESS_ID": str(index), "PYTHONUNBUFFERED": "1"}
        environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", **place}
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class _Ended:
    index: int
    code: int


class _Group:
    """The processes that run now, and the signals that come for them.

    Each has a process group of its own: otherwise Ctrl-C on a terminal would reach it twice, from the terminal and
    from here, and a second Ctrl-C means to give up at once.
    """

    def __init__(
        self, command: Sequence[str], *, size: int, devices: int | None, grace: float, copy: IO[bytes] | None
    ) -> None:
        self.was_told_to_stop = False
        self._command, self._size, self._devices, self._grace, self._copy = list(command), size, devices, grace, copy
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._told_last: int | None = None
        self._informed: set[subprocess.Popen[bytes]] = set()
        self._printing = threading.Lock()

    def __enter__(self) -> _Group:
        self._before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self) -> _Ended:
        """Starts all, and waits for the end of all; the first bad end, or else that of process 0."""
        port = _free_port() if self._size > 1 else 0
        try:
            for index in range(self._size):
                self._start(index, _environment(index, size=self._size, devices=self._devices, port=port))
            first_bad: _Ended | None = None
            left, patience = set(range(self._size)), None
            while left:
                try:
                    ended = self._ended.get(timeout=patience)
                except queue.Empty:
                    who = " and ".join(map(str, sorted(left)))
                    self.say(f"launch: process {who} did not end in {self._grace:g} s after another one: killed")
                    self._kill()
                    patience = None
                    continue
                left.remove(ended.index)
                if ended.code and first_bad is None:
                    first_bad, patience = ended, self._grace
            return first_bad or _Ended(0, 0)
        finally:
            self._kill()
            self._running = []

    def say(self, text: str) -> None:
        """A line of our own, on standard error and in the log."""
        with self._printing:
            print(text, file=sys.stderr, flush=True)
            if self._copy is not None:
                self._copy.write(f"{text}\n".encode())

    def _start(self, index: int, environment: Mapping[str, str]) -> None:
        is_read = self._size > 1 or self._copy is not None
        stdout, stderr = (subprocess.PIPE, subprocess.STDOUT) if is_read else (None, None)
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0, env=environment
            )
        except OSError as error:
            raise LaunchError(f"{self._command[0]} can not be started: {error.strerror}") from error
        self._running.append(process)
        if self._told_last is not None and process not in self._informed:  # it came while this one was started
            self._pass_on(process, self._told_last)
        threading.Thread(target=self._follow, args=(index, process), daemon=True).start()

    def _follow(self, index: int, process: subprocess.Popen[bytes]) -> None:
        """In a thread of its own: pass on what the process prints, until its end."""
        prefix = f"[{index}] ".encode() if self._size > 1 else b""
        with process:
            for line in process.stdout or ():
                with self._printing:
                    sys.stdout.buffer.write(prefix + line)
                    sys.stdout.buffer.flush()
                    if self._copy is not None:
                        self._copy.write(prefix + line)
            code = process.wait()
        self._ended.put(_Ended(index, code))

    def _kill(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()

    def _told(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.was_told_to_stop, self._told_last = True, number
        for process in self._running:
            self._pass_on(process, number)

    def _pass_on(self, process: subprocess.Popen[bytes], number: int) -> None:
        self._informed.add(process)
        process.send_signal(number)

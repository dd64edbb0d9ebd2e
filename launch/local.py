"""A command on this machine, started again when it was cut off: what a cluster does for a job."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from configs.errors import UserError
from configs.interrupt import EXIT_CODES

START_AGAIN = EXIT_CODES[signal.SIGTERM]
"""The exit code of a command that was told to stop, has saved, and goes on when it is started again."""


class LaunchError(UserError):
    """A command that can not be started."""


def run_locally(command: Sequence[str], *, restarts: int = 3, log: Path | None = None) -> int:
    """Runs a command to its end and returns its exit code: 128 + N where signal N ended it, as in a shell.

    Exit code 42 and death by a signal start it again, at most `restarts` times. SIGTERM and Ctrl-C are passed on
    to it, and then it is not started again. Its output goes where this process's goes; with `log` it is appended
    to that file as well. Must be called in the main thread, which gets the signals.

    Raises:
      LaunchError: a command or a log that can not be opened, or fewer than 0 restarts.
    """
    if restarts < 0:
        raise LaunchError(f"restarts is {restarts}: give 0 or more")
    with _opened(log) as copy, _Child(command, copy=copy) as child:
        for restart in range(1, restarts + 2):
            code = child.run()
            if child.was_told_to_stop or not _is_cut_off(code):
                break
            then = f"restart {restart} of {restarts}" if restart <= restarts else "no restart is left"
            child.say(f"launch: the command {_ending(code)}: {then}")
        return code if code >= 0 else 128 - code


def _is_cut_off(code: int) -> bool:
    return code == START_AGAIN or code < 0


def _ending(code: int) -> str:
    return "was told to stop (42)" if code == START_AGAIN else f"died by signal {-code}, {signal.strsignal(-code)}"


def _opened(log: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    if log is None:
        return contextlib.nullcontext()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab", buffering=0)
    except OSError as error:
        raise LaunchError(f"{log} can not be written: {error.strerror}") from error


class _Child:
    """The process that runs now, and the signals that come for it.

    It has a process group of its own: otherwise Ctrl-C on a terminal would reach it twice, from the terminal and
    from here, and a second Ctrl-C means to give up at once.
    """

    def __init__(self, command: Sequence[str], *, copy: IO[bytes] | None) -> None:
        self.was_told_to_stop = False
        self._command, self._copy = list(command), copy
        self._process: subprocess.Popen[bytes] | None = None
        self._came_too_early: int | None = None

    def __enter__(self) -> _Child:
        self._before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self) -> int:
        """Starts the command and waits for its end; the code is negative for a signal."""
        stdout, stderr = (None, None) if self._copy is None else (subprocess.PIPE, subprocess.STDOUT)
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0
            )
        except OSError as error:
            raise LaunchError(f"{self._command[0]} can not be started: {error.strerror}") from error
        self._process = process
        if self._came_too_early is not None:
            process.send_signal(self._came_too_early)
        with process:
            for line in process.stdout or ():
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                if self._copy is not None:
                    self._copy.write(line)
            code = process.wait()
        self._process = None
        return code

    def say(self, text: str) -> None:
        """A line of our own, on standard error and in the log."""
        print(text, file=sys.stderr, flush=True)
        if self._copy is not None:
            self._copy.write(f"{text}\n".encode())

    def _told(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.was_told_to_stop = True
        if self._process is None:
            self._came_too_early = number
        else:
            self._process.send_signal(number)

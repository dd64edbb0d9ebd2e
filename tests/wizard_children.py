"""`wizard` in processes of their own, for tests that kill them.

Each is forked from one process that has imported all that a run needs, so that a test can afford to start hundreds:
an import takes seconds, a fork milliseconds. `python wizard_children.py` is that process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


@dataclass
class Child:
    """A running `wizard`; its output goes to the file `log`."""

    pid: int
    log: Path
    _parent: IO[str]
    _status: int | None = field(default=None, init=False)

    def wait(self) -> int:
        """The exit code, or the number of the signal it died of, below 0."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(_told("ended", self._parent))
        return self._status

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._status is None:
                os.kill(self.pid, number)

    def killed(self) -> int:
        self.send(signal.SIGKILL)
        return self.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass
class Parent:
    """Starts one `wizard` after the other; one that has not ended when the next is started is killed."""

    process: subprocess.Popen[str]
    folder: Path
    _last: Child | None = field(default=None, init=False)

    def start(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        environment: Mapping[str, str] | None = None,
        most_file_bytes: int | None = None,
        dies_at: tuple[int, int] | None = None,
    ) -> Child:
        """`most_file_bytes`: beyond it the kernel lets the process write to no file.

        `dies_at` (n, signal): the process gets the signal before the n-th time that it changes what lies on the disk.
        """
        if self._last is not None:
            self._last.killed()
        log = self.folder / "wizard.log"
        order = {
            "arguments": [os.fspath(argument) for argument in arguments],
            "log": str(log),
            "environment": dict(environment or {}),
            "most_file_bytes": most_file_bytes,
            "dies_at": dies_at,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        log.write_bytes(b"")
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self._last = Child(_told("pid", self.process.stdout), log, self.process.stdout)
        return self._last

    def run(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        environment: Mapping[str, str] | None = None,
        most_file_bytes: int | None = None,
    ) -> tuple[int, str]:
        """The exit code of a `wizard` that is left alone, and its output."""
        child = self.start(arguments, environment=environment, most_file_bytes=most_file_bytes)
        return child.wait(), child.output

    def seen(self, path: Path) -> Path:
        """A path as these processes see it."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def resize(self, disk: Path, *, kilobytes: int) -> None:
        """Makes the file system `disk` hold so much."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"disk": str(disk), "kilobytes": kilobytes}) + "\n")
        self.process.stdin.flush()
        assert _told("resized", self.process.stdout) == kilobytes


_ON_A_DISK = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'


def can_have_a_disk(folder: Path) -> bool:
    """Whether a process may mount a file system of its own here, seen by nobody else."""
    command = ["unshare", "-Urm", "sh", "-c", _ON_A_DISK, "sh", folder, "true"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


@contextlib.contextmanager
def parent_of_wizards(folder: Path, *, disk: Path | None = None, module: str = "") -> Iterator[Parent]:
    """The process that starts the others; with `disk`, on that folder lies a small file system that only they see.

    They have imported what `wizard evolve` needs, or instead of it `module`.
    """
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, module]
    if disk is not None:
        command = ["unshare", "-Urm", "sh", "-c", _ON_A_DISK, "sh", str(disk), *command]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=root, env=environment, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Parent(process, folder)
    finally:
        process.kill()
        process.communicate()


def _told(what: str, parent: IO[str]) -> int:
    said, _, number = parent.readline().partition(" ")
    assert said == what, "the process that starts the others is gone"
    return int(number)


def until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Waits until it holds, a minute at most."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.001)


def _become(order: Mapping[str, object], main: Callable[[Sequence[str]], int]) -> int:
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    environment, arguments, most = order["environment"], order["arguments"], order["most_file_bytes"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.update(environment)
    if isinstance(most, int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    if isinstance(dies_at := order["dies_at"], list):
        _send_before(*dies_at)
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


def _send_before(operation: int, number: int) -> None:
    """Sends this process a signal before its n-th operation on files that changes something, written bytes included."""
    done = 0
    pwrite = os.pwrite

    def count() -> None:
        nonlocal done
        done += 1
        if done == operation:
            os.kill(os.getpid(), number)

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            count()

    def counted(*arguments: Any) -> int:
        count()
        return pwrite(*arguments)

    sys.addaudithook(heard)
    os.pwrite = counted


def _warm_up(main: Callable[[Sequence[str]], int]) -> None:
    """Two runs, one of which nobody answers, import all that a run imports."""
    quiet = ["measure.diversity_sample=0", "measure.duplicates=off"]
    nobody = ["seeds=@SimulatedSeeds", "seeds.count=30", "llm.base_url=http://127.0.0.1:9/v1", "max_attempts=1"]
    quickstart = ["configs/evolve/quickstart.gin", "seeds.count=2", "rounds=1"]
    server = "configs/evolve/simulated_server.gin"
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as void, contextlib.ExitStack() as hushed:
        hushed.enter_context(contextlib.redirect_stdout(void))
        hushed.enter_context(contextlib.redirect_stderr(void))
        assert main(["evolve", *quickstart, "--out", f"{folder}/a", *quiet]) == 0
        assert main(["evolve", server, *nobody, "--out", f"{folder}/b"]) == 2


def _start_what_is_asked() -> None:
    from wizard_jax.cli import main

    if sys.argv[1]:
        importlib.import_module(sys.argv[1])
    else:
        _warm_up(main)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "disk" in order:
            size = order["kilobytes"]
            subprocess.run(["mount", "-o", f"remount,size={size}k", order["disk"]], check=True)
            print("resized", size, flush=True)
            continue
        pid = os.fork()
        if not pid:
            os._exit(_become(order, main))
        print("pid", pid, flush=True)
        print("ended", os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    _start_what_is_asked()

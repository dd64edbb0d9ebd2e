"""`wizard` as several processes on loopback, for tests that stop and kill them.

Each is forked from one process that has imported what a training run needs and has used no device yet: imports take
many seconds, a fork milliseconds. `python host_processes.py` is that process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
HEARTBEAT = 6
LONGEST = 180.0
"""Seconds; on a machine that does much else."""
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Flags for XLA; tests spend far more time in it than in what it makes."""


@dataclass
class Group:
    """Processes of one run; their output goes to files."""

    farm: Farm
    pids: list[int]
    logs: list[Path]
    _ended: dict[int, int] = field(default_factory=dict)

    def send(self, index: int, number: int) -> None:
        os.kill(self.pids[index], number)

    def ended(self) -> dict[int, int]:
        """How each process that has ended did so: its exit code, or the number of the signal it died of, below 0."""
        for index, pid in enumerate(self.pids):
            if index not in self._ended and (status := self.farm.asked({"poll": pid})) is not None:
                self._ended[index] = status
        return self._ended

    def codes(self, *, seconds: float = LONGEST) -> list[int]:
        """As `ended`, of all of them, once all have."""
        deadline = time.monotonic() + seconds
        while len(self.ended()) < len(self.pids):
            assert time.monotonic() < deadline, f"{self.ended()} have ended; {self.output()}"
            time.sleep(0.05)
        return [code for _, code in sorted(self._ended.items())]

    def output(self, index: int | None = None) -> str:
        logs = self.logs if index is None else [self.logs[index]]
        return "\n".join(log.read_text(errors="replace") for log in logs)


@dataclass
class Farm:
    """Starts processes; those of a group that are still there when the next is started are killed."""

    process: subprocess.Popen[str]
    folder: Path

    def start(
        self,
        arguments: Sequence[str] | Sequence[Sequence[str]],
        *,
        processes: int,
        devices: int,
        program: Literal["wizard", "exact_steps"] = "wizard",
        **environment: str,
    ) -> Group:
        """`wizard` with these arguments, or each process with its own, of `devices` each; or another program."""
        self.asked({"kill": "all"})
        address = f"127.0.0.1:{_free_port()}"
        each = [list(arguments)] * processes if isinstance(arguments[0], str) else [list(one) for one in arguments]
        group = Group(self, [], [])
        for index in range(processes):
            place = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
            log = self.folder / f"process.{index}.log"
            log.write_bytes(b"")
            told = {**(place if processes > 1 else {}), "XLA_FLAGS": flags, "WIZARD_HEARTBEAT_SECONDS": str(HEARTBEAT)}
            order = {"start": each[index], "program": program, "log": str(log), "environment": told | environment}
            pid = self.asked(order)
            assert pid is not None
            group.pids.append(pid)
            group.logs.append(log)
        return group

    def run(
        self,
        arguments: Sequence[str],
        *,
        processes: int,
        devices: int,
        program: Literal["wizard", "exact_steps"] = "wizard",
    ) -> str:
        """A run that is left alone, and ends well; its output."""
        group = self.start(arguments, processes=processes, devices=devices, program=program)
        codes = group.codes()
        assert codes == [0] * processes, (codes, group.output())
        return group.output()

    def asked(self, order: object) -> int | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer


@contextlib.contextmanager
def farm_of_wizards(folder: Path) -> Iterator[Farm]:
    """`folder` is for the output of the processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.Popen(
        [sys.executable, __file__],
        text=True,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    farm = Farm(process, folder)
    try:
        assert farm.asked({"kill": "all"}) is None
        yield farm
    finally:
        with contextlib.suppress(OSError, ValueError):
            farm.asked({"kill": "all"})
        process.kill()
        process.communicate()


def until(holds: Callable[[], bool], group: Group, *, seconds: float = LONGEST) -> None:
    """Waits until it holds, while the processes of the group run."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert not group.ended(), f"it has not come to that: {group.ended()}, {group.output()}"
        assert time.monotonic() < deadline, f"it has not come to that: {group.output()}"
        time.sleep(0.005)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _become(order: dict[str, object], main: Callable[[Sequence[str]], int]) -> int:
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    environment, arguments = order["environment"], order["start"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.update(environment)
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _start_what_is_asked() -> None:
    import warnings

    from exact_steps import main as exact_steps
    from orbax.checkpoint import v1

    import wizard_jax.hosts.joining
    import wizard_jax.train.train
    from wizard_jax.cli import main as wizard

    programs = {"wizard": wizard, "exact_steps": exact_steps}
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    del v1, wizard_jax
    gc.collect()
    gc.freeze()  # else the first collection of a child touches, and so copies, every page
    alive: set[int] = set()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order, answer = json.loads(line), None
        if "start" in order:
            answer = os.fork()
            if not answer:
                os._exit(_become(order, programs[order["program"]]))
            alive.add(answer)
        elif "poll" in order and (ended := os.waitpid(order["poll"], os.WNOHANG))[0]:
            alive.discard(ended[0])
            answer = os.waitstatus_to_exitcode(ended[1])
        elif "kill" in order:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            alive.clear()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _start_what_is_asked()

"""Processes find one another, wait for one another with a limit, and say who is missing or differs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from configs.errors import UserError
from configs.folder import COMPLETE
from configs.interrupt import Interrupted, StopFlag
from wizard_jax.data.config import DataError
from wizard_jax.hosts import folder as folders
from wizard_jax.hosts.folder import TOKEN, open_together
from wizard_jax.hosts.group import ALONE, HostLost, Hosts, HostsError
from wizard_jax.hosts.joining import HEARTBEAT, _exit_code, _heartbeat, place_in
from wizard_jax.hosts.watching import StallWatch
from wizard_jax.train.config import RandomInit
from wizard_jax.train.halting import GO_ON, NO_DATA, Halting
from wizard_jax.train.step import STOP_AFTER
from wizard_jax.train.train import TrainError, check_hosts

ROOT = Path(__file__).parents[1]

# A process that meets the others and waits at a barrier, where process 1 does not come.
MEETS = """
import sys, time
from wizard_jax.hosts import watching
from wizard_jax.hosts.joining import joined
watching._GRACE_SECONDS = 1.0
from configs.interrupt import Interrupted
try:
    with joined() as hosts:
        hosts.agree("versions", {"jax": "1"})
        print("met", hosts.called(hosts.index), flush=True)
        if hosts.index == 1:
            time.sleep(60)
        hosts.wait("packed data", minutes=0.02)
except Interrupted as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.exit_code)
"""

# A process that waits for others, for 3 s at most.
WAITS = """
import sys
from wizard_jax.hosts import joining
from configs.errors import UserError
joining._JOIN_SECONDS = 3
try:
    with joining.joined():
        print("met", flush=True)
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""

STALLS = """
import sys, time
from pathlib import Path
from wizard_jax.hosts.watching import StallWatch
def wait_for_ever():
    time.sleep(60)
with StallWatch(Path(sys.argv[1]), minutes=0.005, index=3) as stall:
    stall.step_is_done()
    wait_for_ever()
"""


@dataclass
class Service:
    """The coordination service for threads: the calls of `jaxlib`'s client that `Hosts` makes."""

    count: int
    values: dict[str, str] = field(default_factory=dict)
    barriers: dict[str, threading.Barrier] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self.lock:
            assert allow_overwrite or key not in self.values, key
            self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        with self.lock:
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def wait_at_barrier(self, key: str, timeout_in_ms: int) -> None:
        with self.lock:
            barrier = self.barriers.setdefault(key, threading.Barrier(self.count))
        try:
            barrier.wait(timeout_in_ms / 1000)
        except threading.BrokenBarrierError:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out") from None


def together(count: int, work: Callable[[Hosts], Any]) -> list[Any]:
    """What `work` returns or raises for each of so many processes, which are threads here."""
    service = Service(count)
    names = [f"host{index}" for index in range(count)]

    def one(index: int) -> Any:
        try:
            return work(Hosts(index=index, names=names, client=service))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def test_every_process_learns_what_all_have_told_as_often_as_it_is_asked() -> None:
    def work(hosts: Hosts) -> list[list[str]]:
        return [hosts.gather("figures", f"{hosts.index}.{turn}") for turn in range(2)]

    assert together(3, work) == [[["0.0", "1.0", "2.0"], ["0.1", "1.1", "2.1"]]] * 3
    assert ALONE.gather("figures", "a") == ["a"]


def test_the_first_process_goes_first() -> None:
    order: list[int] = []

    def work(hosts: Hosts) -> None:
        with hosts.first_then_others("packed data"):
            if hosts.is_first:
                time.sleep(0.05)
            order.append(hosts.index)

    assert together(3, work) == [None] * 3
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_what_differs_is_named_with_its_host_on_every_process() -> None:
    def work(hosts: Hosts) -> None:
        facts = {"seed": "0", "steps": "5"} if hosts.index != 1 else {"seed": "1", "steps": "5", "new": "2"}
        hosts.agree("config", facts)

    for error in together(3, work):
        assert isinstance(error, HostsError)
        assert "process 1 of 3 on host1 has another config than process 0 on host0" in str(error)
        assert "seed = 1, not 0; new = 2, not None" in str(error)


def test_who_does_not_come_to_a_barrier_in_time_is_named() -> None:
    def work(hosts: Hosts) -> None:
        if hosts.index != 2:
            hosts.wait("packed data", minutes=0.002)

    first, second, none = together(3, work)
    assert none is None
    for lost in (first, second):
        assert isinstance(lost, HostLost)
        assert lost.exit_code == 42
        assert "process 2 of 3 on host2 did not come to 'packed data' within 0.002 minutes" in str(lost)


def test_a_folder_that_all_see_is_held_by_the_first_and_left_without_a_trace(tmp_path: Path) -> None:
    def work(hosts: Hosts) -> tuple[str, bool]:
        with open_together(tmp_path / "run", RandomInit(), stage="train", hosts=hosts) as folder:
            hosts.wait("inside")
            return str(folder.path), folder.is_complete

    assert together(2, work) == [(str(tmp_path / "run"), False)] * 2
    assert not (tmp_path / "run" / TOKEN).exists()
    (tmp_path / "run" / COMPLETE).write_text("{}")
    assert together(2, work) == [(str(tmp_path / "run"), True)] * 2


def test_a_process_that_sees_another_folder_says_where_out_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_SECONDS", 0.1)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / TOKEN).write_text("of another run")

    def work(hosts: Hosts) -> None:
        with open_together(tmp_path / f"{hosts.index}", RandomInit(), stage="train", hosts=hosts):
            pass

    held = together(2, lambda hosts: work(hosts) if hosts.index else _gathers_only(hosts, tmp_path / "0"))
    assert isinstance(held[1], HostsError)
    assert "process 1 of 2 on host1 does not see" in str(held[1])
    assert "--out must be on a file system that all hosts see" in str(held[1])


def _gathers_only(hosts: Hosts, folder: Path) -> None:
    """Process 0 of the test above, as far as the other one needs it."""
    folder.mkdir()
    (folder / TOKEN).write_text("token")
    hosts.gather("folder", "token")


def test_the_environment_gives_a_place_or_says_what_is_missing_of_it() -> None:
    place = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    found = place_in(place)
    assert found is not None
    assert (found.address, found.count, found.index) == ("10.0.0.1:99", 4, 3)
    assert place_in({"PATH": "/bin"}) is None
    for name in place:
        with pytest.raises(HostsError, match=f"{name} is not"):
            place_in({**place, name: ""})
    for wrong in ("4", "-1", "first"):
        with pytest.raises(HostsError, match=f"JAX_PROCESS_ID {wrong}"):
            place_in({**place, "JAX_PROCESS_ID": wrong})


@pytest.mark.parametrize(
    ("name", "slices", "count", "message"),
    [
        ("v5e-16", 1, 4, None),
        ("v5e-8", 1, 2, None),
        ("v5e-16", 2, 8, None),
        (None, 1, 3, None),
        ("v5e-16", 1, 2, r"slice is v5e-16 with 4 host\(s\), and 2 process"),
        ("v5p-128", 2, 16, r"slice is v5p-128, 2 of them, with 32 host\(s\), and 16 process"),
    ],
)
def test_another_number_of_processes_than_the_slice_has_hosts_is_refused(
    name: str | None, slices: int, count: int, message: str | None
) -> None:
    hosts = Hosts(index=0, names=["host"] * count, client=Service(count))
    if message is None:
        check_hosts(name, slices=slices, hosts=hosts)
    else:
        with pytest.raises(TrainError, match=message):
            check_hosts(name, slices=slices, hosts=hosts)


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.0.0.1:{port}"


def started(address: str, *, index: int, count: int, code: str = MEETS) -> subprocess.Popen[str]:
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    environment = {**os.environ, **place, "PYTHONPATH": str(ROOT), "WIZARD_HEARTBEAT_SECONDS": "5"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("seconds", ["1", "0.5", "soon", "-3"])
def test_a_heartbeat_that_can_not_be_kept_is_refused(seconds: str) -> None:
    assert (_heartbeat({}), _heartbeat({HEARTBEAT: "2"})) == (15, 2)
    with pytest.raises(HostsError, match=f"{HEARTBEAT} is {seconds}: give whole seconds, at least 2"):
        _heartbeat({HEARTBEAT: seconds})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("seed"), 2),
        (OSError(28, "No space left on device"), 2),
        (Interrupted(42), 42),
        (HostLost("process 1"), 42),
        (Interrupted(130), 130),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_the_others_end_with_the_code_that_the_verb_has_for_what_went_wrong(error: BaseException, code: int) -> None:
    assert _exit_code(error) == code


def halted(hosts: Hosts, *, told: int | None, failure: str | None) -> Halting:
    """A process that wishes to stop or has lost its data, after the step in which all have learnt of it."""
    stop = StopFlag()
    stop.exit_code = told
    halting = Halting(hosts, stop)

    def batches() -> Iterator[str]:
        yield "batch"
        if failure is not None:
            raise DataError(failure)

    fed = halting.fed(batches(), nothing="nothing")
    assert next(fed) == ("batch", GO_ON if told is None else STOP_AFTER)
    assert failure is None or next(fed) == ("nothing", NO_DATA)
    after: Any = SimpleNamespace(halt=NO_DATA if failure else STOP_AFTER)
    halting.look(after, lag=1)
    assert not halting.is_settled
    halting.look(lag=0)
    assert halting.is_settled
    assert halting.rows_are_missing == (failure is not None)
    return halting


def test_processes_that_are_told_differently_end_alike() -> None:
    def work(hosts: Hosts) -> None:
        halted(hosts, told={0: 42, 1: 130}.get(hosts.index), failure=None).raise_if_settled(saved=7)

    for error in together(3, work):
        assert isinstance(error, Interrupted)
        assert error.exit_code == 130


def test_every_process_says_which_of_them_lost_their_data() -> None:
    def work(hosts: Hosts) -> None:
        halted(hosts, told=None, failure=f"row {hosts.index}").raise_if_settled(saved=7)

    errors = together(3, work)
    assert len({str(error) for error in errors}) == 1
    assert isinstance(errors[0], DataError)
    assert "the rows of step 8 can not be read" in str(errors[0])
    for index in range(3):
        assert f"process {index} of 3 on host{index}: DataError: row {index}" in str(errors[0])


def test_a_process_that_does_not_come_in_time_is_named_and_none_hangs(address: str) -> None:
    children = [started(address, index=index, count=2) for index in (0, 1)]
    (waited, _), (slept, errors) = (child.communicate(timeout=60) for child in children)
    assert [child.returncode for child in children] == [42, 42]
    assert "met process 0 of 2" in waited
    assert "process 1 of 2" in waited
    assert "did not come to 'packed data' within 0.02 minutes" in waited
    assert "met process 1 of 2" in slept
    assert "process 1 of 2" in errors
    assert "ends, as process 0 of 2" in errors


def test_processes_that_do_not_all_meet_end_with_words_and_not_by_abort(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        busy, nobody = f"127.0.0.1:{held.getsockname()[1]}", f"127.0.0.1:{int(address.rpartition(':')[2]) ^ 1}"
        at = [(address, 0), (address, 1), (nobody, 2), (busy, 0)]
        children = [started(place, index=index, count=3, code=WAITS) for place, index in at]
        said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [42, 42, 42, 2]
    for index in (0, 1):
        assert f"process {index} of 3 on {socket.gethostname()} did not meet all others at {address}" in said[index][1]
        assert "another one has not come" in said[index][1]
        assert "run the same command to go on" in said[index][1]
    assert f"process 2 of 3 on {socket.gethostname()} did not meet all others at {nobody}" in said[2][1]
    assert "process 0 does not answer there" in said[2][1]
    assert f"process 0 can not wait for the others at {busy}" in said[3][0]
    assert "JAX_COORDINATOR_ADDRESS" in said[3][0]


def test_a_stalled_process_writes_what_its_threads_were_doing_and_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STALLS, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 42
    assert "no step was finished for 0.005 minutes (stall_minutes)" in ended.stderr
    assert "run the same command to go on" in ended.stderr
    assert "wait_for_ever" in ended.stderr
    assert "wait_for_ever" in (tmp_path / "stalled.3.txt").read_text()


def test_the_first_step_has_four_times_as_long(tmp_path: Path) -> None:
    stall = StallWatch(tmp_path, minutes=0.5, index=0)
    assert stall._limit == 120.0
    stall.step_is_done()
    assert stall._limit == 30.0


def test_steps_that_are_finished_keep_a_process_alive(tmp_path: Path) -> None:
    with StallWatch(tmp_path, minutes=0.005, index=0) as stall:
        for _ in range(8):
            stall.step_is_done()
            time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []

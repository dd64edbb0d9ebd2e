"""A command is started again when it was cut off, a bounded number of times, and never when it was told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.local import LaunchError, run_locally

# Ends in turn as the arguments say: 's9' by signal 9, else with that exit code. The file counts the starts.
ENDS = """
import os, sys
file, *ends = sys.argv[1:]
with open(file, "a") as starts:
    starts.write("x")
number = os.path.getsize(file) - 1
print("start", number + 1, flush=True)
end = ends[min(number, len(ends) - 1)]
if end[0] == "s":
    os.kill(os.getpid(), int(end[1:]))
sys.exit(int(end))
"""

# Says that it is ready, then waits to be told; a second signal is written down as well.
WAITS = """
import signal, sys, time
def told(number, frame):
    print("told", number, flush=True)
    time.sleep(0.3)
    sys.exit(130 if number == signal.SIGINT else 42)
signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGINT, told)
print("ready", flush=True)
time.sleep(60)
"""


# Of several: ends as the argument of its number says, at once or, if '+' is before it, when it is told to.
ENDS_TOGETHER = """
import os, signal, sys, time
end = sys.argv[1 + int(os.environ["JAX_PROCESS_ID"])]
place = os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_COORDINATOR_ADDRESS"].split(":")[0]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("here", *place, flush=True)
if end[0] == "+":
    time.sleep(60)
time.sleep(0.5)
if end[0] == "s":
    os.kill(os.getpid(), int(end[1:]))
sys.exit(int(end))
"""


def run(tmp_path: Path, *ends: str, restarts: int = 3) -> tuple[int, int]:
    """(exit code, number of starts)"""
    starts = tmp_path / "starts"
    code = run_locally([sys.executable, "-S", "-c", ENDS, str(starts), *ends], restarts=restarts)
    return code, starts.stat().st_size


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_any_other_exit_code_is_final(code: int, tmp_path: Path) -> None:
    assert run(tmp_path, str(code)) == (code, 1)


@pytest.mark.parametrize("cut_off", ["42", "s9", "s15", "s11"])
def test_a_command_that_was_cut_off_is_started_again(cut_off: str, tmp_path: Path) -> None:
    assert run(tmp_path, cut_off, cut_off, "0") == (0, 3)


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize(("end", "code"), [("42", 42), ("s9", 137)])
def test_restarts_are_bounded(restarts: int, end: str, code: int, tmp_path: Path) -> None:
    assert run(tmp_path, end, restarts=restarts) == (code, restarts + 1)


def test_a_failure_after_a_restart_is_final(tmp_path: Path) -> None:
    assert run(tmp_path, "42", "1", "0") == (1, 2)


def test_output_goes_on_and_into_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, starts = tmp_path / "logs" / "run.log", tmp_path / "starts"
    command = [sys.executable, "-S", "-c", ENDS, str(starts), "42", "0"]
    assert run_locally(command, log=log) == 0
    out, errors = capfd.readouterr()
    assert out.splitlines() == ["start 1", "start 2"]
    assert errors.splitlines() == ["launch: the command asked to be started again (42): restart 1 of 3"]
    assert log.read_text().splitlines() == ["start 1", *errors.splitlines(), "start 2"]
    assert run_locally([sys.executable, "-c", "import sys; sys.stderr.write('late')"], log=log) == 0
    assert log.read_text().endswith("start 2\nlate"), "a log is appended to, with what goes to standard error"


@pytest.mark.parametrize(
    ("command", "restarts", "log", "message"),
    [
        (["no-such-command"], 3, None, "no-such-command can not be started: No such file"),
        ([sys.executable, "-c", ""], -1, None, "restarts is -1"),
        ([sys.executable, "-c", ""], 3, Path("/proc/no/log"), "/proc/no/log can not be written"),
    ],
)
def test_what_can_not_be_started_is_named(
    command: Sequence[str], restarts: int, log: Path | None, message: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LaunchError, match=message):
        run_locally(command, restarts=restarts, log=log)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
@pytest.mark.parametrize("log", ["", "run.log"])
def test_a_signal_is_passed_on_once_and_nothing_is_started_again(
    number: int, code: int, log: str, tmp_path: Path
) -> None:
    launcher = (
        "import sys; from pathlib import Path; from launch.local import run_locally; "
        "sys.exit(run_locally(sys.argv[2:], log=Path(sys.argv[1]) if sys.argv[1] else None))"
    )
    command = [sys.executable, "-c", launcher, log, sys.executable, "-S", "-c", WAITS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, cwd=tmp_path, process_group=0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)  # as a terminal does: to the whole foreground group
        assert process.stdout.read() == f"told {number:d}\n"
        assert process.wait(20) == code


@pytest.mark.parametrize(
    ("ends", "code"),
    [(["0", "0", "0"], 0), (["0", "s9", "+"], 137), (["+", "2"], 2), (["+", "42"], 42)],
)
def test_processes_of_a_group_end_together_with_the_code_of_the_first_bad_end(
    ends: list[str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-S", "-c", ENDS_TOGETHER, *ends]
    assert run_locally(command, processes=len(ends), restarts=0, grace=0.5) == code
    out, errors = capfd.readouterr()
    assert sorted(out.splitlines()) == [f"[{index}] here {len(ends)} 127.0.0.1" for index in range(len(ends))]
    stuck = [str(index) for index, end in enumerate(ends) if end == "+"]
    assert (f"launch: process {' and '.join(stuck)} did not end in 0.5 s" in errors) == bool(stuck)


def test_a_group_is_started_again_together(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, starts = tmp_path / "run.log", tmp_path / "starts"
    code = "import os, sys; file = sys.argv[1] + os.environ['JAX_PROCESS_ID']; open(file, 'a').write('x'); "
    code += "sys.exit(42 if os.path.getsize(file) < 3 and file.endswith('1') else 0)"
    assert run_locally([sys.executable, "-S", "-c", code, str(starts)], processes=2, log=log) == 0
    assert [Path(f"{starts}{index}").read_text() for index in (0, 1)] == ["xxx", "xxx"]
    said = [f"launch: process 1 of 2 asked to be started again (42): restart {restart} of 3" for restart in (1, 2)]
    assert capfd.readouterr().err.splitlines() == said
    assert log.read_text().splitlines() == said


def test_a_signal_is_passed_on_to_every_process() -> None:
    launcher = "import sys; from launch.local import run_locally; sys.exit(run_locally(sys.argv[1:], processes=3))"
    command = [sys.executable, "-c", launcher, sys.executable, "-S", "-c", ENDS_TOGETHER, "+", "+", "+"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(3)) == [f"[{i}] here 3 127.0.0.1\n" for i in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 42


@pytest.mark.parametrize(("processes", "devices", "message"), [(0, None, "processes is 0"), (2, 0, "devices is 0")])
def test_a_group_of_none_is_refused(processes: int, devices: int | None, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        run_locally([sys.executable, "-c", ""], processes=processes, devices=devices)


def test_simulated_devices_are_asked_for_beside_other_flags(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    code = "import os; print(os.environ['JAX_PLATFORMS'], os.environ['XLA_FLAGS'], 'JAX_PROCESS_ID' in os.environ)"
    assert run_locally([sys.executable, "-S", "-c", code], devices=3) == 0
    assert capfd.readouterr().out == "cpu --xla_dump_to=x --xla_force_host_platform_device_count=3 False\n"


def test_the_verb_runs_another_verb_and_ends_as_it_does(tmp_path: Path) -> None:
    def wizard(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wizard_jax", "launch", "local", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    listed = wizard("--restarts", "2", "--", "config", "paths", "eval")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "task.per_band" in listed.stdout
    refused = wizard("--", "evolve", "no/such.gin", "--out", "x")
    assert refused.returncode == 2
    assert "no/such.gin" in refused.stderr
    empty = wizard()
    assert empty.returncode == 2
    assert "write it after --" in empty.stderr

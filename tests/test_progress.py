"""Progress is bars on a terminal and plain lines elsewhere; tables hold what they are given."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wizard_jax.progress import _Lines, show_progress, show_table

ROOT = Path(__file__).parents[1]
ON_A_TERMINAL = """
from wizard_jax.progress import show_progress
with show_progress("train") as progress:
    progress(1, 4, {"loss": 2.5})
    progress(4, 4, {"loss": 1.23456, "trained_tokens": 12345})
"""


def test_without_a_terminal_there_is_a_line_at_the_start_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("train") as progress:
        for done in range(1001):
            progress(done, 1000, {"loss": 1.23456, "trained_tokens": 12345, "doing": "steps"})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "train 0/1,000 loss 1.235, trained tokens 12,345, doing steps"
    assert last.startswith("train 1,000/1,000 ")


def test_without_a_terminal_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("evolve") as progress:
        for done in range(5000):
            progress(done, 5000, {})
    assert capsys.readouterr().out.splitlines() == ["evolve 0/5,000"]


def test_without_a_terminal_a_line_says_how_much_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 160.0, 220.0, 400.0])
    lines = _Lines("evolve", clock=lambda: next(times))
    for done in (10, 40, 70, 160):  # a run that goes on: 30 in a minute
        lines(done, 160, {"dropped": 2})
    assert capsys.readouterr().out.splitlines() == [
        "evolve 10/160 dropped 2",
        "evolve 40/160 dropped 2",
        "evolve 70/160 dropped 2, time left 0:03:00",
        "evolve 160/160 dropped 2",
    ]


def test_the_time_left_is_that_of_steps_and_not_of_compiling_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 300.0, 320.0, 340.0])
    lines = _Lines("train", clock=lambda: next(times))
    for done in (0, 1, 11, 21):
        lines(done, 101, {})
    assert capsys.readouterr().out.splitlines() == [
        "train 0/101",
        "train 1/101",
        "train 11/101 time left 0:03:00",
        "train 21/101 time left 0:02:40",
    ]


def test_without_a_terminal_what_was_told_last_is_said_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("train") as progress:
        progress(1, 2, {"loss": 3})
        progress(2, 2, {"loss": 2})
        progress(2, 2, {"loss": 2, "doing": "measure"})
        progress(2, 2, {"loss": 2, "held-out loss": 4})
    assert capsys.readouterr().out.splitlines() == [
        "train 1/2 loss 3",
        "train 2/2 loss 2",
        "train 2/2 loss 2, held-out loss 4",
    ]


def test_without_a_terminal_the_last_line_comes_once_and_again_only_where_it_differs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = _Lines("shards", clock=lambda: now)
    for poll in range(130):  # of 0.2 s: the shards are through after 4 s, and something else goes on for 22
        now = 0.2 * poll
        lines(min(poll // 10, 2), 2, {"spent": "$1.00" if now < 16 else "$2.00"})
    assert capsys.readouterr().out.splitlines() == [
        "shards 0/2 spent $1.00",
        "shards 2/2 spent $1.00",
        "shards 2/2 spent $2.00",
    ]


def test_without_a_terminal_another_piece_of_work_has_a_pace_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 50.0, 100.0, 110.0, 120.0])
    lines = _Lines("train", clock=lambda: next(times))
    for done in (0, 64):  # rows are packed: 50 s
        lines(done, 64, {})
    for done in (0, 10, 20):  # and then there are 100 steps, of 1 s
        lines(done, 100, {})
    assert capsys.readouterr().out.splitlines() == [
        "train 0/64",
        "train 64/64",
        "train 0/100",
        "train 10/100",
        "train 20/100 time left 0:01:20",
    ]


def test_on_a_terminal_the_time_left_is_known_though_a_step_takes_long() -> None:
    program = """
import time
from wizard_jax.progress import show_progress
now = [1000.0]
time.monotonic = lambda: now[0]
with show_progress("train") as progress:
    progress(0, 10, {})
    now[0] += 100.0  # rich's own estimate looks at 30 s
    progress(1, 10, {"loss": 2.5})
    now[0] += 100.0
    progress(2, 10, {"loss": 2.25})
"""
    assert "0:13:20 left" in on_a_terminal(program, columns=100)


def on_a_terminal(program: str, *, columns: int, **variables: str) -> str:
    """All that the program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(columns), **variables}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux's way of saying that nobody writes any more
        pass
    os.close(ours)
    assert child.wait() == 0
    return shown.decode()


def test_on_a_terminal_the_last_facts_stay() -> None:
    text = on_a_terminal(ON_A_TERMINAL, columns=160)
    assert "4/4" in text
    assert "loss 1.235, trained tokens 12,345" in text


@pytest.mark.parametrize("columns", [120, 80, 60, 40])
def test_no_figure_is_cut_on_a_terminal_of_columns(columns: int) -> None:
    facts: dict[str, int | str] = {
        "records": 12_345,
        "dropped": 1234,
        "copied prompt": 210,
        "unreadable reply": 62,
        "asked": 44_123,
        "from the journal": 1200,
        "tokens/min": 1_234_567,
        "429s": 12,
        "spent": "$12.34",
        "in all about": "$48.12 ($45.21 to $52.77)",
        "trouble": "http://127.0.0.1:9/v1: ConnectError: All connection attempts failed",
    }
    program = ON_A_TERMINAL.partition("    progress(")[0] + f"    progress(1, 4, {facts!r})\n"
    text = on_a_terminal(program, columns=columns, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text), "NO_COLOR is heeded"
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    lines = [line.strip() for line in last.splitlines()]
    assert "…" not in last
    for name, value in facts.items():
        figure = f"{value:,}" if isinstance(value, int) else value
        assert any(name in line for line in lines), name
        assert any(figure in line for line in lines) or f"{name}: {figure}" in " ".join(lines), figure


def test_a_table_without_a_terminal_is_as_wide_as_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    show_table(("setting", "value"), [("a", long), ("[bold]b[/bold]", 7)])
    out = capsys.readouterr().out
    assert long in out
    assert "[bold]b[/bold]" in out
    assert "7" in out

"""`wizard chat` on a real terminal, as somebody who types meets it."""

from __future__ import annotations

import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import jax
import pytest
from rich.cells import cell_len
from rich.console import Console
from speaking import make_speaker

from wizard_jax.convert.export import export_hf
from wizard_jax.generate.conversation import columns, harmless
from wizard_jax.model import decoder

ROOT = Path(__file__).parents[1]
COLUMNS = 60
_ON_A_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C is a signal
runpy.run_module("wizard_jax", run_name="__main__")
"""


class Terminal:
    """A process whose terminal is this, 24 lines of `COLUMNS`."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TERM": "xterm"}
        command = [sys.executable, "-c", _ON_A_TERMINAL, *arguments]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def shows(self, wanted: str, *, seconds: float = 60.0) -> str:
        """What comes up to and with `wanted`."""
        seen, end = b"", time.monotonic() + seconds
        while wanted.encode() not in seen:
            assert time.monotonic() < end, (wanted, seen)
            if select.select([self._ours], [], [], 0.1)[0]:
                seen += os.read(self._ours, 1)
        return seen.decode().replace("\r\n", "\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with much room."""
    made = tmp_path_factory.mktemp("chat")
    speaker = make_speaker(made, max_positions=4096)
    stacked = jax.jit(lambda key: decoder.init_params(speaker.config, key=key))(jax.random.key(1))
    tokenizer = made / "tokenizer.model"
    return export_hf(stacked, speaker.config, tokenizer, made / "one", chat_format="wizardlm_7b", card="")


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    opened = Terminal("chat", str(folder), str(folder), "--set", "max_new_tokens=6")
    yield opened
    opened.close()


def test_two_turns_an_answer_that_is_stopped_and_an_end(terminal: Terminal) -> None:
    assert "Ctrl-D ends" in terminal.shows("\n> ")
    terminal.types("say one\n")
    first = terminal.shows("\n> ")
    assert "┏━" in first
    terminal.types("say one\n")
    second = terminal.shows("\n> ")
    assert _answers(first) != _answers(second)  # it knows what was said before
    terminal.types("/set max_new_tokens=3500\n")
    terminal.shows("\n> ")
    terminal.types("count\n")
    terminal.shows("│")
    terminal.types("\x03")
    stopped = terminal.shows("\n> ")
    assert _answers(stopped).count("\n") < 60
    terminal.types("/settings\n")
    assert "max_new_tokens=3500" in terminal.shows("\n> ")
    terminal.types("\x04")
    assert terminal.process.wait(60) == 0


def _answers(shown: str) -> str:
    """What stands below the names in the table that was drawn last."""
    return shown.rpartition("┡")[2]


@pytest.mark.parametrize("width", [80, 40])
def test_two_columns_hold_wide_characters_long_words_and_nothing_that_commands(width: int) -> None:
    said = ["漢字" * 40 + " end", "x" * 99 + " 😀" * 20 + "\x1b[31mred\x1b[2J\x9b1m[bold]\n\n  if y:\n\tz"]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(columns(["one", "[red]a/very/long/path/of/a/model"], list(map(harmless, said)), console=console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert {cell_len(line) for line in shown.splitlines()} == {width}
    assert not set(shown) & {"\x1b", "\x9b", "…"}
    for text, place in zip(said, (1, 3), strict=True):
        column = "".join(
            line.replace("┃", "│").split("│")[place // 2 + 1] for line in shown.splitlines() if line[0] == "│"
        )
        kept = "".join(column.split())
        assert kept == "".join(harmless(text).split())


def test_of_columns_that_grow_the_last_lines_are_shown() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    lines = "\n".join(map(str, range(50)))
    console.print(columns(["one", "two"], [lines, "short"], console=console, lines=3))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split("│")[1].strip() for line in shown if line[0] == "│"] == ["47", "48", "49"]

"""Progress bars and tables on a terminal; plain lines where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Called with how much is done, how much there is, and facts to show beside it."""

    def __call__(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> None: ...


@contextlib.contextmanager
def show_progress(verb: str) -> Iterator[Progress]:
    """A callable to report (done, total, facts) to; what it was told last stays on the screen."""
    if not sys.stdout.isatty():
        yield _Lines(verb)
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[facts]}"),
    )
    with progress.Progress(*columns) as bars:
        task = bars.add_task(verb, total=None, facts="")

        def tell(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
            bars.update(task, completed=done, total=total, facts=_text(facts))

        yield tell


class _Lines:
    """A line at the start, at the end, and every ten seconds between."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._next = 0.0

    def __call__(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + SECONDS_BETWEEN_LINES
            print(f"{self._verb} {done:,}/{total:,} {_text(facts)}".rstrip(), flush=True)


def _text(facts: Mapping[str, int | str | float]) -> str:
    def value(fact: int | str | float) -> str:
        return f"{fact:.4g}" if isinstance(fact, float) else f"{fact:,}" if isinstance(fact, int) else fact

    return ", ".join(f"{name.replace('_', ' ')} {value(fact)}" for name, fact in facts.items())


def show_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for the terminal; without one, columns wide enough for what they hold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(table, options=console.options.update_width(10_000)).maximum))
    console.print(table)

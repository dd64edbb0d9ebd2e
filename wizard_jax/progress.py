"""Progress bars and tables on a terminal; plain lines where there is none."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

SECONDS_BETWEEN_LINES = 10.0
FACTS_ON_A_LINE = 6
_GAP = 3
_LONGEST_FIGURE = 40  # what is longer is a sentence, and stands below the figures


class Progress(Protocol):
    """Called with how much is done, how much there is, and facts to show beside it."""

    def __call__(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> None: ...


def nobody(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    """Progress that is shown elsewhere, by another process."""
    del done, total, facts


@contextlib.contextmanager
def show_progress(verb: str) -> Iterator[Progress]:
    """A callable to report (done, total, facts) to; what it was told last stays on the screen."""
    if not sys.stdout.isatty():
        lines = _Lines(verb)
        try:
            yield lines
        finally:
            lines.end()
        return
    from rich import progress
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    pace = _Pace()

    class TimeLeft(progress.ProgressColumn):
        """At the pace so far: rich's own forgets what is older than half a minute, and a step may take longer."""

        def render(self, task: progress.Task) -> Text:
            del task
            left = pace.left(time.monotonic())
            return Text("" if left is None else f"{left} left", style="progress.remaining")

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        TimeLeft(),
    )
    bars = progress.Progress(*columns)
    task = bars.add_task(verb, total=None)
    in_grid = False
    with Live(bars) as live:

        def tell(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
            nonlocal in_grid
            pace.told(done, total, now=time.monotonic())
            bars.update(task, completed=done, total=total)
            width = live.console.width
            in_grid = in_grid or len(facts) > FACTS_ON_A_LINE or len(_text(facts)) > width
            shown = _grid(facts, width=width) if in_grid else Text(_text(facts))
            live.update(Group(bars, shown))

        yield tell


class _Pace:
    """How long the rest takes, as fast as the later half of what was done; another total is another piece of work.

    Nothing is known before the second piece: what comes before the first is also compilation, or a journal's replies.
    """

    def __init__(self) -> None:
        self._total: int | None = None
        self._first = 0
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def told(self, done: int, total: int, *, now: float) -> None:
        if total != self._total or done < self._first:
            self._total, self._first = total, done
            self._seen.clear()
        if done > (self._seen[-1][1] if self._seen else self._first):
            self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][1] <= (self._first + done) / 2:
            self._seen.popleft()

    def left(self, now: float) -> timedelta | None:
        """None where that is not known, or nothing is left to do."""
        if self._total is None or len(self._seen) < 2 or self._seen[-1][1] >= self._total:
            return None
        (began, before), (last, done) = self._seen[0], self._seen[-1]
        whole = (last - began) / (done - before) * (self._total - done)
        return timedelta(seconds=max(0, round(whole - (now - last))))


def _grid(facts: Mapping[str, int | str | float], *, width: int) -> RenderableType:
    """Names over figures, in rows of `FACTS_ON_A_LINE`, or as many as fit: a figure that is cut is another figure."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    named = [(name.replace("_", " "), _figure(value)) for name, value in facts.items()]
    told = [(name, text) for name, text in named if len(text) <= _LONGEST_FIGURE]
    columns = next((count for count in range(FACTS_ON_A_LINE, 1, -1) if _width(told, columns=count) <= width), 1)
    grid = Table.grid(padding=(0, _GAP))
    for first in range(0, len(told), columns):
        row = told[first : first + columns]
        grid.add_row(*(Text(name, style="dim") for name, _ in row))
        grid.add_row(*(Text(figure) for _, figure in row))
    sentences = (Text(f"{name}: {text}") for name, text in named if len(text) > _LONGEST_FIGURE)
    return Group(grid, *sentences)


def _width(told: Sequence[tuple[str, str]], *, columns: int) -> int:
    """Characters in a row of the grid, with the gap behind its last column."""
    return sum(max(len(text) for pair in told[at::columns] for text in pair) + _GAP for at in range(columns))


class _Lines:
    """A line at the start, at the end, and every ten seconds between, with the time left at the pace so far.

    What is told after the end is a line only where it differs.
    """

    def __init__(self, verb: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._verb = verb
        self._clock = clock
        self._next = float("-inf")
        self._pace = _Pace()
        self._ended = False
        self._last = self._newest = ""

    def __call__(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        now = self._clock()
        self._pace.told(done, total, now=now)
        ends = done >= total and not self._ended
        self._ended = done >= total
        if now >= self._next or ends:
            self._next = now + SECONDS_BETWEEN_LINES
            if (left := self._pace.left(now)) is not None:
                facts = {**facts, "time left": str(left)}
            line = self._line(done, total, facts)
            if ends or not self._ended or line != self._last:
                say(line)
            self._last = line
        self._newest = self._line(done, total, facts) if self._ended else ""

    def end(self) -> None:
        """What was told last of work that is done is said, if it was not."""
        if self._newest and self._newest != self._last:
            say(self._newest)

    def _line(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> str:
        return f"{self._verb} {done:,}/{total:,} {_text(facts)}".rstrip()


def _text(facts: Mapping[str, int | str | float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in facts.items())


def _figure(value: int | str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def say(line: str) -> None:
    """A line of its own, at once."""
    print(line, flush=True)


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

"""What a run leaves: for its readers, and in its journal for the process that goes on with it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_gen.evolve import keyed_number


def unwatched(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    """Progress that nobody looks at."""


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves for its readers."""
    data = {file.name: file.read_bytes() for file in sorted((folder / "dataset").iterdir())}
    return {**data, "rejected.jsonl": (folder / "rejected.jsonl").read_bytes()}


@dataclass(frozen=True)
class Left:
    """What a killed process left in its journal: the seeds of the requests that it holds, marks, and counted losses."""

    journalled: frozenset[int]
    marks: int
    counted: int


def left_behind(out: Path, copy: Path, *, drawn_from: Callable[..., int] = keyed_number) -> Left:
    """`drawn_from` makes a request's seed of the run's, which is 0, and its key."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in out.glob("journal.sqlite*"):
        shutil.copy(file, copy)
    journal = copy / "journal.sqlite"
    if not journal.exists():
        return Left(frozenset(), 0, 0)
    with contextlib.closing(sqlite3.connect(journal)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return Left(frozenset(), 0, 0)
        keys = db.execute("SELECT lineage, round, purpose FROM outcomes").fetchall()
        ((marks,),) = db.execute("SELECT count(*) FROM in_flight")
        ((counted,),) = db.execute("SELECT possibly_paid_twice FROM totals")
    return Left(frozenset(drawn_from(0, *key) % 2**31 for key in keys), marks, counted)

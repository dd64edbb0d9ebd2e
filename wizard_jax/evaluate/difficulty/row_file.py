"""Rows that are measured chunk by chunk, in a file that goes on where it stopped.

The first line says what the rows depend on. A chunk is appended, and on the disk, before the next is begun; of a file
that was left in the middle of one, whole chunks are kept. So the file ends up the same, to the byte, however often a
run was killed: which records are measured together never changes.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from configs.folder import fsync_folder, naming
from configs.interrupt import StopFlag

CHUNK = 512
"""Records: some seconds on an accelerator, some minutes of 25M parameters on two CPU cores."""

T = TypeVar("T")


def append_rows(
    file: Path,
    pieces: Iterable[T],
    *,
    made_from: Mapping[str, Any],
    measure: Callable[[Sequence[T], int], Sequence[Mapping[str, Any]]],
    stop: StopFlag,
    chunk: int = CHUNK,
) -> None:
    """A row for every piece, in order; those that an earlier start left, made from the same, are not measured again.

    `measure` is given a chunk and how many pieces came before it, and returns a row for each.

    Raises:
      Interrupted: a signal came; whole chunks are kept.
    """
    head = _line(made_from)
    kept = _kept(file, head=head, chunk=chunk)
    source = itertools.islice(pieces, kept, None)
    with naming(file), file.open("ab") as stream:
        if not stream.tell():
            stream.write(head)
        fsync_folder(file.parent)
        while members := list(itertools.islice(source, chunk)):
            stop.raise_if_set()
            rows = measure(members, kept)
            assert len(rows) == len(members)
            stream.write(b"".join(map(_line, rows)))
            stream.flush()
            os.fsync(stream.fileno())
            kept += len(members)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished file, without its first line."""
    with file.open(encoding="utf-8") as lines:
        next(lines)
        yield from map(json.loads, lines)


def _kept(file: Path, *, head: bytes, chunk: int) -> int:
    """How many rows of whole chunks stand there; what follows them is cut off.

    A file made from other things is emptied. A last chunk that is shorter is made anew: nothing says that it is whole.
    """
    if not file.exists():
        return 0
    rows = whole = 0
    with naming(file), file.open("r+b") as stream:
        place = len(head) if stream.readline() == head else 0
        if place:
            end = place
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                rows, end = rows + 1, end + len(line)
                if rows % chunk == 0:
                    whole, place = rows, end
        stream.truncate(place)
    return whole


def _line(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

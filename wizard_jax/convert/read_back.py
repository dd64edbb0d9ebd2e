"""Reading a file back from the disk while it is still being written, so that little is left to read at its end."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import google_crc32c

SEGMENT = 1 << 28
"""Bytes that are flushed together, taken out of the system's cache, and read."""
_READ = 1 << 20
_BLOCK = 1 << 19  # bytes that stay in a core's cache


class _Part(NamedTuple):
    start: int
    length: int
    crc: int
    name: str


class ReadBack:
    """Compares what the disk holds of a file with what was written to it, in a thread of its own.

    One thread writes, and calls these; `close` ends it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._parts: list[_Part] = []
        self._waiting = 0
        self._found: list[Future[list[str]]] = []
        self._thread = ThreadPoolExecutor(1, "read-back")

    def close(self) -> None:
        """Reads no more. To be called in any case."""
        self._thread.shutdown(cancel_futures=True)

    def wrote(self, name: str, start: int, data: memoryview) -> None:
        """That `data`, called `name`, now stands in the file from byte `start` on."""
        self._parts.append(_Part(start, len(data), crc32c(data), name))
        self._waiting += len(data)
        if self._waiting >= SEGMENT:
            self._read()

    def differing(self) -> list[str]:
        """The names of parts that the disk holds otherwise, each once; waits for all."""
        self._read()
        return list(dict.fromkeys(name for found in self._found for name in found.result()))

    def _read(self) -> None:
        parts, self._parts, self._waiting = sorted(self._parts), [], 0
        if parts:
            self._found.append(self._thread.submit(_differing, self._file, parts))


def _differing(file: Path, parts: list[_Part]) -> list[str]:
    """Pages at the ends of the parts, which others are still writing to, may come from the system's cache."""
    with open(file, "rb", buffering=0) as opened:
        os.fdatasync(opened.fileno())
        start, end = parts[0].start, parts[-1].start + parts[-1].length
        os.posix_fadvise(opened.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return [part.name for part in parts if _checksum(opened, part.start, part.length) != part.crc]


def _checksum(opened: FileIO, start: int, length: int) -> int:
    """CRC-32C of a part of a file, or of what there is of it."""
    found = 0
    opened.seek(start)
    while length and (data := opened.read(min(length, _READ))):
        found = google_crc32c.extend(found, data)
        length -= len(data)
    return found


def crc32c(data: memoryview) -> int:
    """(The library takes only bytes that can not change.)"""
    crc = 0
    for at in range(0, len(data), _BLOCK):
        crc = google_crc32c.extend(crc, bytes(data[at : at + _BLOCK]))
    return crc


def drop_cached(file: Path) -> None:
    """Takes a file, whose bytes are synced, out of the system's cache: who reads it next reads the disk."""
    with open(file, "rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

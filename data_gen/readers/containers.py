"""From what `seeds.path` says to rows: a file, a folder or glob of files, in sorted order."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from data_gen.readers.json_rows import json_rows
from data_gen.readers.rows import Row, SourceError

_GZIP = b"\x1f\x8b"
_DATA = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")


def rows_of(path: str) -> Iterator[Row]:
    """Everything that the path names, one row after another.

    Raises:
      SourceError: there is nothing there, or a file in it can not be read or is empty.
    """
    for file, source in _files(Path(path)):
        row = None
        for row in _rows_of_file(file, source=source):
            yield row
        if row is None:
            raise SourceError(f"{file} is empty: it must hold at least one instruction")


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, its name as a source) of all that a path stands for, sorted."""
    if path.exists():
        return [(path, path.name)]
    raise SourceError(f"there is no file {path}: seeds.path must name a JSON or JSONL file")


def _rows_of_file(file: Path, *, source: str) -> Iterator[Row]:
    try:
        with _opened(file) as stream:
            yield from json_rows(stream, path=file, source=source)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise SourceError(f"{file} is damaged: its compressed data can not be read; copy it again") from None
    except OSError as error:
        raise SourceError(f"{file} can not be read: {error.strerror}") from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a file; of one that gzip made, whatever its name, those that went in."""
    with file.open("rb") as stream:
        if stream.read(2) == _GZIP:
            stream.seek(0)
            with gzip.open(stream) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield stream

"""From what `seeds.path` says to rows: a file, a folder or glob of files, or a data set.

seeds.jsonl  seeds.json  seeds.jsonl.gz  seeds.parquet  seeds.arrow      told apart by their first bytes
tasks/  tasks/*.json                                                     files in sorted order
saved/  (datasets.save_to_disk)    evolved/  (wizard evolve)    name/1.0.0/  (TFDS)    tfds:NAME
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from data_gen.readers import tables, tfds_rows
from data_gen.readers.json_rows import json_rows
from data_gen.readers.rows import Row, SourceError

_GZIP = b"\x1f\x8b"
_KINDS = re.compile(r"\.(json|jsonl|ndjson)(\.gz)?|\.parquet|\.arrow")
_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "features.json"})
_HELD_OUT = re.compile(r"(test|validation|valid|val|dev|eval)([-_.].*)?")
_TAKES = "seeds.path must name a file, a folder, a glob such as 'tasks/*.json', or tfds:NAME"


def rows_of(path: str) -> Iterator[Row]:
    """Everything that the path names, one row after another.

    Raises:
      SourceError: there is nothing there, or a file in it can not be read or is empty.
    """
    if path.startswith(tfds_rows.PREFIX):
        yield from tfds_rows.named_rows(path)
        return
    folder = Path(path)
    if own := tfds_rows.own_folder(folder):
        yield from tfds_rows.own_rows(own, source=folder.name)
    elif tfds_rows.is_prepared(folder):
        yield from tfds_rows.prepared_rows(folder)
    elif tables.is_saved(folder):
        yield from tables.saved_rows(folder)
    else:
        for file, source in _files(path):
            row = None
            for row in rows_of_file(file, source=source):
                yield row
            if row is None:
                raise SourceError(f"{file} is empty: it must hold at least one instruction")


def is_there(path: str) -> bool:
    """Whether the path names anything, which may still be damaged or empty."""
    if path.startswith(tfds_rows.PREFIX):
        return tfds_rows.is_named(path)
    return Path(path).exists() or bool(glob.glob(path, recursive=True))


def _files(path: str) -> list[tuple[Path, str]]:
    """(file, its name as a source) of all that a path stands for, sorted."""
    here = Path(path)
    if here.is_dir():
        found = [file for file in sorted(here.rglob("*")) if _holds_rows(file.relative_to(here)) and file.is_file()]
        if not found:
            raise SourceError(f"the folder {path} holds no .json, .jsonl, .parquet or .arrow file: {_TAKES}")
        named = [(file, file.relative_to(here).as_posix()) for file in found]
        _refuse_held_out(here, [name for _, name in named])
        return named
    if here.exists():
        return [(here, here.name)]
    matched = [Path(match) for match in sorted(glob.glob(path, recursive=True)) if os.path.isfile(match)]
    if not matched:
        raise SourceError(f"there is no file {path}: {_TAKES}")
    root = os.path.commonpath([file.parent for file in matched])
    return [(file, file.relative_to(root).as_posix()) for file in matched]


def _holds_rows(file: Path) -> bool:
    """By its name, in a folder that holds other files too."""
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.name not in _NO_DATA and is_of_rows(file)


def is_of_rows(file: Path) -> bool:
    """Whether a file is by its name one of those whose rows are read."""
    last = file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:]
    return _KINDS.fullmatch("".join(last)) is not None


def _refuse_held_out(folder: Path, names: Sequence[str]) -> None:
    """A folder that has test data beside other data is not read whole: seeds made of it would spoil the test."""
    held_out = [name for name in names if any(_HELD_OUT.fullmatch(part.lower()) for part in name.split("/"))]
    if held_out and len(held_out) < len(names):
        raise SourceError(
            f"the folder {folder} holds {held_out[0]}, which by its name is not for training, beside other files: "
            f"say which are meant, as in seeds.path='{folder}/train*'"
        )


def rows_of_file(file: Path, *, source: str) -> Iterator[Row]:
    """The rows of one file, told apart by its first bytes; none of one that is empty.

    Raises:
      SourceError: the file can not be read.
    """
    with opened(file) as stream:
        beginning = stream.read(8)
        if beginning.startswith(tables.PARQUET):
            rows = tables.parquet_rows(file, source=source)
        elif beginning.startswith((tables.ARROW, tables.ARROW_STREAM)):
            rows = tables.arrow_rows(file, source=source)
        else:
            rows = json_rows(stream, path=file, source=source)
        yield from rows


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a file; of one that gzip made, whatever its name, those that went in.

    Raises:
      SourceError: the file, now or while it is read, can not be read.
    """
    try:
        with file.open("rb") as stream:
            packed = stream.read(2) == _GZIP
            stream.seek(0)
            if packed:
                with gzip.open(stream) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise SourceError(f"{file} is damaged: its compressed data can not be read; copy it again") from None
    except OSError as error:
        raise SourceError(f"{file} can not be read: {error.strerror or error}") from None

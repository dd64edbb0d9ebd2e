"""Files of packed rows: written in several processes, read by row number, and found damaged with their name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from configs.folder import naming
from wizard_jax.data.config import DataError
from wizard_jax.data.conversations import Conversations
from wizard_jax.data.planning import Plan
from wizard_jax.data.rows import row_bytes

_OPTIONS = "group_size:1,zstd:1"
"""One row is read without its neighbours. zstd at level 1 writes twice as fast as at 3 and takes as much room."""

_MOST_FILES = 256
"""All are open while they are read."""


@dataclasses.dataclass(frozen=True)
class RowFile:
    """A file of rows as it was written."""

    file: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class RowTask:
    """The rows of one file, and where their conversations lie (arrays of all of them, one row after the other)."""

    file: str
    sizes: np.ndarray
    """int64 [rows]: conversations."""
    chunks: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray


def row_file_count(plan: Plan, *, file_rows: int) -> int:
    return -(-plan.rows // _file_rows(plan, at_least=file_rows))


def _file_rows(plan: Plan, *, at_least: int) -> int:
    return max(at_least, -(-plan.rows // _MOST_FILES))


def row_tasks(
    conversations: Conversations, *, items: np.ndarray, lengths: np.ndarray, plan: Plan, file_rows: int
) -> Iterator[RowTask]:
    """The files of a plan over `items` (of `lengths` tokens each)."""
    chunks, offsets = conversations.places(items)
    files = row_file_count(plan, file_rows=file_rows)
    file_rows = _file_rows(plan, at_least=file_rows)
    for number in range(files):
        first, last = number * file_rows, min((number + 1) * file_rows, plan.rows)
        held = plan.items[plan.starts[first] : plan.starts[last]]
        yield RowTask(
            file=f"rows-{number:05d}-of-{files:05d}.arrayrecord",
            sizes=np.diff(plan.starts[first : last + 1]),
            chunks=chunks[held],
            offsets=offsets[held],
            lengths=lengths[held],
            groups=conversations.groups[items[held]],
        )


@dataclasses.dataclass(frozen=True)
class RowWriter:
    """Writes files of rows into a folder; one that is there, and whole, is taken as it is."""

    folder: pathlib.Path
    words: tuple[pathlib.Path, ...]
    """The files that `RowTask.chunks` numbers."""

    def __call__(self, task: RowTask) -> RowFile:
        """Raises DataError: the disk is full."""
        file, note = self.folder / task.file, self.folder / f"{task.file}.json"
        found = _noted(note)
        if found is not None and is_whole(self.folder, found):
            return found
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        self._write(task, partial)
        written = RowFile(task.file, len(task.sizes), sha256_of(partial))
        partial.replace(file)
        with naming(note):
            note.write_text(json.dumps(dataclasses.asdict(written)))
        return written

    def _write(self, task: RowTask, file: pathlib.Path) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        opened: dict[int, int] = {}
        try:
            writer = ArrayRecordWriter(str(file), _OPTIONS)
            ends = np.cumsum(task.sizes)
            for first, last in zip((ends - task.sizes).tolist(), ends.tolist(), strict=True):
                words = []
                for item in range(first, last):
                    chunk, size = int(task.chunks[item]), 4 * int(task.lengths[item])
                    if chunk not in opened:
                        opened[chunk] = os.open(self.words[chunk], os.O_RDONLY)
                    words.append(os.pread(opened[chunk], size, int(task.offsets[item])))
                    assert len(words[-1]) == size, self.words[chunk]
                writer.write(row_bytes(task.lengths[first:last], groups=task.groups[first:last], words=words))
            writer.close()
        except RuntimeError as error:  # ArrayRecord's own
            raise DataError(f"{file} can not be written ({error}): mend that and start again") from error
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        with naming(file), file.open("rb") as stream:
            os.fsync(stream.fileno())


def _noted(note: pathlib.Path) -> RowFile | None:
    try:
        return RowFile(**json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def is_whole(folder: pathlib.Path, written: RowFile) -> bool:
    """Whether a file is there as it was written."""
    file = folder / written.file
    return file.is_file() and sha256_of(file) == written.sha256


def sha256_of(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class RowReader:
    """Random access to the bytes of rows, numbered through all files; for any number of threads."""

    def __init__(self, folder: pathlib.Path, files: Sequence[RowFile]) -> None:
        """
        Raises:
          DataError: a file is missing, or does not hold as many rows as were written.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        self._files = [folder / written.file for written in files]
        self._firsts = np.cumsum([0, *(written.rows for written in files)])
        self._readers: list[Any] = []
        for file, written in zip(self._files, files, strict=True):
            if not file.is_file():
                raise DataError(f"{file} is gone: {_REMEDY}")
            reader: Any = ArrayRecordReader(str(file))
            # It opens what is no ArrayRecord file, or a part of one, as a file without records.
            if reader.num_records() != written.rows:
                raise DataError(f"{file} holds {reader.num_records()} rows of {written.rows}: {_REMEDY}")
            self._readers.append(reader)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """
        Raises:
          DataError: a row cannot be read.
        """
        found = np.empty(len(numbers), object)
        files = np.searchsorted(self._firsts, numbers, side="right") - 1
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            wanted = [numbers[place] - int(self._firsts[file]) for place in places.tolist()]
            try:
                for place, data in zip(places.tolist(), self._readers[file].read(wanted), strict=True):
                    found[place] = data
            except (RuntimeError, ValueError, IndexError) as error:
                raise self._named(error, file=file, wanted=wanted) from error
        return list(found)

    def _named(self, error: Exception, *, file: int, wanted: Sequence[int]) -> DataError:
        """Which of several rows cannot be read."""
        rows = []
        for row in wanted:
            try:
                self._readers[file].read([row])
            except (RuntimeError, ValueError, IndexError):
                rows.append(row)
        which = f"row {rows[0]}" if rows else f"one of rows {wanted[0]} to {wanted[-1]}"
        return DataError(f"{self._files[file]}: {which} cannot be read ({error}): {_REMEDY}")


_REMEDY = "remove its folder, and `wizard pack` or the next start of `wizard train` makes it again"

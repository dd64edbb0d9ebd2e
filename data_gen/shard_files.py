"""Files of records, in the two formats that TFDS reads: TFRecord, and ArrayRecord for random access.

A TFRecord frame is: length (uint64), masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes. Both formats
are written and read without TensorFlow, and the same records give the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, get_args

import google_crc32c

from configs.errors import UserError
from configs.folder import naming

FileFormat = Literal["tfrecord", "array_record"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)

FRAME_BYTES = 16  # of a TFRecord frame beside its record: 8 length, 4 CRC, 4 CRC

_READ_AT_ONCE = 64  # records of an ArrayRecord file; one by one costs three times as much


class ShardError(UserError):
    """A data set cannot be written, or is not what its manifest says; names file, record and byte offset."""


def shard_name(name: str, *, file_format: FileFormat, index: int, total: int) -> str:
    """What TFDS calls a shard of the split `train`."""
    return f"{name}-train.{file_format}-{index:05d}-of-{total:05d}"


@contextlib.contextmanager
def open_shard(file: pathlib.Path, *, file_format: FileFormat) -> Iterator[Callable[[bytes], None]]:
    """A new file; what it yields appends one record. On the disk when the block ends."""
    if file_format == "array_record":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer: Any = ArrayRecordWriter(str(file), "group_size:1")  # one record is read without its neighbours

        def append(data: bytes) -> None:
            with _told_as_user_error(file):
                writer.write(data)

        try:
            yield append
        finally:
            with _told_as_user_error(file):
                writer.close()
    else:
        with naming(file), file.open("wb") as stream:

            def write(data: bytes) -> None:
                stream.write(frame(data))

            yield write
    with naming(file), file.open("rb") as written:
        os.fsync(written.fileno())


def frame(data: bytes) -> bytes:
    """A record as a TFRecord file has it: its length, the checksum of that, the record, and its checksum."""
    head = struct.pack("<Q", len(data))
    return b"".join((head, _masked_crc(head), data, _masked_crc(data)))


@contextlib.contextmanager
def _told_as_user_error(file: pathlib.Path) -> Iterator[None]:
    """ArrayRecord tells of a full or broken disk in a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise ShardError(f"{file} can not be written ({error}): mend that and start the same command again") from error


def read_shard(
    file: pathlib.Path, *, file_format: FileFormat, first: int = 0, count: int | None = None, offset: int = 0
) -> Iterator[bytes]:
    """The records of a file in order: all, or `count` from `first` on, which begins at byte `offset` of a TFRecord.

    Raises:
      ShardError: the file is damaged.
    """
    if file_format == "tfrecord":
        with file.open("rb") as stream:
            for _, data in itertools.islice(frames(stream, file=file, number=first, offset=offset), count):
                yield data
        return
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader: Any = ArrayRecordReader(str(file))
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"{file}: no ArrayRecord file can be read here ({error})") from error
    try:
        last = reader.num_records() if count is None else first + count
        for start in range(first, last, _READ_AT_ONCE):
            yield from reader.read(range(start, min(start + _READ_AT_ONCE, last)))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ShardError(f"{file}: a record is damaged ({error})") from error
    finally:
        reader.close()


def frames(stream: BinaryIO, *, file: pathlib.Path, number: int = 0, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(byte offset, record) of the TFRecord frames from record `number` at byte `offset` on.

    Raises ShardError at the first one that is not whole.
    """
    size = os.fstat(stream.fileno()).st_size
    stream.seek(offset)
    while head := stream.read(12):
        where = f"{file}, record {number} at byte {offset}"
        length = _length(head, where=where, room=size - offset)
        data, crc = stream.read(length), stream.read(4)
        if _masked_crc(data) != crc:
            raise ShardError(f"{where}: this record is damaged")
        yield offset, data
        offset += length + FRAME_BYTES
        number += 1


def record_offsets(file: pathlib.Path, numbers: Sequence[int]) -> list[int]:
    """The bytes of a TFRecord file at which some records (ascending) begin, found without reading any.

    Raises:
      ShardError: the file is damaged, or ends before them.
    """
    found = []
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        offset = number = 0
        for wanted in numbers:
            while number < wanted:
                length = _length(stream.read(12), where=f"{file}, record {number} at byte {offset}", room=size - offset)
                offset += length + FRAME_BYTES
                stream.seek(offset)
                number += 1
            found.append(offset)
    return found


def _length(head: bytes, *, where: str, room: int) -> int:
    """Bytes in a record whose frame begins with `head`."""
    if len(head) < 12:
        raise ShardError(f"{where}: the file ends in the middle of this record")
    if _masked_crc(head[:8]) != head[8:]:
        raise ShardError(f"{where}: the length of this record is damaged")
    (length,) = struct.unpack("<Q", head[:8])
    if length + FRAME_BYTES > room:
        raise ShardError(f"{where}: the file ends in the middle of this record")
    return int(length)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

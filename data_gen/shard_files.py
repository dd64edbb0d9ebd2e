"""Files of records, in the two formats that TFDS reads: TFRecord, and ArrayRecord for random access.

A TFRecord frame is: length (uint64), masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes. Both formats
are written and read without TensorFlow, and the same records give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
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
                head = struct.pack("<Q", len(data))
                stream.write(b"".join((head, _masked_crc(head), data, _masked_crc(data))))

            yield write
    with naming(file), file.open("rb") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def _told_as_user_error(file: pathlib.Path) -> Iterator[None]:
    """ArrayRecord tells of a full or broken disk in a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise ShardError(f"{file} can not be written ({error}): mend that and start the same command again") from error


def read_shard(file: pathlib.Path, *, file_format: FileFormat) -> Iterator[bytes]:
    """The records of a file in order.

    Raises:
      ShardError: the file is damaged.
    """
    if file_format == "tfrecord":
        with file.open("rb") as stream:
            for _, data in frames(stream, file=file):
                yield data
        return
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader: Any = ArrayRecordReader(str(file))
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"{file}: no ArrayRecord file can be read here ({error})") from error
    try:
        total = reader.num_records()
        for start in range(0, total, _READ_AT_ONCE):
            yield from reader.read(range(start, min(start + _READ_AT_ONCE, total)))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ShardError(f"{file}: a record is damaged ({error})") from error
    finally:
        reader.close()


def frames(stream: BinaryIO, *, file: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, record) of every TFRecord frame; raises ShardError at the first one that is not whole."""
    size = os.fstat(stream.fileno()).st_size
    offset = number = 0
    while head := stream.read(12):
        where = f"{file}, record {number} at byte {offset}"
        if len(head) < 12:
            raise ShardError(f"{where}: the file ends in the middle of this record")
        if _masked_crc(head[:8]) != head[8:]:
            raise ShardError(f"{where}: the length of this record is damaged")
        (length,) = struct.unpack("<Q", head[:8])
        if offset + length + FRAME_BYTES > size:
            raise ShardError(f"{where}: the file ends in the middle of this record")
        data, crc = stream.read(length), stream.read(4)
        if _masked_crc(data) != crc:
            raise ShardError(f"{where}: this record is damaged")
        yield offset, data
        offset += length + FRAME_BYTES
        number += 1


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

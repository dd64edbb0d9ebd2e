"""A data set cut into chunks of records, so that several processes can read it without reading each other's part."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from data_gen.shard_files import FileFormat, read_shard, record_offsets
from data_gen.shards import Manifest


@dataclass(frozen=True)
class Stretch:
    """Consecutive records of one file."""

    file: pathlib.Path
    file_format: FileFormat
    sha256: str
    """Of the whole file."""
    first: int
    count: int
    offset: int
    """Byte at which the first of them begins; 0 where the format finds records by number."""

    def read(self) -> Iterator[bytes]:
        """Its records in order; raises ShardError where the file is damaged."""
        return read_shard(
            self.file, file_format=self.file_format, first=self.first, count=self.count, offset=self.offset
        )


def cut(folder: pathlib.Path, manifest: Manifest, *, records_per_chunk: int) -> list[tuple[Stretch, ...]]:
    """The records of a data set in order, `records_per_chunk` at a time; the last chunk may hold fewer.

    Costs a look at the length of each record in the files that a chunk ends in.
    """
    chunks: list[tuple[Stretch, ...]] = []
    chunk: list[Stretch] = []
    room = records_per_chunk
    for shard in manifest.shards:
        file = folder / shard.file
        firsts = [0, *range(room, shard.records, records_per_chunk)]
        offsets = [0] * len(firsts)
        if manifest.file_format == "tfrecord" and len(firsts) > 1:
            offsets = record_offsets(file, firsts)
        for first, last, offset in zip(firsts, [*firsts[1:], shard.records], offsets, strict=True):
            chunk.append(Stretch(file, manifest.file_format, shard.sha256, first, last - first, offset))
            room -= last - first
            if room == 0:
                chunks.append(tuple(chunk))
                chunk, room = [], records_per_chunk
    return [*chunks, tuple(chunk)] if chunk else chunks

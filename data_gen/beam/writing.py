"""Shards of a data set written by many workers, in the order of the seeds or shuffled: the bytes of `write_dataset`.

Records fall into buckets that follow one another. What each bucket holds is counted first, so a record's place in the
whole is known from its place in its bucket, and with it its shard. One worker holds one bucket, or one shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Literal

import apache_beam as beam

from data_gen import shards
from data_gen.records import Record
from data_gen.shard_files import FileFormat, shard_name
from data_gen.shards import DataFile

Order = Literal["seeds", "shuffled"]

_SEEDS_A_BUCKET = 1_024
_SHUFFLED_BITS = 16  # buckets: some 15,000 records in each of a thousand million

Place = tuple[int, tuple[int, int]]
"""(bucket, what it is sorted by within the bucket)."""


def place(order: Order, record: Record, *, index: int, number: int, seed: int) -> Place:
    """Where a record comes: the `number`th of seed `index`, or by the hash of its id and the seed of the shuffle."""
    if order == "seeds":
        return index // _SEEDS_A_BUCKET, (index, number)
    digest = hashlib.blake2b(f"{seed} {record.id}".encode(), digest_size=16).digest()
    high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    return high >> 64 - _SHUFFLED_BITS, (high, low)


def write_shards(
    placed: beam.PCollection,
    *,
    folder: pathlib.Path,
    name: str,
    records_per_shard: int,
    file_format: FileFormat,
) -> beam.PCollection:
    """(bucket, (sorted by, Record)) -> `DataFile`, one for each shard, whose file is in `folder` when it comes."""
    starts = (
        placed
        | "buckets" >> beam.Keys()
        | "records a bucket" >> beam.combiners.Count.PerElement()
        | "of all buckets" >> beam.combiners.ToDict()
        | "starts" >> beam.Map(_starts)
    )
    numbered = (
        placed
        | "by bucket" >> beam.GroupByKey()
        | "in order" >> beam.FlatMap(_numbered, beam.pvalue.AsSingleton(starts), records_per_shard)
    )
    return (
        numbered
        | "by shard" >> beam.GroupByKey()
        | "written"
        >> beam.Map(
            _write,
            beam.pvalue.AsSingleton(starts),
            folder=str(folder),
            name=name,
            records_per_shard=records_per_shard,
            file_format=file_format,
        )
    )


@dataclasses.dataclass(frozen=True)
class _Starts:
    first: Mapping[int, int]
    """Bucket -> the place of its first record in the whole."""
    total: int


def _starts(counts: Mapping[int, int]) -> _Starts:
    first, total = {}, 0
    for bucket in sorted(counts):
        first[bucket] = total
        total += counts[bucket]
    return _Starts(first, total)


def _numbered(
    bucket: tuple[int, Iterable[tuple[Any, Record]]], starts: _Starts, records_per_shard: int
) -> Iterator[tuple[int, tuple[int, Record]]]:
    """(shard, (place in the whole, record)) for all records of a bucket."""
    number, records = bucket
    in_order = sorted(records, key=itemgetter(0))
    for index, (_, record) in enumerate(in_order, start=starts.first[number]):
        yield index // records_per_shard, (index, record)


def _write(
    shard: tuple[int, Iterable[tuple[int, Record]]],
    starts: _Starts,
    *,
    folder: str,
    name: str,
    records_per_shard: int,
    file_format: FileFormat,
) -> DataFile:
    """Under a name of its own until it is whole: a bundle may be tried twice, also at the same time."""
    index, records = shard
    total = -(-starts.total // records_per_shard)
    file = pathlib.Path(folder) / shard_name(name, file_format=file_format, index=index, total=total)
    own = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    in_order = (record for _, record in sorted(records, key=itemgetter(0)))
    try:
        written = shards.write_shard(in_order, own, file_format=file_format)
        os.replace(own, file)
    finally:
        own.unlink(missing_ok=True)
    return dataclasses.replace(written, file=file.name)

"""Records <-> a TFDS data set of TFRecord or ArrayRecord shards, written and read without TensorFlow, and verified.

evolved/dataset/
  evolved-train.tfrecord-00000-of-00002    the records
  evolved-train.tfrecord-00001-of-00002
  dataset_info.json  features.json         what `tfds.builder_from_directory` reads
  manifest.json                            what `verify` reads: every file's length and SHA-256
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice

from configs.folder import fsync_folder, naming
from data_gen import examples
from data_gen.records import Record
from data_gen.shard_files import (
    FILE_FORMATS,
    FRAME_BYTES,
    FileFormat,
    ShardError,
    frames,
    open_shard,
    read_shard,
    shard_name,
)

__all__ = ["DataFile", "Manifest", "ShardError", "read_dataset", "verify", "write_dataset"]

MANIFEST = "manifest.json"
_FORMAT = 2
_METADATA = ("dataset_info.json", "features.json")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FIELDS = tuple(field.name for field in dataclasses.fields(Record))


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a data set as it was written; `records` is 0 for the files that hold none."""

    file: str
    bytes: int
    sha256: str
    records: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a finished data set consists of."""

    name: str
    file_format: FileFormat
    fields: tuple[str, ...]
    shards: tuple[DataFile, ...]
    metadata: tuple[DataFile, ...]
    format: int = _FORMAT

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def sha256(self) -> str:
        """SHA-256 over the shards in order: the same for the same records in the same shards."""
        lines = (f"{shard.records} {shard.bytes} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        body = dataclasses.asdict(self) | {"records": self.records, "sha256": self.sha256}
        body["manifest_sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps(body, indent=1, sort_keys=True) + "\n"


def write_dataset(
    records: Iterable[Record],
    out: pathlib.Path,
    *,
    name: str,
    count: int,
    records_per_shard: int,
    description: str,
    file_format: FileFormat = "tfrecord",
) -> Manifest:
    """Write `count` records to the folder `out`, which appears complete or not at all.

    Memory holds one record. The same records give the same bytes. A data set that is already there is
    replaced; any other folder with something in it is refused.

    Raises:
      ShardError: no records, another number than `count`, a name that TFDS cannot use, text that is not
        Unicode, or an `out` that holds something else.
    """
    check_layout(name=name, records_per_shard=records_per_shard)
    if count < 1:
        raise ShardError(f"there is not one record to write to {out}: the data set would be empty")
    check_replaceable(out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    source = iter(records)
    total = -(-count // records_per_shard)
    shards = [
        write_shard(
            islice(source, records_per_shard),
            partial / shard_name(name, file_format=file_format, index=index, total=total),
            file_format=file_format,
        )
        for index in range(total)
    ]
    written = sum(shard.records for shard in shards) + sum(1 for _ in source)
    if written != count:
        raise ShardError(f"{count} records were announced for {partial}, and {written} came: nothing is kept")
    manifest = finish_folder(partial, name=name, file_format=file_format, shards=shards, description=description)
    put_in_place(partial, out)
    return manifest


def write_shard(records: Iterable[Record], file: pathlib.Path, *, file_format: FileFormat) -> DataFile:
    """Write one shard, whose name is that of `shard_name`; it is on the disk when this returns.

    Raises:
      ShardError: a record holds text that is not Unicode.
    """
    written = 0
    with open_shard(file, file_format=file_format) as append:
        for record in records:
            try:
                append(examples.to_example(record))
            except UnicodeEncodeError as error:
                raise ShardError(
                    f"record {record.id!r} holds text that is not Unicode ({error.reason}): remove or mend this record"
                ) from error
            written += 1
    return _describe(file, records=written)


def finish_folder(
    folder: pathlib.Path, *, name: str, file_format: FileFormat, shards: Iterable[DataFile], description: str
) -> Manifest:
    """Make a data set of a folder that holds all shards: what TFDS reads, and the manifest, which is written last."""
    shards = tuple(shards)
    with naming(folder):
        _write_metadata(folder, name=name, file_format=file_format, shards=shards, description=description)
    manifest = Manifest(
        name=name,
        file_format=file_format,
        fields=_FIELDS,
        shards=shards,
        metadata=tuple(_describe(folder / file) for file in _METADATA),
    )
    with naming(folder / MANIFEST):
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    for file in (*_METADATA, MANIFEST):
        with naming(folder / file), (folder / file).open("rb") as stream:
            os.fsync(stream.fileno())
    return manifest


def check_replaceable(out: pathlib.Path) -> None:
    """Raises ShardError where `out` holds anything but a data set."""
    if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardError(f"{out} exists and is no data set of ours: choose another folder, or remove it")


def check_layout(*, name: str, records_per_shard: int) -> None:
    """Raises ShardError for a name that TFDS cannot use, or shards without records."""
    if not _NAME.fullmatch(name):
        raise ShardError(
            f"name = {name!r} cannot name a data set: use lower-case letters, digits and _, a letter first"
        )
    if records_per_shard < 1:
        raise ShardError(f"records_per_shard = {records_per_shard}: it must be at least 1")


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of the data set in `path`, or in `path`/dataset, found to be intact.

    Raises:
      ShardError: there is none, or it is damaged.
    """
    file = dataset_folder(path) / MANIFEST
    text = file.read_bytes()
    try:
        data = json.loads(text)
        manifest = Manifest(
            name=data["name"],
            file_format=data.get("file_format", "tfrecord"),
            fields=tuple(data["fields"]),
            shards=tuple(DataFile(**shard) for shard in data["shards"]),
            metadata=tuple(DataFile(**item) for item in data["metadata"]),
            format=data["format"],
        )
        # Format 1 knew no other file format, and did not name it.
        intact = manifest.format == 1 or manifest.to_json().encode() == text
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise ShardError(f"{file} is damaged: it does not agree with itself; copy or make the data set again")
    if manifest.format != _FORMAT or manifest.fields != _FIELDS:
        raise ShardError(
            f"{file} was written by another version of this program (its records hold "
            f"{', '.join(manifest.fields)}; here they hold {', '.join(_FIELDS)}): make the data set again"
        )
    return manifest


def dataset_folder(path: pathlib.Path) -> pathlib.Path:
    """Where the shards are: `path` itself, or `path`/dataset for the folder of `wizard evolve`.

    Raises:
      ShardError: neither holds a finished data set.
    """
    path = pathlib.Path(path)
    for folder in (path, path / "dataset"):
        if (folder / MANIFEST).is_file():
            return folder
    if not path.is_dir():
        raise ShardError(f"there is no folder {path}: give the folder that `wizard evolve --out` has filled")
    raise ShardError(
        f"{path} holds no finished data set (no {MANIFEST} in it or in its dataset/): "
        f"if `wizard evolve --out {path}` was interrupted, run it again to finish it"
    )


def verify(path: pathlib.Path) -> Manifest:
    """Check every file of a data set against its manifest.

    Raises:
      ShardError: a file is missing, truncated, altered, swapped, duplicated or one too many.
    """
    folder = dataset_folder(path)
    manifest = read_manifest(folder)
    expected = {item.file for item in (*manifest.shards, *manifest.metadata)}
    missing = sorted(file for file in expected if not (folder / file).is_file())
    if missing:
        raise ShardError(f"{folder} lacks {', '.join(missing)}: copy or make the data set again")
    held = (file for kind in FILE_FORMATS for file in folder.glob(f"*.{kind}*"))
    extra = sorted(file.name for file in held if file.name not in expected)
    if extra:
        raise ShardError(f"{folder} holds {', '.join(extra)}, which the manifest does not name: remove them")
    for item in (*manifest.shards, *manifest.metadata):
        found = _describe(folder / item.file)
        if (found.bytes, found.sha256) != (item.bytes, item.sha256):
            raise ShardError(_diagnose(folder / item.file, item=item, found=found, manifest=manifest))
    return manifest


def read_dataset(path: pathlib.Path) -> Iterator[Record]:
    """The records of a data set in the order in which they were written, after all of it was verified.

    Raises:
      ShardError: as `verify`.
    """
    folder = dataset_folder(path)
    manifest = verify(folder)
    for shard in manifest.shards:
        for data in read_shard(folder / shard.file, file_format=manifest.file_format):
            yield examples.from_example(data)


def _write_metadata(
    folder: pathlib.Path, *, name: str, file_format: FileFormat, shards: tuple[DataFile, ...], description: str
) -> None:
    import tensorflow_datasets as tfds

    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[shard.records for shard in shards],
        num_bytes=sum(shard.bytes for shard in shards),
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=folder, split="train", filetype_suffix=file_format
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=examples.features(),
        split_infos=[split],
        version="1.0.0",
        description=description,
        check_data=False,  # True imports TensorFlow and reads a shard again
    )


# --- whole files


def _describe(file: pathlib.Path, *, records: int = 0) -> DataFile:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return DataFile(file=file.name, bytes=stream.tell(), sha256=digest.hexdigest(), records=records)


def put_in_place(partial: pathlib.Path, out: pathlib.Path) -> None:
    """Rename a finished folder, durably; what it replaces is gone only after it is there."""
    fsync_folder(partial)
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _diagnose(file: pathlib.Path, *, item: DataFile, found: DataFile, manifest: Manifest) -> str:
    """What is wrong with a file whose bytes are not those that were written."""
    remedy = "copy or make the data set again"
    for other in manifest.shards:
        if found.sha256 == other.sha256:
            there = _describe(file.with_name(other.file)).sha256
            how = "the two are swapped" if there == item.sha256 else f"{other.file} is here twice"
            return f"{file} holds what {other.file} should hold: {how}; {remedy}"
    if item in manifest.metadata:
        return f"{file} is not the file that was written ({found.bytes} bytes of {item.bytes}); {remedy}"
    if manifest.file_format != "tfrecord":
        return f"{file} is not the file that was written ({found.bytes} bytes of {item.bytes}); {remedy}"
    number, end = 0, 0
    with file.open("rb") as stream:
        try:
            for offset, data in frames(stream, file=file):
                number, end = number + 1, offset + len(data) + FRAME_BYTES
        except ShardError as error:
            return f"{error} ({found.bytes} bytes of {item.bytes}, {item.records} records); {remedy}"
    if number != item.records:
        return f"{file} ends after record {number - 1}, at byte {end}: {number} records of {item.records}; {remedy}"
    return f"{file} holds other records than those that were written; {remedy}"

"""Rows of data sets that TFDS prepared, in TFRecord or ArrayRecord files, read without TensorFlow.

Our own are verified first. Nothing is downloaded: a data set is one that is already prepared in a folder.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data_gen.readers.rows import Row, SourceError, chosen_split
from data_gen.shard_files import FILE_FORMATS, read_shard
from data_gen.shards import MANIFEST, read_dataset

PREFIX = "tfds:"


def own_folder(path: Path) -> Path | None:
    """Where the shards of a data set of ours are, as `wizard evolve` leaves them."""
    for folder in (path, path / "dataset"):
        if (folder / MANIFEST).is_file() and is_prepared(folder):
            return folder
    return None


def own_rows(folder: Path, *, source: str) -> Iterator[Row]:
    """The conversations of a data set of ours, as rows with `messages`.

    Raises:
      SourceError: a file is missing or not what its manifest says.
    """
    try:
        for number, record in enumerate(read_dataset(folder), start=1):
            messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
            yield Row(source, number, {"messages": messages})
    except UserError as error:
        raise SourceError(str(error)) from None


def is_prepared(folder: Path) -> bool:
    """Whether TFDS can read this folder."""
    return (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file()


def prepared_rows(folder: Path) -> Iterator[Row]:
    """The split `train` of the folder of one version of a data set.

    Raises:
      SourceError: a file is missing or damaged, its format needs TensorFlow, or there are splits and none is `train`.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        with _without_deprecations():
            builder = tfds.builder_from_directory(folder)
            builder.info.features  # noqa: B018  (read from features.json only now)
    except (ValueError, OSError, KeyError, AttributeError, ImportError, ParseError) as error:
        raise SourceError(f"{folder} can not be read as a data set of TFDS ({error}): prepare it again") from None
    yield from _rows(builder)


def named_rows(name: str) -> Iterator[Row]:
    """The split `train` of NAME, NAME:VERSION or NAME/CONFIG:VERSION in $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      SourceError: as `prepared_rows`, or there is none of that name.
    """
    yield from _rows(_named(name))


def is_named(name: str) -> bool:
    """Whether a data set of this name is prepared here."""
    try:
        _named(name)
    except SourceError:
        return False
    return True


def _named(name: str) -> Any:
    from tensorflow_datasets.core import read_only_builder, registered

    data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    wanted = name.removeprefix(PREFIX)
    try:
        with _without_deprecations():
            return read_only_builder.builder_from_files(wanted, data_dir=data_dir)
    except registered.DatasetNotFoundError:
        raise SourceError(
            f"seeds.path = {name!r}: no data set {wanted!r} is prepared in {data_dir}; prepare it with `tfds build`, "
            "or set TFDS_DATA_DIR to the folder that holds it (nothing is downloaded here)"
        ) from None
    except (ValueError, OSError) as error:
        raise SourceError(
            f"seeds.path = {name!r} can not be read ({str(error).splitlines()[0]}): "
            "write tfds:NAME, tfds:NAME:VERSION or tfds:NAME/CONFIG:VERSION"
        ) from None


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """TFDS 4.9 calls what protobuf has deprecated, which is nothing to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _rows(builder: Any) -> Iterator[Row]:
    info = builder.info
    source = f"{PREFIX}{info.full_name}"
    split = info.splits[chosen_split(list(info.splits), of=source, other="prepare one that has it")]
    if info.file_format.value not in FILE_FORMATS:
        raise SourceError(
            f"{source} is in files of the format {info.file_format.value}, which needs TensorFlow: prepare it as "
            f"{' or '.join(FILE_FORMATS)} (tfds build --file_format)"
        )
    number = 0
    try:
        for file in split.filepaths:
            for data in read_shard(Path(file), file_format=info.file_format.value):
                number += 1
                yield _row(data, info.features, number=number, source=source)
    except (UserError, OSError, RuntimeError) as error:  # ArrayRecord tells of damage in a RuntimeError
        raise SourceError(f"{source} is damaged ({error}): prepare it again") from None
    if number != split.num_examples:
        raise SourceError(f"{source} is damaged ({number} examples of {split.num_examples}): prepare it again")


def _row(data: bytes, features: Any, *, number: int, source: str) -> Row:
    from google.protobuf.message import DecodeError

    try:
        return Row(source, number, _plain(features.deserialize_example_np(data), features))
    except UnicodeDecodeError:
        return Row(source, number, fault="text that is not UTF-8")
    except (DecodeError, ValueError, KeyError, TypeError):
        return Row(source, number, fault="not an example of the features that features.json names")


def _plain(value: Any, feature: Any) -> Any:
    """What TFDS reads as bytes, arrays and, for a list of objects, an object of lists: as JSON would have it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        inner = getattr(feature, "feature", None)
        if inner is None:
            return {key: _plain(one, feature[key]) for key, one in value.items()}
        columns = [[_plain(one, inner[key]) for one in column] for key, column in value.items()]
        return [dict(zip(value, one, strict=True)) for one in zip(*columns, strict=True)]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one, getattr(feature, "feature", feature)) for one in value]
    return value

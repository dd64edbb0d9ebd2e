"""Rows of tables: Parquet files, Arrow files, and folders that Hugging Face `datasets.save_to_disk` wrote.

    saved/          dataset_info.json  state.json  data-00000-of-00002.arrow  ...
    saved/train/    the same of one split, where dataset_dict.json beside it names the splits

Read by pyarrow, which is imported here alone; `datasets` is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_gen.readers.rows import Row, SourceError, chosen_split

PARQUET = b"PAR1"
ARROW = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"

_ROWS_AT_ONCE = 256  # that are Python objects at the same time


def parquet_rows(file: Path, *, source: str) -> Iterator[Row]:
    """The rows of a Parquet file; memory holds what is decoded of one row group.

    Raises:
      SourceError: the file is damaged.
    """
    pyarrow = _pyarrow(file)
    from pyarrow import parquet

    try:
        # Without pre_buffer and with a buffer, a row group is read page by page and not at once.
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(source, number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def arrow_rows(file: Path, *, source: str, before: int = 0) -> Iterator[Row]:
    """The rows of an Arrow file, streaming or not, numbered from behind `before`.

    Raises:
      SourceError: the file is damaged.
    """
    pyarrow = _pyarrow(file)
    number = before
    try:
        with pyarrow.memory_map(str(file)) as mapped:
            for batch in _batches(mapped):
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                    for value in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                        number += 1
                        yield Row(source, number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    whole = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return whole or (folder / "dataset_dict.json").is_file()


def saved_rows(folder: Path) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote; of several splits, those of `train`.

    Raises:
      SourceError: there are several splits and none is `train`, or a file is missing or damaged.
    """
    source = folder.name
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json", "splits")
        split = chosen_split([str(one) for one in splits], of=str(folder), other=f"give the folder {folder}/SPLIT")
        folder, source = folder / split, f"{source}/{split}"
    number = 0
    for data_file in _read(folder / "state.json", "_data_files"):
        name = data_file.get("filename") if isinstance(data_file, dict) else None
        file = folder / f"{name}"
        if not file.is_file():
            raise SourceError(f"{file} is missing, which {folder}/state.json names: copy or save the data set again")
        for row in arrow_rows(file, source=source, before=number):
            number = row.number
            yield row


def _read(file: Path, key: str) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not found:
        raise SourceError(f"{file} is missing or damaged (no list under {key!r}): save the data set again")
    return found


def _batches(mapped: Any) -> Iterator[Any]:
    from pyarrow import ipc

    streaming = mapped.read(len(ARROW)) != ARROW
    mapped.seek(0)
    if streaming:
        with ipc.open_stream(mapped) as reader:
            yield from reader
    else:
        with ipc.open_file(mapped) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise SourceError(f"{file} is a table, and pyarrow, which reads it, is missing: pip install pyarrow") from None
    return pyarrow


def _damaged(file: Path, error: Exception) -> SourceError:
    return SourceError(f"{file} can not be read as a table ({error}): copy or make it again")

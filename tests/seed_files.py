"""Rows in every kind of file and folder that seeds are read from, written as their own tools write them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_gen.records import Record, Turn
from data_gen.shard_files import FileFormat, open_shard, shard_name
from data_gen.shards import write_dataset

Rows = Sequence[dict[str, Any]]

ALPACA: Rows = [
    {"instruction": f"Sort {n}.\u2028", "input": "3 1 2" if n % 2 else "", "output": f"é {n}\n"} for n in range(7)
]
SHAREGPT: Rows = [
    {
        "id": str(n),
        "conversations": [
            {"from": "human", "value": f"Hi {n}."},
            {"from": "gpt", "value": "Hello."},
            *[{"from": "human", "value": "Bye."}] * (n % 2),
        ],
    }
    for n in range(5)
]


def as_array(rows: Rows, folder: Path) -> Path:
    return _text(folder / "seeds.json", json.dumps(rows, ensure_ascii=False, indent=1))


def as_lines(rows: Rows, folder: Path) -> Path:
    return _text(folder / "seeds.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def as_objects(rows: Rows, folder: Path) -> Path:
    return _text(folder / "seeds.json", "\n".join(json.dumps(row, indent=2) for row in rows))


def as_packed_lines(rows: Rows, folder: Path) -> Path:
    return _packed(as_lines(rows, folder))


def as_packed_array(rows: Rows, folder: Path) -> Path:
    return _packed(as_array(rows, folder))


def as_folder(rows: Rows, folder: Path) -> Path:
    """Two files, with what a repository of data sets has beside them."""
    middle = len(rows) // 2
    (folder / "hub" / "data").mkdir(parents=True)
    as_array(rows[:middle], folder / "hub" / "data").rename(folder / "hub" / "data" / "train-00000-of-00002.json")
    as_lines(rows[middle:], folder / "hub" / "data").rename(folder / "hub" / "data" / "train-00001-of-00002.jsonl")
    _text(folder / "hub" / "README.md", "# Rows")
    _text(folder / "hub" / ".cache.json", "not for us")
    _text(folder / "hub" / "dataset_infos.json", "{}")
    return folder / "hub"


def as_glob(rows: Rows, folder: Path) -> Path:
    return as_folder(rows, folder) / "**" / "train-*"


def as_parquet(rows: Rows, folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(rows)), folder / "seeds.parquet", row_group_size=3)
    return folder / "seeds.parquet"


def as_arrow_stream(rows: Rows, folder: Path, *, name: str = "seeds.arrow") -> Path:
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / name


def as_arrow_file(rows: Rows, folder: Path) -> Path:
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_file(folder / "seeds.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / "seeds.arrow"


def as_saved(rows: Rows, folder: Path, *, name: str = "saved") -> Path:
    """What `datasets.Dataset.save_to_disk(..., num_shards=2)` leaves (its version 5.2)."""
    out = folder / name
    out.mkdir(parents=True)
    middle = len(rows) // 2
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for part, file in zip((rows[:middle], rows[middle:]), names, strict=True):
        as_arrow_stream(part, out, name=file)
    _text(out / "dataset_info.json", json.dumps({"citation": "", "description": "", "features": {}}))
    state = {"_data_files": [{"filename": file} for file in names], "_fingerprint": "ab", "_format_columns": None}
    _text(out / "state.json", json.dumps(state))
    return out


def as_saved_splits(rows: Rows, folder: Path) -> Path:
    """What `datasets.DatasetDict.save_to_disk` leaves."""
    as_saved(rows, folder / "splits", name="train")
    as_saved([dict(rows[0])] * 2, folder / "splits", name="test")
    _text(folder / "splits" / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    return folder / "splits"


def as_evolved(rows: Rows, folder: Path) -> Path:
    """The folder of `wizard evolve`."""
    from data_gen.readers.schemas import conversations_of

    found = [one.turns for row in rows for one in conversations_of(row)]
    records = [Record(id=f"{n}/0", lineage=str(n), turns=turns) for n, turns in enumerate(found)]
    assert all(isinstance(turn, Turn) for record in records for turn in record.turns)
    out = folder / "evolved" / "dataset"
    out.parent.mkdir()
    write_dataset(records, out, name="mine", count=len(records), records_per_shard=3, description="")
    return out.parent


def as_tfrecord(rows: Rows, folder: Path) -> Path:
    return as_prepared(rows, folder, file_format="tfrecord")


def as_array_record(rows: Rows, folder: Path) -> Path:
    return as_prepared(rows, folder, file_format="array_record")


def as_prepared(rows: Rows, folder: Path, *, file_format: FileFormat, split: str = "train") -> Path:
    """What TFDS leaves of a builder, without TensorFlow; texts, and lists of objects of texts."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            key: text if isinstance(value, str) else tfds.features.Sequence(dict.fromkeys(value[0], text))
            for key, value in rows[0].items()
        }
    )
    out = folder / "tfds" / "mine" / "1.0.0"
    out.mkdir(parents=True)
    serializer = ExampleSerializer(features.get_serialized_info())
    file = out / shard_name("mine", file_format=file_format, index=0, total=1).replace("train", split)
    with open_shard(file, file_format=file_format) as append:
        for row in rows:
            append(serializer.serialize_example(features.encode_example(row)))
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(rows)],
        num_bytes=file.stat().st_size,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="mine", data_dir=out, split=split, filetype_suffix=file_format
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=out, features=features, split_infos=[info], version="1.0.0", description="", check_data=False
    )
    return out


FORMS: dict[str, Callable[[Rows, Path], Path]] = {
    "array": as_array,
    "lines": as_lines,
    "objects": as_objects,
    "packed lines": as_packed_lines,
    "packed array": as_packed_array,
    "folder": as_folder,
    "glob": as_glob,
    "parquet": as_parquet,
    "arrow stream": as_arrow_stream,
    "arrow file": as_arrow_file,
    "saved by datasets": as_saved,
    "splits saved by datasets": as_saved_splits,
    "evolved": as_evolved,
    "tfds tfrecord": as_tfrecord,
    "tfds array_record": as_array_record,
}


def _text(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def _packed(file: Path) -> Path:
    out = file.with_name(f"{file.name}.gz")
    out.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return out

"""Anyone who has TFDS reads our shards; only its way through tf.data imports TensorFlow."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from test_shards import example, write

from data_gen.shard_files import FileFormat

READ = """
import json, sys
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
if sys.argv[2] == "tfrecord":
    source = tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False))
else:
    data_source = builder.as_data_source(split="train")
    source = [data_source[number] for number in range(len(data_source))]
rows = []
for row in source:
    turns, flags = row.pop("turns"), row.pop("flags")
    propensity = round(float(row.pop("propensity")), 6)
    row = {key: value.decode() if isinstance(value, bytes) else int(value) for key, value in row.items()}
    row["turns"] = [
        {"role": role.decode(), "content": content.decode()}
        for role, content in zip(turns["role"], turns["content"])
    ]
    row |= {"flags": [flag.decode() for flag in flags], "propensity": propensity}
    rows.append(row)
assert ("tensorflow" in sys.modules) == (sys.argv[2] == "tfrecord")
print(json.dumps([builder.info.splits["train"].num_examples, builder.info.description, rows]))
"""


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_plain_tfds_reads_what_was_written(tmp_path: pathlib.Path, file_format: FileFormat) -> None:
    records = [example(i) for i in range(10)]
    write(records, tmp_path / "dataset", file_format=file_format)
    command = [sys.executable, "-c", READ, str(tmp_path / "dataset"), file_format]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    count, description, rows = json.loads(done.stdout.splitlines()[-1])
    assert count == 10
    assert description == "for a test"
    assert rows == [json.loads(json.dumps(dataclasses.asdict(record))) for record in records]

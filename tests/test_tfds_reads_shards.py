"""Anyone who has TFDS reads our shards: the one test that imports TensorFlow."""

import dataclasses
import json
import pathlib
import subprocess
import sys

from test_shards import example, write

READ = """
import dataclasses, json, sys
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
rows = []
for row in tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False)):
    turns, flags = row.pop("turns"), row.pop("flags")
    propensity = round(float(row.pop("propensity")), 6)
    row = {key: value.decode() if isinstance(value, bytes) else int(value) for key, value in row.items()}
    row["turns"] = [
        {"role": role.decode(), "content": content.decode()}
        for role, content in zip(turns["role"], turns["content"])
    ]
    row |= {"flags": [flag.decode() for flag in flags], "propensity": propensity}
    rows.append(row)
assert "tensorflow" in sys.modules
print(json.dumps([builder.info.splits["train"].num_examples, builder.info.description, rows]))
"""


def test_plain_tfds_reads_what_was_written(tmp_path: pathlib.Path) -> None:
    records = [example(i) for i in range(10)]
    write(records, tmp_path / "dataset")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "dataset")], check=True, capture_output=True, text=True
    )
    count, description, rows = json.loads(done.stdout.splitlines()[-1])
    assert count == 10
    assert description == "for a test"
    assert rows == [json.loads(json.dumps(dataclasses.asdict(record))) for record in records]

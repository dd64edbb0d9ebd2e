"""Exported data sets are read by the real `datasets` library and by pyarrow, whole, with every lineage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from test_shards import example, write

from configs.folder import open_stage
from data_gen.card import FIELDS, Layout
from data_gen.config import EvolveConfig, Simulated, SimulatedSeeds
from data_gen.export_data import MARK, ExportError, FileFormat, export_data, to_row
from data_gen.records import Record, Turn
from data_gen.shards import ShardError, write_dataset

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)

# The library warns, and looks for a network, in ways of its own: it runs in a process of its own, once for all files.
LOAD = """
import json, sys
import datasets

datasets.disable_progress_bars()
told = {}
for file in sys.argv[1:]:
    folder, name = file.rsplit("/", 1)
    kind = {"train.jsonl": "json", "train.parquet": "parquet"}[name]
    by_folder = datasets.load_dataset(folder, split="train", cache_dir=folder + "-cache")
    if kind == "json":  # where the types of columns are guessed
        by_file = datasets.load_dataset(kind, data_files=file, split="train", cache_dir=folder + "-cache2")
        assert list(by_folder) == list(by_file)
    told[file] = [list(by_folder), {name: str(kind) for name, kind in by_folder.features.items()}]
print(json.dumps(told))
"""


def loaded(files: list[Path], *, home: Path) -> dict[Path, tuple[list[dict[str, Any]], dict[str, str]]]:
    """The rows of each file, and the type of each column, as `datasets` reads them."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", LOAD, *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return {Path(file): (rows, types) for file, (rows, types) in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.fixture
def records() -> list[Record]:
    """Ten, of which only the last two carry a flag, as is usual."""
    return [replace(example(i), flags=("duplicate", "contaminated") if i > 7 else ()) for i in range(10)]


def test_datasets_reads_every_row_and_column_of_every_format_and_layout(tmp_path: Path, records: list[Record]) -> None:
    write(records, tmp_path / "dataset")
    files = {
        export_data(
            tmp_path / "dataset", tmp_path / f"{file_format}-{layout}", file_format=file_format, layout=layout
        ): layout
        for file_format in FORMATS
        for layout in LAYOUTS
    }
    told = loaded(list(files), home=tmp_path / "hf")
    assert len(told) == 6
    for file, layout in files.items():
        rows, types = told[file]
        assert rows == [to_row(record, layout=layout) for record in records]
        assert {name: types[name] for name in ("propensity", "words_added", "flags")} == {
            "propensity": "Value('float64')",
            "words_added": "Value('int64')",
            "flags": "Value('string')",
        }


def test_layouts_are_those_that_trainers_read() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "So."))
    record = replace(example(1), turns=turns, flags=("a", "b"))
    lineage = {name: getattr(record, name) for name in FIELDS} | {"flags": "a,b"}
    assert to_row(record, layout="messages") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ],
        **lineage,
    }
    assert to_row(record, layout="sharegpt") == {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "So."},
        ],
        **lineage,
    }
    assert to_row(record, layout="alpaca") == {
        "instruction": "Why?",
        "input": "",
        "output": "So.",
        "system": "Be brief.",
        **lineage,
    }


def test_every_field_but_the_turns_is_a_column() -> None:
    assert list(FIELDS) == [name for name in vars(example(0)) if name != "turns"]


def test_a_conversation_that_alpaca_can_not_hold_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Hi!"), Turn("user", "Why?"), Turn("assistant", "So."))
    write([example(1), replace(example(2), turns=turns)], tmp_path / "dataset")
    with pytest.raises(ExportError, match=r"record s2/1: there are turns before .* messages or sharegpt"):
        export_data(tmp_path / "dataset", tmp_path / "out", file_format="jsonl", layout="alpaca")
    assert [file.name for file in tmp_path.iterdir()] == ["dataset"]
    assert export_data(tmp_path / "dataset", tmp_path / "out", file_format="jsonl", layout="sharegpt").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_export_again_changes_nothing_and_another_replaces_it(
    tmp_path: Path, records: list[Record], file_format: FileFormat
) -> None:
    write(records, tmp_path / "dataset")
    out = tmp_path / "out"
    first = export_data(tmp_path / "dataset", out, file_format=file_format, layout="messages")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}
    assert set(before) == {first.name, "README.md", MARK}
    export_data(tmp_path / "dataset", out, file_format=file_format, layout="messages")
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()} == before
    export_data(tmp_path / "dataset", out, file_format=file_format, layout="alpaca")
    assert (out / first.name).read_bytes() != before[first.name][0]
    write(records[:3], tmp_path / "dataset")
    export_data(tmp_path / "dataset", out, file_format="jsonl", layout="messages")
    assert len((out / "train.jsonl").read_text().splitlines()) == 3
    write(records, tmp_path / "dataset")
    again = export_data(tmp_path / "dataset", tmp_path / "again", file_format=file_format, layout="messages")
    assert again.read_bytes() == before[first.name][0]


def test_a_data_set_made_anew_is_exported_anew_though_its_card_is_the_same(
    tmp_path: Path, records: list[Record]
) -> None:
    write(records, tmp_path / "dataset")
    out = tmp_path / "out"
    file = export_data(tmp_path / "dataset", out, file_format="jsonl", layout="messages")
    card = (out / "README.md").read_text()
    last = replace(records[-1], turns=(*records[-1].turns[:-1], Turn("assistant", "Another answer.")))
    write([*records[:-1], last], tmp_path / "dataset")
    export_data(tmp_path / "dataset", out, file_format="jsonl", layout="messages")
    assert (out / "README.md").read_text() == card
    assert json.loads(file.read_text().splitlines()[-1])["messages"][-1]["content"] == "Another answer."


def test_nothing_else_is_overwritten(tmp_path: Path, records: list[Record]) -> None:
    write(records, tmp_path / "dataset")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(ExportError, match="was not exported here"):
            export_data(tmp_path / "dataset", out, file_format="jsonl", layout="messages")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_failure_half_way_leaves_what_was_there_and_the_next_start_succeeds(
    tmp_path: Path, records: list[Record]
) -> None:
    write(records, tmp_path / "dataset", per_shard=2)
    out = tmp_path / "out"
    file = export_data(tmp_path / "dataset", out, file_format="jsonl", layout="messages")
    before = file.read_bytes()

    def stopped(done: int, total: int, facts: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_data(tmp_path / "dataset", out, file_format="parquet", layout="messages", progress=stopped)
    assert file.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"dataset", "out"}
    assert export_data(tmp_path / "dataset", out, file_format="parquet", layout="messages").exists()
    assert not file.exists()


TOO_SMALL = """
import resource, signal, sys
from wizard_jax.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["export-data", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_may_grow_no_further_is_named_and_leaves_nothing(tmp_path: Path, file_format: FileFormat) -> None:
    rng = random.Random(0)
    long = [replace(example(i), turns=(Turn("user", rng.randbytes(20_000).hex()),)) for i in range(10)]
    write(long, tmp_path / "dataset")
    arguments = [str(tmp_path / "dataset"), "--out", str(tmp_path / "out"), "--file-format", file_format]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", TOO_SMALL, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"wizard: {tmp_path}/out/train.{file_format}: ")
    assert "File too large; mend that and start the same command again" in line
    assert [file.name for file in tmp_path.iterdir()] == ["dataset"]


def test_a_damaged_data_set_is_refused(tmp_path: Path, records: list[Record]) -> None:
    write(records, tmp_path / "dataset")
    shard = sorted((tmp_path / "dataset").glob("*.tfrecord*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match=shard.name):
        export_data(tmp_path / "dataset", tmp_path / "out", file_format="jsonl", layout="messages")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_memory_does_not_grow_with_the_data_set(
    tmp_path: Path, file_format: FileFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_gen.export_data._BYTES", 4_000_000)
    large = Turn("user", "x" * 1_000_000)
    stream = (replace(example(i), turns=(large, Turn("assistant", "y"))) for i in range(60))  # 60 MB
    write_dataset(stream, tmp_path / "dataset", name="big", count=60, records_per_shard=20, description="")
    tracemalloc.start()
    export_data(tmp_path / "dataset", tmp_path / "out", file_format=file_format, layout="messages")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    if file_format == "parquet":
        from pyarrow import parquet

        assert parquet.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 15


def test_the_card_beside_it_knows_the_run_and_where_the_file_is(tmp_path: Path, records: list[Record]) -> None:
    config = EvolveConfig(seeds=SimulatedSeeds(count=7), llm=Simulated(), rounds=3)
    with open_stage(tmp_path / "run", config, stage="evolve") as folder:
        write(records, tmp_path / "run" / "dataset")
        (tmp_path / "run" / "measures.json").write_text(json.dumps({"duplicates": {"pairs": 4}}))
        folder.complete({"seeds": 7, "records": 10, "by_round": {"1": 10}, "models": ["simulated-llm"], "usd": 1.5})
    for given in (tmp_path / "run", tmp_path / "run" / "dataset"):
        export_data(given, tmp_path / "out", file_format="parquet", layout="sharegpt")
        card = (tmp_path / "out" / "README.md").read_text()
        assert 'path: "train.parquet"' in card
        assert "7 tasks of the simulated world" in card
        assert "is a simulation" in card
        assert "- pairs: 4" in card
        assert "$1.50" in card
    write(records, tmp_path / "alone" / "dataset")
    export_data(tmp_path / "alone" / "dataset", tmp_path / "other", file_format="jsonl", layout="messages")
    card = (tmp_path / "other" / "README.md").read_text()
    assert "10 conversations, answered by `simulated`" in card
    assert "How it was made" not in card

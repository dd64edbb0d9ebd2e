"""Shards come back as they were written, and no damage to them goes unseen."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_gen import examples, shards
from data_gen.records import Record, Turn
from data_gen.shard_files import FILE_FORMATS, FileFormat, frames, open_shard, read_shard
from data_gen.shards import ShardError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
turn = st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=text)
small = st.integers(-(2**31), 2**31)
record = st.builds(
    Record,
    id=text,
    lineage=text,
    turns=st.lists(turn, max_size=4).map(tuple),
    parent=text,
    round=small,
    depth=small,
    operation=text,
    source=text,
    model=text,
    steps=small,
    evolver=text,
    propensity=st.floats(0, 1).map(lambda share: round(share, 6)),
    words_added=small,
    flags=st.lists(text, max_size=3).map(tuple),
)

each_format = pytest.mark.parametrize("file_format", FILE_FORMATS)


def example(number: int) -> Record:
    return Record(
        id=f"s{number}/1",
        lineage=f"s{number}",
        turns=(Turn("user", f"What is {number}?\nÄ\0"), Turn("assistant", f"It is {number}. " * 3)),
        parent=f"s{number}/0",
        round=1,
        depth=1,
        operation="deepening",
        source="here",
        model="simulated",
        steps=number,
        evolver="evolver",
        propensity=0.166667,
        words_added=-number,
        flags=("duplicate", "contaminated")[: number % 3],
    )


def write(
    records: list[Record], out: pathlib.Path, per_shard: int = 4, file_format: FileFormat = "tfrecord"
) -> shards.Manifest:
    return shards.write_dataset(
        records,
        out,
        name="evolved",
        count=len(records),
        records_per_shard=per_shard,
        description="for a test",
        file_format=file_format,
    )


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write([example(i) for i in range(10)], tmp_path / "dataset")
    return tmp_path / "dataset"


def shard(folder: pathlib.Path, index: int, file_format: FileFormat = "tfrecord") -> pathlib.Path:
    return folder / f"evolved-train.{file_format}-{index:05d}-of-00003"


@each_format
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(record, min_size=1, max_size=9))
def test_records_come_back_equal_and_in_order(
    tmp_path: pathlib.Path, records: list[Record], file_format: FileFormat
) -> None:
    manifest = write(records, tmp_path / "any", file_format=file_format)
    assert list(shards.read_dataset(tmp_path / "any")) == records
    assert manifest == shards.verify(tmp_path / "any")
    assert manifest.records == len(records)


def test_every_field_of_a_record_is_stored() -> None:
    names = set(examples.features().keys())
    assert names == {field.name for field in dataclasses.fields(Record)}


@settings(deadline=None)
@given(record)
def test_a_record_has_the_bytes_that_tfds_gives_it(record: Record) -> None:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = examples.features()
    values = dataclasses.asdict(record) | {"turns": [vars(turn) for turn in record.turns], "flags": list(record.flags)}
    message = ExampleSerializer(features.get_serialized_info()).get_tf_example(features.encode_example(values))
    assert examples.to_example(record) == message.SerializeToString(deterministic=True)


@each_format
def test_the_same_records_give_the_same_bytes_in_another_process(
    tmp_path: pathlib.Path, file_format: FileFormat
) -> None:
    write([example(i) for i in range(10)], tmp_path / "here", file_format=file_format)
    code = (
        "import pathlib, sys; sys.path[:0] = ['.', 'tests']; import test_shards as t;"
        "t.write([t.example(i) for i in range(10)], pathlib.Path(sys.argv[1]), file_format=sys.argv[2])"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), file_format], check=True, cwd=root)
    names = sorted(file.name for file in (tmp_path / "here").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "there").iterdir())
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@each_format
def test_neither_tensorflow_nor_jax_is_imported(tmp_path: pathlib.Path, file_format: FileFormat) -> None:
    folder = tmp_path / "dataset"
    write([example(i) for i in range(10)], folder, file_format=file_format)
    code = (
        "import pathlib, sys; from data_gen import shards; assert 'tensorflow_datasets' not in sys.modules;"
        "list(shards.read_dataset(pathlib.Path(sys.argv[1])));"
        "bad = {'tensorflow', 'jax'} & set(sys.modules); assert not bad, bad"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(folder)], check=True, cwd=root)


@each_format
def test_writing_and_reading_hold_few_records_in_memory(tmp_path: pathlib.Path, file_format: FileFormat) -> None:
    large = Turn("user", "x" * 100_000)
    write([example(0)], tmp_path / "warm", file_format=file_format)

    def stream() -> object:
        for i in range(200):  # 20 MB in all
            yield dataclasses.replace(example(i), turns=(large,))

    tracemalloc.start()
    kind = {"file_format": file_format, "description": ""}
    shards.write_dataset(stream(), tmp_path / "big", name="big", count=200, records_per_shard=100, **kind)
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 4_000_000
    tracemalloc.reset_peak()
    assert sum(1 for _ in shards.read_dataset(tmp_path / "big")) == 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000  # 64 records of an ArrayRecord file are read at once


@each_format
def test_a_shard_that_is_damaged_in_any_byte_is_found(tmp_path: pathlib.Path, file_format: FileFormat) -> None:
    folder = tmp_path / "dataset"
    write([example(i) for i in range(10)], folder, file_format=file_format)
    path = shard(folder, 1, file_format)
    whole = path.read_bytes()
    draw = random.Random(3)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        for content in (bytes(damaged), whole[: draw.randrange(len(whole))], whole + b"\0" * 8):
            path.write_bytes(content)
            with pytest.raises(ShardError, match=path.name):
                next(shards.read_dataset(folder))
    path.write_bytes(whole)
    assert len(list(shards.read_dataset(folder))) == 10


@each_format
def test_a_file_of_records_is_read_up_to_its_damage_and_not_beyond(
    tmp_path: pathlib.Path, file_format: FileFormat
) -> None:
    file = tmp_path / "shard"
    texts = [random.Random(i).randbytes(3000) for i in range(200)]
    with open_shard(file, file_format=file_format) as append:
        for data in texts:
            append(data)
    assert list(read_shard(file, file_format=file_format)) == texts
    whole = bytearray(file.read_bytes())
    for place in range(100, len(whole), len(whole) // 20):
        damaged = bytearray(whole)
        damaged[place : place + 8] = b"\xa5" * 8
        file.write_bytes(damaged)
        read: list[bytes] = []
        damage = ""
        try:
            read.extend(read_shard(file, file_format=file_format))
        except ShardError as error:
            damage = str(error)
        assert read == texts[: len(read)]
        # An ArrayRecord file is padded to blocks, and what is changed there only `verify` finds.
        assert str(file) in damage or (len(read), file_format) == (200, "array_record")


@pytest.mark.parametrize("file", ["shard", "dataset_info.json", "features.json", "manifest.json"])
def test_any_flipped_bit_is_found(folder: pathlib.Path, file: str) -> None:
    path = shard(folder, 1) if file == "shard" else folder / file
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        bit = draw.randrange(len(whole) * 8)
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=path.name):
            shards.verify(folder)
    path.write_bytes(whole)
    shards.verify(folder)


def test_any_flipped_bit_of_a_shard_is_found_at_its_record(folder: pathlib.Path) -> None:
    path = shard(folder, 1)
    whole = path.read_bytes()
    with path.open("rb") as stream:
        offsets = [offset for offset, _ in frames(stream, file=path)]
    draw = random.Random(1)
    for _ in range(150):
        byte = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        number = max(i for i, offset in enumerate(offsets) if offset <= byte)
        with pytest.raises(ShardError, match=f"record {number} at byte {offsets[number]}:"):
            next(shards.read_dataset(folder))


@pytest.mark.parametrize("file", ["shard", "dataset_info.json", "features.json", "manifest.json"])
def test_any_cut_is_found(folder: pathlib.Path, file: str) -> None:
    path = shard(folder, 1) if file == "shard" else folder / file
    whole = path.read_bytes()
    draw = random.Random(2)
    for length in [0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(100))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=path.name):
            shards.verify(folder)


def test_a_cut_between_two_records_says_where_it_ends(folder: pathlib.Path) -> None:
    path = shard(folder, 0)
    with path.open("rb") as stream:
        offsets = [offset for offset, _ in frames(stream, file=path)]
    os.truncate(path, offsets[2])
    with pytest.raises(ShardError, match=rf"ends after record 1, at byte {offsets[2]}: 2 records of 4"):
        shards.verify(folder)


def test_bytes_after_the_last_record_are_found(folder: pathlib.Path) -> None:
    with shard(folder, 0).open("ab") as stream:
        stream.write(b"\0" * 40)
    with pytest.raises(ShardError, match="record 4 at byte"):
        shards.verify(folder)


def test_a_missing_shard_is_named(folder: pathlib.Path) -> None:
    shard(folder, 1).unlink()
    with pytest.raises(ShardError, match=r"lacks evolved-train\.tfrecord-00001-of-00003"):
        shards.verify(folder)


def test_swapped_shards_are_named(folder: pathlib.Path) -> None:
    first, second = shard(folder, 0).read_bytes(), shard(folder, 1).read_bytes()
    shard(folder, 0).write_bytes(second)
    shard(folder, 1).write_bytes(first)
    with pytest.raises(ShardError, match=r"00000-of-00003 holds what .*00001-of-00003 should.* swapped"):
        shards.verify(folder)


def test_a_duplicated_shard_is_named(folder: pathlib.Path) -> None:
    shutil.copy(shard(folder, 0), shard(folder, 1))
    with pytest.raises(ShardError, match=r"00001-of-00003 holds what .*00000-of-00003 .* here twice"):
        shards.verify(folder)


def test_a_shard_too_many_is_named(folder: pathlib.Path) -> None:
    shutil.copy(shard(folder, 0), folder / "evolved-train.tfrecord-00003-of-00004")
    with pytest.raises(ShardError, match=r"holds evolved-train\.tfrecord-00003-of-00004, which the manifest"):
        shards.verify(folder)


def test_a_shard_of_another_data_set_is_found(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write([example(i + 50) for i in range(10)], tmp_path / "other")
    shutil.copy(shard(tmp_path / "other", 0), shard(folder, 0))
    with pytest.raises(ShardError, match="holds other records"):
        shards.verify(folder)


def test_the_folder_of_an_evolve_run_is_read_too(folder: pathlib.Path) -> None:
    assert len(list(shards.read_dataset(folder.parent))) == 10


def test_what_is_no_finished_data_set_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ShardError, match="no finished data set"):
        next(shards.read_dataset(tmp_path))
    with pytest.raises(ShardError, match="there is no folder"):
        next(shards.read_dataset(tmp_path / "nowhere"))


def test_an_empty_data_set_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ShardError, match="not one record"):
        write([], tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("count", [2, 9])
def test_another_number_of_records_than_announced_leaves_nothing(tmp_path: pathlib.Path, count: int) -> None:
    with pytest.raises(ShardError, match=f"{count} records were announced .* 5 came"):
        shards.write_dataset(
            (example(i) for i in range(5)),
            tmp_path / "d",
            name="d",
            count=count,
            records_per_shard=2,
            description="",
        )
    assert not (tmp_path / "d").exists()


def test_a_data_set_of_an_older_version_is_named_so(folder: pathlib.Path) -> None:
    manifest = folder / "manifest.json"
    told = json.loads(manifest.read_text())
    fields = [name for name in told["fields"] if name != "propensity"]
    manifest.write_text(json.dumps({**told, "format": 1, "fields": fields}))
    with pytest.raises(ShardError, match="another version of this program"):
        next(shards.read_dataset(folder))


def test_a_data_set_is_replaced_but_nothing_else_is(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write([example(7)], folder)
    assert list(shards.read_dataset(folder)) == [example(7)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match="no data set of ours"):
        write([example(7)], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_failure_while_writing_leaves_what_was_there(folder: pathlib.Path) -> None:
    def broken() -> object:
        yield example(1)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        shards.write_dataset(broken(), folder, name="d", count=2, records_per_shard=2, description="")
    assert len(list(shards.read_dataset(folder))) == 10


@pytest.mark.parametrize("name", ["", "Evolved", "a-b", "1a", "a/b"])
def test_a_name_that_tfds_cannot_use_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ShardError, match="cannot name a data set"):
        shards.write_dataset([example(0)], tmp_path / "d", name=name, count=1, records_per_shard=1, description="")


def test_text_that_is_no_unicode_is_refused_with_its_record(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ShardError, match="'s3/1' holds text that is not Unicode"):
        write([dataclasses.replace(example(3), source="\ud800")], tmp_path / "d")

"""The same rows are the same seeds in whatever they come, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import seed_files
from seed_files import ALPACA, FORMS, SHAREGPT, Rows

from data_gen.config import SeedFile
from data_gen.sources import SourceError, are_there, check_seeds, iter_seeds

SCHEMAS: dict[str, Rows] = {"alpaca": ALPACA, "sharegpt": SHAREGPT}


def refusal_of(path: Path | str) -> str:
    with pytest.raises(SourceError) as caught:
        check_seeds(SeedFile(path=str(path)))
    with pytest.raises(SourceError):
        list(iter_seeds(SeedFile(path=str(path))))
    return str(caught.value)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_are_the_same_seeds_in_every_container(form: str, schema: str, tmp_path: Path) -> None:
    rows = SCHEMAS[schema]
    seeds = SeedFile(path=str(FORMS[form](rows, tmp_path)))
    (tmp_path / "plain").mkdir()
    plain = SeedFile(path=str(seed_files.as_lines(rows, tmp_path / "plain")))
    found, expected = check_seeds(seeds), check_seeds(plain)
    assert (found.count, found.sha256) == (expected.count, expected.sha256)
    assert found.rows == len(rows)
    records = list(iter_seeds(seeds))
    assert [record.turns for record in records] == [record.turns for record in iter_seeds(plain)]
    assert {record.source for record in records} == set(found.sources)
    assert are_there(seeds)


@pytest.mark.parametrize(
    ("form", "sources"),
    [
        ("lines", ["seeds.jsonl"]),
        ("folder", ["data/train-00000-of-00002.json", "data/train-00001-of-00002.jsonl"]),
        ("glob", ["train-00000-of-00002.json", "train-00001-of-00002.jsonl"]),
        ("saved by datasets", ["saved"]),
        ("splits saved by datasets", ["splits/train"]),
        ("evolved", ["evolved"]),
        ("tfds tfrecord", ["tfds:mine/1.0.0"]),
    ],
)
def test_a_record_names_the_file_or_data_set_it_came_from(form: str, sources: list[str], tmp_path: Path) -> None:
    records = iter_seeds(SeedFile(path=str(FORMS[form](ALPACA, tmp_path))))
    assert list(dict.fromkeys(record.source for record in records)) == sources


def test_a_data_set_of_tfds_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = seed_files.as_tfrecord(ALPACA, tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for name in ("tfds:mine", "tfds:mine:1.0.0"):
        assert check_seeds(SeedFile(path=name)).sha256 == check_seeds(SeedFile(path=str(folder))).sha256
        assert are_there(SeedFile(path=name))
    assert not are_there(SeedFile(path="tfds:other"))
    message = refusal_of("tfds:other")
    assert "no data set 'other' is prepared in" in message
    assert "TFDS_DATA_DIR" in message
    assert "tfds:NAME/CONFIG:VERSION" in refusal_of("tfds:../mine")


def test_no_container_needs_tensorflow_or_datasets(tmp_path: Path) -> None:
    paths = []
    for form, write in FORMS.items():
        (tmp_path / form).mkdir()
        paths.append(str(write(ALPACA, tmp_path / form)))
    code = (
        "import sys\nfrom data_gen.config import SeedFile\nfrom data_gen.sources import check_seeds\n"
        "assert not {'pyarrow', 'tensorflow_datasets'} & set(sys.modules)\n"
        f"for path in {paths!r}: check_seeds(SeedFile(path=path))\n"
        "assert not {'tensorflow', 'datasets', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    "form",
    [
        "lines",
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("packed array", "folder", "parquet", "saved by datasets")
        ),
    ],
)
def test_memory_does_not_grow_with_the_number_of_seeds(form: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        rows = [{"instruction": f"{n} " + "x" * 300, "input": "", "output": "y" * 100} for n in range(count)]
        (tmp_path / str(count)).mkdir()
        seeds = SeedFile(path=str(FORMS[form](rows, tmp_path / str(count))))
        del rows
        tracemalloc.start()
        assert sum(1 for _ in iter_seeds(seeds)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is imported on the way
    # 100 kB come and go with what Python keeps for later; the 19,000 rows more are 10 MB.
    assert peak(20_000) < 1.5 * peak(1000) + 100_000


# --- what is wrong


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("lines", "objects", "glob")])
def test_a_file_that_was_cut_off_is_refused(form: str, tmp_path: Path) -> None:
    path = FORMS[form](ALPACA, tmp_path)
    file = max((file for file in [path, *path.rglob("*")] if file.is_file()), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 - 3])
    message = refusal_of(path)
    assert file.name in message or path.name in message or "tfds:mine" in message
    assert any(word in message for word in ("copy", "make", "prepare", "mend"))


@pytest.mark.parametrize("form", ["array", "lines", "packed lines", "packed array", "folder", "glob"])
def test_a_container_without_rows_is_refused(form: str, tmp_path: Path) -> None:
    assert "is empty" in refusal_of(FORMS[form]([], tmp_path))


def test_tables_without_rows_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"instruction": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "is empty" in refusal_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("path", ["gone.json", "gone/*.json", "gone/", "a\0b", "a\0*", ""])
def test_what_is_not_there_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path == "" or not are_there(SeedFile(path=path))
    assert "seeds.path must name a file, a folder, a glob" in refusal_of(path)


def test_a_folder_with_test_data_beside_other_data_is_not_read_whole(tmp_path: Path) -> None:
    folder = seed_files.as_folder(ALPACA, tmp_path)
    shutil.copy(folder / "data" / "train-00000-of-00002.json", folder / "data" / "test_sft-00000-of-00001.json")
    message = refusal_of(folder)
    assert "data/test_sft-00000-of-00001.json" in message
    assert "say which are meant" in message
    assert check_seeds(SeedFile(path=f"{folder}/data/train*")).count == len(ALPACA)
    assert check_seeds(SeedFile(path=f"{folder}/data/test*")).count == 3


def test_files_are_read_in_sorted_order_and_faults_name_their_file(tmp_path: Path) -> None:
    for name, text in {"b": "Two.", "a": "One.", "c": "Three."}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    assert [one.instruction for one in iter_seeds(SeedFile(path=str(tmp_path)))] == ["One.", "Two.", "Three."]
    for name in "ac":
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"prompt": ""}\n{"prompt": ""}\n')
    message = refusal_of(tmp_path)
    assert "4 of 7 rows" in message
    assert "a.jsonl rows 2, 3; c.jsonl rows 2, 3: the instruction is empty" in message


def test_splits_without_train_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = seed_files.as_saved_splits(ALPACA, tmp_path)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["a", "b"]}))
    assert f"holds the splits a, b, and none is 'train': give the folder {folder}/SPLIT" in refusal_of(folder)
    assert check_seeds(SeedFile(path=str(folder / "test"))).count == 2
    assert check_seeds(
        SeedFile(path=str(seed_files.as_prepared(ALPACA, tmp_path, file_format="tfrecord", split="all")))
    ).count == len(ALPACA), "the only split is taken"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("state.json", "{"),
        ("state.json", '{"_data_files": []}'),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}'),
        ("state.json", '{"_data_files": [7]}'),
        ("state.json", '{"_data_files": [{}]}'),
    ],
)
def test_a_saved_folder_that_is_not_whole_is_refused(file: str, text: str, tmp_path: Path) -> None:
    folder = seed_files.as_saved(ALPACA, tmp_path)
    (folder / file).write_text(text)
    assert "again" in refusal_of(folder)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"pythonClassName": "os.system"}', '{"fileFormat": "bagz"}'])
def test_metadata_of_tfds_that_is_damaged_is_refused(file: str, text: str, tmp_path: Path) -> None:
    folder = seed_files.as_tfrecord(ALPACA, tmp_path)
    (folder / file).write_text(text)
    assert "can not be read as a data set of TFDS" in refusal_of(folder)


def test_a_format_that_needs_tensorflow_is_refused(tmp_path: Path) -> None:
    folder = seed_files.as_tfrecord(ALPACA, tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    assert "needs TensorFlow" in refusal_of(folder)


def test_text_of_a_data_set_that_is_not_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": "a"}, {"instruction": b"\xff"}, {"instruction": "c"}]
    assert "row 2: text that is not UTF-8" in refusal_of(seed_files.as_tfrecord(rows, tmp_path))


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = seed_files.as_parquet(ALPACA, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal_of(path)

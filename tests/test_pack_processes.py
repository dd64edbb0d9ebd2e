"""Packing in several processes, killed and gone on with, gives what one process gives."""

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable

import pytest
from packed_rows import config, record, rows_of, small_tokenizer, write

from data_gen.shard_files import FileFormat
from data_gen.shards import read_dataset, read_manifest, write_dataset
from data_gen.stretches import cut
from wizard_jax.data import packing
from wizard_jax.data.config import DataError
from wizard_jax.data.packing import PackedFolder, Sizes, pack
from wizard_jax.data.workers import in_order
from wizard_jax.tokenizer import Tokenizer

SMALL = Sizes(chunk_records=16, file_rows=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("t"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """400 records in shards of 17."""
    return write([record(i) for i in range(400)], tmp_path_factory.mktemp("d") / "dataset")


def content(packed: PackedFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in packed.path.iterdir()}


def test_the_number_of_processes_has_no_influence_on_any_byte(
    dataset: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    alone, together = (
        pack(config(dataset, processes=processes), tokenizer, cache_dir=tmp_path / str(processes), sizes=SMALL)
        for processes in (1, 3)
    )
    assert content(alone) == content(together)
    assert len(alone.files) > 10
    whole = pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path / "whole")
    assert len(whole.files) == 1
    assert [row.to_bytes() for row in rows_of(whole)] == [row.to_bytes() for row in rows_of(alone)]


def _pack_slowly(path: str, model: str, cache: str, processes: int) -> None:
    pack(
        config(pathlib.Path(path), processes=processes),
        Tokenizer(model),
        cache_dir=pathlib.Path(cache),
        progress=lambda _done, _total, _facts: time.sleep(0.05),
        sizes=SMALL,
    )


def killed(arguments: tuple[object, ...], *, when: Callable[[], bool]) -> list[int]:
    """Starts a process that packs, and kills it -9 as soon as it may; returns the processes that it had started."""
    process = multiprocessing.get_context("spawn").Process(target=_pack_slowly, args=arguments)
    process.start()
    deadline = time.monotonic() + 60
    while not when():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return [int(child) for child in children]


def stamps(folder: pathlib.Path, pattern: str) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob(pattern)}


@pytest.mark.parametrize(("processes", "stage"), [(2, "chunks"), (1, "rows")])
def test_a_killed_packing_goes_on_from_what_is_finished(
    dataset: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path, processes: int, stage: str
) -> None:
    expected = pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path / "expected", sizes=SMALL)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    cache = tmp_path / "cache"
    patterns = {"chunks": ".*.encoded/*.npz", "rows": ".*.partial/*.arrayrecord.json"}
    children = killed(
        (str(dataset), str(tmp_path / "tokenizer.model"), str(cache), processes),
        when=lambda: len(list(cache.glob(patterns[stage]))) >= 4,
    )
    (encoded,) = cache.glob(".*.encoded")
    before = stamps(encoded, "*.npz") | stamps(encoded, "*.words")
    rows_before = {name: stamp for one in cache.glob(".*.partial") for name, stamp in stamps(one, "*record").items()}
    assert bool(rows_before) == (stage == "rows")
    ends = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < ends, "processes outlive the one that started them"
        time.sleep(0.01)
    after: dict[str, tuple[int, int]] = {}

    def watch(done: int, total: int, facts: object) -> None:
        if facts == {"doing": "tokenize"} and done == total:
            after.update(stamps(encoded, "*"))

    again = pack(config(dataset, processes=1), tokenizer, cache_dir=cache, progress=watch, sizes=SMALL)
    assert content(again) == content(expected)
    assert before.items() <= after.items(), "a finished chunk was encoded again"
    assert rows_before.items() <= stamps(again.path, "*record").items(), "a finished file of rows was written again"
    assert not list(cache.glob(".*")), "token ids are left behind"


@pytest.mark.parametrize("dies_in", ["rmtree", "put_in_place"])
def test_what_only_lacked_its_name_is_not_made_again_and_leaves_nothing_behind(
    dataset: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing.shards if dies_in == "put_in_place" else packing.shutil, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path, sizes=SMALL)
    (partial,) = tmp_path.glob(".*.partial")
    before = stamps(partial, "*")
    again = pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path, sizes=SMALL)
    assert stamps(again.path, "*") == before
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock") == [again.path.name]


def test_a_damaged_chunk_is_made_again(dataset: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    expected = pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path / "expected", sizes=SMALL)
    too_many = config(dataset, processes=1, max_lost_share=-1.0)
    with pytest.raises(DataError, match="max_lost_share"):
        pack(too_many, tokenizer, cache_dir=tmp_path / "cache", sizes=SMALL)
    files = sorted((tmp_path / "cache").glob(".*.encoded/*"))
    flipped = bytearray(files[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    files[0].write_bytes(flipped)
    files[3].write_bytes(files[3].read_bytes()[:-5])
    files[6].unlink()
    again = pack(config(dataset, processes=1), tokenizer, cache_dir=tmp_path / "cache", sizes=SMALL)
    assert content(again) == content(expected)


def test_what_was_encoded_for_a_refused_packing_serves_the_next(
    dataset: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(DataError, match=r"longer than data\.seq_len = 40"):
        pack(config(dataset, processes=1, seq_len=40), tokenizer, cache_dir=tmp_path, sizes=SMALL)
    (encoded,) = tmp_path.glob(".*.encoded")
    before = stamps(encoded, "*")
    after: dict[str, tuple[int, int]] = {}
    allowed = config(dataset, processes=1, seq_len=40, truncation="truncate", max_lost_share=1.0)
    pack(
        allowed,
        tokenizer,
        cache_dir=tmp_path,
        progress=lambda done, total, _: after.update(stamps(encoded, "*")) if done == total else None,
        sizes=SMALL,
    )
    assert before
    assert before == after


def double_or_die(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 50:
        raise DataError("fifty")
    return 2 * number


def test_results_come_in_order_and_errors_as_they_were_raised() -> None:
    assert list(in_order(double_or_die, [4, 3, 2, 1] * 5, processes=2)) == [8, 6, 4, 2] * 5
    with pytest.raises(DataError, match="fifty"):
        list(in_order(double_or_die, [1, 50, 2], processes=2))


def test_a_process_that_dies_is_told_of() -> None:
    with pytest.raises(DataError, match=r"one of 2 processes that prepare data was killed.*data\.processes"):
        list(in_order(double_or_die, [1, 2, 5, 4], processes=2))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("size", [1, 7, 17, 40, 1000])
def test_chunks_hold_every_record_once_in_order(tmp_path: pathlib.Path, file_format: FileFormat, size: int) -> None:
    from data_gen.examples import from_example

    records = [record(i) for i in range(60)]
    folder = tmp_path / "dataset"
    write_dataset(records, folder, name="d", count=60, records_per_shard=25, description="t", file_format=file_format)
    chunks = cut(folder, read_manifest(folder), records_per_chunk=size)
    found = [[from_example(data) for stretch in chunk for data in stretch.read()] for chunk in chunks]
    assert [one for chunk in found for one in chunk] == list(read_dataset(folder)) == records
    assert {len(chunk) for chunk in found[:-1]} <= {size}
    assert [sum(stretch.count for stretch in chunk) for chunk in chunks] == [len(chunk) for chunk in found]


def test_processes_is_an_operational_setting_that_is_checked(dataset: pathlib.Path) -> None:
    from configs.loader import identity

    assert identity(config(dataset)) == identity(config(dataset, processes=7))
    with pytest.raises(DataError, match="processes is 0"):
        dataclasses.replace(config(dataset), processes=0)

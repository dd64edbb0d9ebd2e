"""A batch is what its docstring shows, and depends on the seed and the step alone."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import write_rows

from wizard_jax.data import pipeline
from wizard_jax.data.config import DataError
from wizard_jax.data.packing import PackedFolder
from wizard_jax.data.pipeline import Batch, HeldOutBatch, ahead, batches, held_out_batches, to_batch
from wizard_jax.data.row_files import RowReader
from wizard_jax.data.rows import Row
from wizard_jax.data.steps import StepRows

L = 32


def example_in_the_docstring() -> dict[str, list[str]]:
    assert pipeline.__doc__
    rows = re.findall(r"^    (\w+) +((?:\w ?){9})$", pipeline.__doc__, re.MULTILINE)
    return {name: values.split() for name, values in rows}


def test_the_docstring_shows_what_happens() -> None:
    shown = example_in_the_docstring()
    assert set(shown) == set(Batch._fields)
    ids = {letter: number for number, letter in enumerate("0abcxABCXY")}
    tokens = [letter for letter in shown["tokens"] if letter != "0"]
    row = Row(
        tokens=np.array([ids[letter] for letter in tokens], np.int32),
        trained=np.array([letter in "ABCXY" for letter in tokens]),
        lengths=np.array([5, 3], np.int32),
        groups=np.array([0, 1], np.int32),
    )
    batch = to_batch([Row.from_bytes(row.to_bytes())], seq_len=9)
    for name, values in shown.items():
        expected = [ids[v] if name in ("tokens", "targets") else int(v) for v in values]
        assert getattr(batch, name).tolist() == [expected], name
    assert batch.loss_weights.dtype == np.float32
    assert {getattr(batch, name).dtype for name in shown if name != "loss_weights"} == {np.dtype(np.int32)}


def slow_reference(row: Row, seq_len: int) -> dict[str, list[int]]:
    """One token at a time."""
    columns: dict[str, list[int]] = {name: [0] * seq_len for name in Batch._fields}
    place = 0
    for segment, length in enumerate(row.lengths.tolist(), start=1):
        for position in range(length):
            columns["tokens"][place] = int(row.tokens[place])
            columns["segment_ids"][place] = segment
            columns["positions"][place] = position
            if position + 1 < length:
                columns["targets"][place] = int(row.tokens[place + 1])
                columns["loss_weights"][place] = int(row.trained[place + 1])
            place += 1
    return columns


@st.composite
def rows(draw: st.DrawFn) -> Row:
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    size = sum(lengths)
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size))
    trained = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    groups = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    return Row(np.array(ids, np.int32), np.array(trained), np.array(lengths, np.int32), np.array(groups, np.int32))


@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=3))
def test_batches_equal_a_slow_reference(rows: list[Row]) -> None:
    batch = to_batch([Row.from_bytes(row.to_bytes()) for row in rows], seq_len=L)
    for index, row in enumerate(rows):
        for name, expected in slow_reference(row, L).items():
            assert getattr(batch, name)[index].tolist() == expected, name


# --- the order


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedFolder:
    """30 rows in three files; the first token of each is its number + 1."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(30):
        lengths = draw.integers(2, 10, 3).astype(np.int32)
        tokens = draw.integers(1, 1000, lengths.sum()).astype(np.int32)
        tokens[0] = number + 1
        groups = np.array([0, 1, number % 2], np.int32)
        rows.append(Row(tokens=tokens, trained=tokens % 2 == 0, lengths=lengths, groups=groups))
    return write_rows(rows, tmp_path_factory.mktemp("packed"), seq_len=L, file_rows=11)


def whole_rows(count: int) -> StepRows:
    return StepRows(Fraction(count), count)


def take(packed: PackedFolder, count: int, **arguments: Any) -> list[Batch]:
    found = []
    for batch in batches(packed, **arguments):
        found.append(batch)
        if len(found) == count:
            break
    return found


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_every_epoch_sees_every_row_once_in_another_order(packed: PackedFolder) -> None:
    found = take(packed, 15, rows=whole_rows(6), seed=0)  # three epochs
    numbers = [int(batch.tokens[i, 0]) for batch in found for i in range(6)]
    epochs = [numbers[0:30], numbers[30:60], numbers[60:90]]
    assert all(sorted(epoch) == list(range(1, 31)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_may_span_epochs_and_be_larger_than_one(packed: PackedFolder) -> None:
    found = take(packed, 3, rows=whole_rows(40), seed=0)
    numbers = [int(batch.tokens[i, 0]) for batch in found for i in range(40)]
    assert all(sorted(numbers[i : i + 30]) == list(range(1, 31)) for i in range(0, 120, 30))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("per_step", [Fraction(8), Fraction(9, 2), Fraction(40)], ids=str)
def test_epochs_are_exact_for_any_batch_and_any_number_of_processes(
    packed: PackedFolder, per_step: Fraction, processes: int
) -> None:
    """30 rows: epochs end within steps, and one step may hold more than an epoch."""
    epochs = 4
    rows = StepRows(per_step, -(-per_step // 4) * 4, end=epochs * 30)
    share = rows.batch_rows // processes
    parts = [
        take(packed, rows.steps, rows=rows, seed=1, positions=[slice(index * share, (index + 1) * share)])
        for index in range(processes)
    ]
    steps = joined(parts)
    numbers = [int(row[0]) for batch in steps for row in batch.tokens if row.any()]
    for epoch in range(epochs):
        assert sorted(numbers[30 * epoch : 30 * (epoch + 1)]) == list(range(1, 31))
    assert len(numbers) == 30 * epochs


@pytest.mark.parametrize("start", [1, 4, 5, 17])
def test_starting_anywhere_goes_on_with_the_same_batches(packed: PackedFolder, start: int) -> None:
    whole = take(packed, 20, rows=whole_rows(6), seed=3)
    assert same(take(packed, 20 - start, rows=whole_rows(6), seed=3, start_step=start), whole[start:])


def joined(parts: list[list[Batch]]) -> list[Batch]:
    return [Batch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True))) for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_together_read_what_one_would(packed: PackedFolder, count: int) -> None:
    whole = take(packed, 8, rows=whole_rows(6), seed=3)
    share = 6 // count
    held = [[slice(share * index, share * (index + 1))] for index in range(count)]
    parts = [take(packed, 8, rows=whole_rows(6), seed=3, positions=positions) for positions in held]
    assert same(joined(parts), whole)


def test_a_process_gets_the_rows_at_the_positions_that_it_asks_for(packed: PackedFolder) -> None:
    rows = StepRows(Fraction(9, 2), 6)  # the last row of every batch is empty, and in every other one the one before
    whole = take(packed, 8, rows=rows, seed=3)
    picked = take(packed, 8, rows=rows, seed=3, positions=[slice(4, 6), slice(0, 1)])
    assert same(picked, [Batch(*(array[[4, 5, 0]] for array in batch)) for batch in whole])
    assert not any(batch.segment_ids[1].any() for batch in picked)


def test_threads_and_prefetch_have_no_influence(packed: PackedFolder) -> None:
    whole = take(packed, 12, rows=whole_rows(4), seed=3)
    assert same(take(packed, 12, rows=whole_rows(4), seed=3, threads=8, prefetch=16), whole)
    assert same(take(packed, 12, rows=whole_rows(4), seed=3, threads=1, prefetch=1), whole)


def test_another_seed_gives_another_order(packed: PackedFolder) -> None:
    assert not same(take(packed, 2, rows=whole_rows(6), seed=0), take(packed, 2, rows=whole_rows(6), seed=1))


def test_an_iterator_may_be_left_behind(packed: PackedFolder) -> None:
    for _ in range(5):
        next(batches(packed, rows=whole_rows(4), seed=0))


def test_batches_are_asked_for_ahead_and_come_in_order() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(6):
            asked.append(number)
            yield number

    found = ahead(numbers(), count=2)
    assert asked == []
    for number in range(6):
        assert next(found) == number
        assert asked[-1] == min(number + 2, 5)
    assert list(found) == []


def test_a_failure_ahead_comes_when_its_batch_is_due() -> None:
    def numbers() -> Iterator[int]:
        yield from range(4)
        raise DataError("row 4")

    found = ahead(numbers(), count=2)
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="row 4"):
        next(found)


def test_rows_survive_their_bytes() -> None:
    row = Row(
        np.array([0, 2**31 - 1], np.int32), np.array([True, False]), np.array([2], np.int32), np.array([7], np.int32)
    )
    again = Row.from_bytes(row.to_bytes())
    assert all(np.array_equal(a, b) for a, b in zip(row, again, strict=True))


# --- held out


def held_out(packed: PackedFolder, **arguments: Any) -> list[HeldOutBatch]:
    return list(held_out_batches(packed, **arguments))


def test_held_out_rows_come_once_each_in_order(packed: PackedFolder) -> None:
    found = held_out(packed, batch_rows=8)
    assert [one.batch.tokens.shape for one in found] == [(8, L)] * 4
    assert [int(row[0]) for one in found for row in one.batch.tokens] == [*range(1, 31), 0, 0]
    assert not any(column[6:].any() for column in found[-1].batch)


def test_every_trained_target_knows_its_group(packed: PackedFolder) -> None:
    for first, one in zip(range(0, 30, 8), held_out(packed, batch_rows=8), strict=True):
        assert one.groups.dtype == np.int32
        assert ((one.groups >= 0) == (one.batch.loss_weights > 0)).all()
        for index, place in zip(*np.nonzero(one.groups >= 0), strict=True):
            segment = one.batch.segment_ids[index, place]
            assert one.groups[index, place] == [0, 1, (first + index) % 2][segment - 1]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_all_that_is_held_out(packed: PackedFolder, count: int) -> None:
    whole = held_out(packed, batch_rows=8)
    share = 8 // count
    parts = [held_out(packed, batch_rows=8, positions=[slice(i * share, (i + 1) * share)]) for i in range(count)]
    assert same(joined([[one.batch for one in part] for part in parts]), [one.batch for one in whole])
    groups = [np.concatenate([one.groups for one in step]) for step in zip(*parts, strict=True)]
    assert all(np.array_equal(left, right.groups) for left, right in zip(groups, whole, strict=True))


# --- failures


def copied(packed: PackedFolder, folder: Path) -> PackedFolder:
    shutil.copytree(packed.path, folder)
    return replace(packed, path=folder)


def test_a_flipped_byte_is_found_with_its_file_and_row(packed: PackedFolder, tmp_path: Path) -> None:
    copy = copied(packed, tmp_path / "copy")
    file = copy.path / copy.files[1].file
    data = bytearray(file.read_bytes())
    reader = RowReader(copy.path, copy.files)
    row = reader.read([11 + 6])[0]
    place = bytes(data).find(row[-40:])  # rows of a test are not compressed
    data[place] ^= 4
    file.write_bytes(data)
    message = rf"{file}: row 6 cannot be read \(.*\): remove its folder, and `wizard pack`"
    with pytest.raises(DataError, match=message):
        take(copy, 5, rows=whole_rows(6), seed=0)
    with pytest.raises(DataError, match=message):
        held_out(copy, batch_rows=8)


def test_a_file_that_is_gone_or_short_is_named(packed: PackedFolder, tmp_path: Path) -> None:
    copy = copied(packed, tmp_path / "copy")
    file = copy.path / copy.files[2].file
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[100:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file} holds 0 rows of 8: remove its folder"):
            batches(copy, rows=whole_rows(6), seed=0)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file} is gone: remove its folder"):
        batches(copy, rows=whole_rows(6), seed=0)

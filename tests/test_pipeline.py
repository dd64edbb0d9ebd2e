"""A batch is what its docstring shows, and depends on the seed and the step alone."""

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wizard_jax.data import pipeline
from wizard_jax.data.config import DataError
from wizard_jax.data.packing import PackedFolder, PackStats, Row
from wizard_jax.data.pipeline import Batch, batches, to_batch
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
    )
    batch = to_batch([Row.from_bytes(row.to_bytes())], batch_rows=1, seq_len=9)
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
    return Row(np.array(ids, np.int32), np.array(trained), np.array(lengths, np.int32))


@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=3))
def test_batches_equal_a_slow_reference(rows: list[Row]) -> None:
    batch = to_batch([Row.from_bytes(row.to_bytes()) for row in rows], batch_rows=len(rows), seq_len=L)
    for index, row in enumerate(rows):
        for name, expected in slow_reference(row, L).items():
            assert getattr(batch, name)[index].tolist() == expected, name


# --- the order


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedFolder:
    """30 rows; the first token of each is its number + 1."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path_factory.mktemp("packed")
    writer = ArrayRecordWriter(str(folder / "rows.arrayrecord"), "group_size:1")
    draw = np.random.default_rng(0)
    for number in range(30):
        lengths = draw.integers(2, 10, 3).astype(np.int32)
        tokens = draw.integers(1, 1000, lengths.sum()).astype(np.int32)
        tokens[0] = number + 1
        writer.write(Row(tokens=tokens, trained=tokens % 2 == 0, lengths=lengths).to_bytes())
    writer.close()
    stats = PackStats(
        seq_len=L,
        rows=30,
        conversations=90,
        tokens=500,
        trained_tokens=250,
        candidates=90,
        truncated=0,
        dropped=0,
        untrained=0,
    )
    return PackedFolder(path=folder, stats=stats, sha256="")


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


@pytest.mark.parametrize("start", [1, 4, 5, 17])
def test_starting_anywhere_goes_on_with_the_same_batches(packed: PackedFolder, start: int) -> None:
    whole = take(packed, 20, rows=whole_rows(6), seed=3)
    assert same(take(packed, 20 - start, rows=whole_rows(6), seed=3, start_step=start), whole[start:])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_together_read_what_one_would(packed: PackedFolder, count: int) -> None:
    whole = take(packed, 8, rows=whole_rows(6), seed=3)
    parts = [
        take(packed, 8, rows=whole_rows(6), seed=3, process_index=index, process_count=count) for index in range(count)
    ]
    joined = [
        Batch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True))) for step in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


def test_threads_and_prefetch_have_no_influence(packed: PackedFolder) -> None:
    whole = take(packed, 12, rows=whole_rows(4), seed=3)
    assert same(take(packed, 12, rows=whole_rows(4), seed=3, threads=8, prefetch=16), whole)
    assert same(take(packed, 12, rows=whole_rows(4), seed=3, threads=1, prefetch=1), whole)


def test_another_seed_gives_another_order(packed: PackedFolder) -> None:
    assert not same(take(packed, 2, rows=whole_rows(6), seed=0), take(packed, 2, rows=whole_rows(6), seed=1))


def test_rows_that_cannot_be_divided_among_processes_are_refused(packed: PackedFolder) -> None:
    with pytest.raises(DataError, match="5 rows cannot be divided among 2 processes"):
        batches(packed, rows=whole_rows(5), seed=0, process_count=2)


def test_an_iterator_may_be_left_behind(packed: PackedFolder) -> None:
    for _ in range(5):
        next(batches(packed, rows=whole_rows(4), seed=0))


def test_rows_survive_their_bytes() -> None:
    row = Row(np.array([0, 2**31 - 1], np.int32), np.array([True, False]), np.array([2], np.int32))
    again = Row.from_bytes(row.to_bytes())
    assert all(np.array_equal(a, b) for a, b in zip(row, again, strict=True))

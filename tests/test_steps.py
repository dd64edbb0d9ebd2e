"""Steps take the rows that they are due, whatever the devices."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wizard_jax.data.audit import PackStats
from wizard_jax.data.config import ConversationsPerStep, DataError, RowsPerStep, TrainedTokensPerStep
from wizard_jax.data.steps import Sizing, StepRows, row_indices, step_rows


def stats(rows: int, trained: int, conversations: int | None = None) -> PackStats:
    held = rows if conversations is None else conversations
    whole = {"seq_len": 8, "rows": rows, "conversations": held, "tokens": trained, "trained_tokens": trained}
    return PackStats(**whole, candidates=held, truncated=0, dropped=0, untrained=0)


def test_the_docstring_shows_what_happens() -> None:
    rows = StepRows(Fraction(5, 2), 3)
    assert [list(rows.of(step)) for step in range(3)] == [[0, 1], [2, 3, 4], [5, 6]]


@given(st.integers(1, 500), st.integers(1, 100), st.integers(1, 5000), st.integers(1, 8), st.integers(1, 50))
def test_steps_take_every_row_in_turn_and_no_more_than_fit(
    tokens: int, rows: int, trained: int, multiple_of: int, count: int
) -> None:
    assume(rows <= trained <= tokens * rows)
    taken = step_rows(TrainedTokensPerStep(tokens=tokens), stats=stats(rows, trained), multiple_of=multiple_of)
    places = [place for step in range(count) for place in taken.of(step)]
    assert places == list(range(len(places)))
    assert max(len(taken.of(step)) for step in range(count)) <= taken.batch_rows
    assert taken.batch_rows % multiple_of == 0
    assert abs(len(places) * trained / rows - count * tokens) <= trained / rows


def test_arms_with_other_data_train_on_as_many_tokens() -> None:
    dense, sparse = stats(rows=100, trained=4300), stats(rows=100, trained=1100)
    sizing = TrainedTokensPerStep(tokens=640)
    totals = [
        len(range(step_rows(sizing, stats=one).of(999).stop)) * one.trained_tokens / one.rows for one in (dense, sparse)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)


def test_whole_rows_are_taken_as_they_are() -> None:
    assert step_rows(RowsPerStep(rows=12), stats=stats(10, 10), multiple_of=4) == StepRows(Fraction(12), 12)


@pytest.mark.parametrize(
    "sizing",
    [
        RowsPerStep(rows=10),
        RowsPerStep(rows=0),
        TrainedTokensPerStep(tokens=0),
        TrainedTokensPerStep(tokens=9),
        ConversationsPerStep(conversations=0),
        ConversationsPerStep(conversations=2),
    ],
)
def test_a_step_that_cannot_be_made_is_refused(sizing: Sizing) -> None:
    with pytest.raises(DataError):
        step_rows(sizing, stats=stats(rows=10, trained=100, conversations=30), multiple_of=4)


def test_a_published_batch_of_conversations_is_kept_when_they_are_packed() -> None:
    taken = step_rows(
        ConversationsPerStep(conversations=64), stats=stats(rows=1_000, trained=1, conversations=3_600), multiple_of=8
    )
    assert taken.per_step * Fraction(3_600, 1_000) == 64
    assert taken.batch_rows == 24


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.sampled_from([0.5, 1, 2, 2.75, 3]))
def test_epochs_end_where_every_row_was_seen_as_often_as_asked(
    rows: int, conversations: int, multiple_of: int, epochs: float
) -> None:
    assume(conversations >= rows)
    sizing = ConversationsPerStep(conversations=conversations)
    taken = step_rows(sizing, stats=stats(rows, rows, conversations), multiple_of=multiple_of, epochs=epochs)
    places = [place for step in range(taken.steps) for place in taken.of(step)]
    assert places == list(range(max(1, round(epochs * rows))))
    assert taken.of(taken.steps - 1)
    assert not taken.of(taken.steps)


def test_the_order_of_a_seed_stays_what_it_is() -> None:
    assert row_indices(range(8, 12), rows=6, seed=0).tolist() == [3, 5, 0, 4]

"""Steps know what they were rewritten from, and differences give both texts back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from test_report import example

from data_gen.evolve import Lineage
from data_gen.lineage_steps import WORDS_COMPARED, difference, lineage_steps
from data_gen.records import Rejected

words = st.lists(st.sampled_from(["a", "b", "c", "fruits,", "é", "日本", "東x京。", "\n", "  "]), max_size=30).map(
    " ".join
)


@given(words, words)
def test_both_texts_can_be_read_from_their_difference(before: str, after: str) -> None:
    changes = difference(before, after)
    assert changes is not None
    assert "".join(change.text for change in changes if change.kind != "removed") == after
    earlier = "".join(change.text for change in changes if change.kind != "added")
    assert earlier.split() == before.split()
    assert all(one.kind != two.kind for one, two in pairwise(changes))


def test_equal_texts_do_not_differ_and_very_long_ones_are_not_compared() -> None:
    (change,) = difference("Name a tree.", "Name a tree.") or ()
    assert change == ("same", "Name a tree.")
    assert difference("", "") == ()
    assert difference("x", "word " * (WORDS_COMPARED + 1)) is None


def test_of_a_text_without_spaces_only_what_changed_is_marked() -> None:
    changes = difference("请写一首诗。", "请写一首关于海的短诗。") or ()
    assert [change for change in changes if change.kind != "same"] == [("added", "关于海的短")]
    assert "".join(change.text for change in changes if change.kind == "same") == "请写一首诗。"


def test_what_was_dropped_is_nobodys_parent() -> None:
    dropped = Rejected("5", 1, "deepening", "no_gain", "", "Dropped")
    lineage = Lineage((example("5", instruction="Seed"), example("5", 2, instruction="Two", parent="5/0")), (dropped,))
    told = [(step.round, step.verdict, step.parent, step.parent_round) for step in lineage_steps(lineage)]
    assert told == [(0, "kept", None, None), (1, "dropped", "Seed", 0), (2, "kept", "Seed", 0)]


def test_a_seed_without_an_answer_and_what_a_later_check_dropped_are_parents() -> None:
    seed = Rejected("5", 0, "", "refusal", "", "Seed")
    duplicate = Rejected("5", 1, "deepening", "duplicate", "", "One")
    later = Rejected("5", 3, "deepening", "no_gain", "", "Three")
    lineage = Lineage((example("5", 2, instruction="Two", parent="5/1"),), (duplicate, later, seed))
    assert [step.parent for step in lineage_steps(lineage)] == [None, "Seed", "One", "Two"]
    lineage = Lineage((example("5", 2, instruction="Two", parent="5/0"),), (duplicate, seed))
    assert [step.parent for step in lineage_steps(lineage)] == [None, "Seed", "Seed"]

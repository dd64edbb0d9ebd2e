"""Near-duplicates: which are found, which one is kept, and what is not one."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import world
from data_gen.measure import duplicates
from data_gen.measure.duplicates import Duplicates, find_duplicates
from data_gen.records import Record, Turn

WORDS = [f"word{number}" for number in range(3000)]


def record(lineage: str, round_: int, text: str) -> Record:
    return Record(id=f"{lineage}/{round_}", lineage=lineage, turns=(Turn("user", text),), round=round_)


def found_in(records: Sequence[Record], threshold: float = 0.8) -> Duplicates:
    return find_duplicates(lambda: iter(records), threshold=threshold)


def pairs(found: Duplicates) -> list[tuple[str, str]]:
    return [(duplicate.record, duplicate.of) for duplicate in found.found]


def text_of(rng: random.Random, length: int) -> list[str]:
    return rng.choices(WORDS, k=length)


def jaccard(first: str, second: str) -> float:
    """By the definition, on the runs themselves."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        length = min(5, len(words))
        return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}

    return len(runs(first) & runs(second)) / len(runs(first) | runs(second))


def test_the_same_words_are_duplicates_whatever_their_case_spaces_and_punctuation() -> None:
    found = found_in([record("a", 0, "Name a prime, please."), record("b", 0, "name  a PRIME please!")])
    assert pairs(found) == [("b/0", "a/0")]
    assert found.found[0].similarity == 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 5 + 3?", "What is 5 * 3?"),
        ("What is 5 - 3?", "What is 5 + 3?"),
        ("Name a prime.", "Name a prime number."),
        ("", "?"),
        ("数える", "数えた"),
    ],
)
def test_short_texts_are_duplicates_only_if_nothing_differs(first: str, second: str) -> None:
    assert not pairs(found_in([record("a", 0, first), record("b", 0, second)]))
    assert pairs(found_in([record("a", 0, first), record("b", 0, first)])) == [("b/0", "a/0")]


def test_near_duplicates_are_found_where_no_spaces_stand_between_words() -> None:
    text = (
        "请写一首关于{}天的短诗，不超过八行，每一行都要提到一种花，"
        "并且在最后一行说出诗人住在哪一座城市，为什么从来没有离开过那里。"
    )
    found = found_in([record("a", 0, text.format("春")), record("b", 0, text.format("秋"))])
    assert pairs(found) == [("b/0", "a/0")]
    other = "東京から京都まで電車で行く場合と飛行機で行く場合の費用を比べ、どちらが安いかを説明してください。"
    assert not pairs(found_in([record("a", 0, text), record("b", 0, other)]))


def test_the_similarity_is_that_of_the_sets_of_runs() -> None:
    rng = random.Random(0)
    first = text_of(rng, 60)
    second = [*first[:57], "other"]
    found = found_in([record("a", 0, " ".join(first)), record("b", 0, " ".join(second))])
    assert found.found[0].similarity == pytest.approx(53 / 57, abs=1e-6)  # 56 and 54 runs, 53 in both
    assert found.found[0].similarity == pytest.approx(jaccard(" ".join(first), " ".join(second)), abs=1e-6)


def test_at_the_threshold_counts_and_below_it_does_not() -> None:
    first = WORDS[:13]  # 9 runs
    records = [record("a", 0, " ".join(first)), record("b", 0, " ".join([*first, "more"]))]  # 9 of 10
    assert pairs(found_in(records, 0.9)) == [("b/0", "a/0")]
    assert not pairs(found_in(records, 0.901))


def test_the_earliest_is_kept_by_round_and_then_by_lineage() -> None:
    records = [
        record(name, round_, "Sort these words now.") for name, round_ in (("c", 1), ("b", 0), ("a", 1), ("d", 0))
    ]
    found = found_in(records)
    assert pairs(found) == [("d/0", "b/0"), ("a/1", "b/0"), ("c/1", "b/0")]
    assert [(duplicate.round, duplicate.of_round) for duplicate in found.found] == [(0, 0), (1, 0), (1, 0)]


def test_versions_of_one_lineage_are_counted_apart_and_are_no_duplicates() -> None:
    text = " ".join(WORDS[:60])
    records = [record("a", round_, f"{text} {' '.join(WORDS[100 : 100 + round_])}") for round_ in range(4)]
    found = found_in(records)
    assert not found.found
    assert found.near_own_lineage == {1: 1, 2: 1, 3: 1}
    found = found_in([*records, record("b", 2, text)])
    assert pairs(found) == [("b/2", "a/0")]


def test_a_chain_of_small_differences_does_not_merge_its_ends() -> None:
    words = WORDS[:100]
    chain = [" ".join(words[start : start + 60]) for start in range(0, 40, 4)]
    records = [record(f"{number:02}", 0, text) for number, text in enumerate(chain)]
    dropped = {name for name, _ in pairs(found_in(records))}
    kept = [r.instruction for r in records if r.id not in dropped]
    assert 1 < len(kept) < len(chain)
    assert all(jaccard(a, b) < 0.8 for a in kept for b in kept if a is not b), "what is kept differs"
    assert all(any(jaccard(r.instruction, k) >= 0.8 for k in kept) for r in records), "what is dropped does not"


def test_nine_hundred_near_duplicates_among_three_thousand_are_found_and_nothing_else_is() -> None:
    rng = random.Random(1)
    records, planted = [], {}
    for number in range(2_100):
        words = text_of(rng, rng.randint(20, 120))
        records.append(record(f"a{number}", 0, " ".join(words)))
        if number < 900:  # one word in fifty is another
            copy = [rng.choice(WORDS) if rng.random() < 0.02 else word for word in words]
            records.append(record(f"b{number}", 1, " ".join(copy)))
            if jaccard(" ".join(words), " ".join(copy)) >= 0.8:
                planted[f"b{number}/1"] = f"a{number}/0"
    assert len(planted) > 500
    found = dict(pairs(found_in(records)))
    assert not found.items() - planted.items(), "no false merges"
    assert len(found) >= 0.995 * len(planted)


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(rng: random.Random) -> None:
    base = [text_of(rng, 12) for _ in range(3)]
    records = []
    for number in range(15):
        words = [*rng.choice(base), *text_of(rng, rng.randint(0, 2))]
        records.append(record(str(number // 3), number % 3, " ".join(words)))
    before = found_in(records, 0.7)
    rng.shuffle(records)
    assert found_in(records, 0.7) == before


def test_bands_find_what_they_promise_at_every_threshold() -> None:
    for threshold in np.linspace(0.05, 1, 20):
        bands, rows = duplicates._bands(float(threshold))
        assert bands * rows <= duplicates.PERMUTATIONS
        if threshold >= 0.1:
            assert 1 - (1 - threshold**rows) ** bands >= 0.995


def test_of_a_crowd_of_copies_the_first_is_kept() -> None:
    crowd = [record(f"{number:05}", 0, "Write a short poem about the sea at night.") for number in range(1_000)]
    found = found_in(crowd)
    assert len(found.found) == 999
    assert {duplicate.of for duplicate in found.found} == {"00000/0"}


def test_nothing_to_compare() -> None:
    assert found_in([]) == Duplicates(records=0, found=(), near_own_lineage={})
    assert found_in([record("a", 0, "x")]).found == ()


def many(count: int) -> Callable[[], list[Record]]:
    texts = world.sample_seeds(1_000, seed=5)
    return lambda: [record(f"{n}", n % 5, f"{texts[n % 1_000]} {n} {n * 7} {n * 13}") for n in range(count)]


def test_records_are_read_as_an_iterator_twice() -> None:
    readings = []

    def read() -> list[Record]:
        readings.append(1)
        return many(2_500)()

    found = find_duplicates(lambda: iter(read()))
    assert (found.records, len(readings)) == (2_500, 2)


@pytest.mark.slow
def test_260_000_instructions_take_less_than_600_mb() -> None:
    def read() -> Iterator[Record]:
        rng = random.Random(0)
        for number in range(260_000):
            length = rng.randint(20, 120)
            start = rng.randrange(len(WORDS) - 200)
            text = " ".join(WORDS[(start + rng.randrange(200)) % len(WORDS)] for _ in range(length))
            yield record(str(number // 5), number % 5, text)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = find_duplicates(read)
    assert found.records == 260_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 600

"""Diversity per round: values worked out by hand, and comparisons at equal size."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from data_gen.measure.diversity import (
    LEAST,
    Diversity,
    RoundDiversity,
    cluster_entropy,
    compression,
    distinct,
    diversity,
    nearest,
    vendi,
)

WORDS = [f"word{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chr(97 + number // 676)}" for number in range(3000)]


def texts_of(rng: random.Random, count: int, *, length: int, vocabulary: Sequence[str] = WORDS) -> list[str]:
    return [" ".join(rng.choices(vocabulary, k=length)) for _ in range(count)]


def by_round(found: Sequence[RoundDiversity], equal: str) -> dict[int, RoundDiversity]:
    return {one.round: one for one in found if one.equal == equal}


# --- by hand


def test_distinct_n_by_hand() -> None:
    texts = [["a", "b", "a"], ["a", "b"], ["c"]]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 2 / 3  # ab, ba, ab: no run goes from one text into the next
    assert distinct(texts, 3) == 1.0
    assert distinct(texts, 4) == 0.0


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_the_vendi_score_of_equal_texts_is_1_and_of_n_that_share_nothing_n(count: int) -> None:
    assert vendi(np.ones((count, count))) == pytest.approx(1)
    assert vendi(np.eye(count)) == pytest.approx(count)


def test_the_vendi_score_of_two_halves_by_hand() -> None:
    cosines = np.kron(np.eye(2), np.ones((3, 3)))  # two kinds, three copies each
    assert vendi(cosines) == pytest.approx(2)
    close = np.array([[1, 0.5], [0.5, 1]])  # eigenvalues 0.75 and 0.25
    assert vendi(close) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_nearest_by_hand() -> None:
    assert nearest(np.array([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]])) == pytest.approx(
        (0.9 + 0.2 + 0.9) / 3
    )
    assert nearest(np.ones((1, 1))) == 0.0


def test_cluster_entropy_by_hand() -> None:
    assert cluster_entropy(np.array([0, 1, 2, 3]), of=4) == pytest.approx(1)
    assert cluster_entropy(np.array([2, 2, 2]), of=4) == 0
    assert cluster_entropy(np.array([0, 0, 1, 1]), of=4) == pytest.approx(0.5)
    assert cluster_entropy(np.array([0, 0]), of=1) == 0


def test_repetition_compresses() -> None:
    rng = random.Random(0)
    varied = [text.split() for text in texts_of(rng, 50, length=20)]
    assert compression([varied[0]] * 50) > 3 * compression(varied) > 3
    assert compression([["a\ud800"]]) > 0, "half a character is text too"


# --- rounds


def test_equal_texts_and_unlike_texts_are_told_apart_by_every_measure() -> None:
    rng = random.Random(0)
    unlike = [" ".join(WORDS[20 * number : 20 * number + 20]) for number in range(60)]
    alike = [*([unlike[0]] * 59), unlike[1]]
    some = by_round(diversity({0: unlike, 1: alike, 2: texts_of(rng, 60, length=20)}, seed=0), "texts")
    high, low = (some[round_].measures for round_ in (0, 1))
    assert high["vendi"].value == pytest.approx(30, rel=1e-4)  # half-samples of 60
    assert low["vendi"].value < 1.2
    assert high["distinct_1"].value == 1.0
    assert low["distinct_1"].value < 0.08
    assert low["compression"].value > 5 * high["compression"].value
    assert low["nearest"].value > 0.95 > high["nearest"].value
    assert low["cluster_entropy"].value < 0.1 < high["cluster_entropy"].value


def test_longer_texts_look_less_diverse_in_words_only_until_lengths_are_equal() -> None:
    rng = random.Random(1)
    short, long = texts_of(rng, 200, length=10), texts_of(rng, 200, length=60)
    found = diversity({0: short, 1: long}, seed=0)
    at_texts, at_words = by_round(found, "texts"), by_round(found, "words")
    assert at_texts[0].measures["distinct_1"].value > 1.5 * at_texts[1].measures["distinct_1"].value
    assert at_words[0].measures["words"].value == at_words[1].measures["words"].value == 1000
    assert at_words[0].measures["distinct_1"].value == pytest.approx(at_words[1].measures["distinct_1"].value, rel=0.05)
    assert at_words[1].measures["texts"].value == 17  # 16 whole ones and the beginning of one
    assert at_texts[1].measures["texts"].value == at_texts[0].measures["texts"].value == 100


def test_intervals_hold_the_value_of_the_population_about_as_often_as_they_say() -> None:
    """distinct_1 at 20 texts of 15 words out of a vocabulary of 100: the truth from many draws, then 40 intervals."""
    small = WORDS[:100]
    draws = (texts_of(random.Random(number), 20, length=15, vocabulary=small) for number in range(400))
    truth = np.mean([distinct([text.split() for text in texts], 1) for texts in draws])
    held = 0
    for number in range(40):
        pool = {0: texts_of(random.Random(1000 + number), 40, length=15, vocabulary=small)}
        estimate = by_round(diversity(pool, seed=number), "texts")[0].measures["distinct_1"]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.n == 40
        held += estimate.low <= truth <= estimate.high
    assert held >= 33


def test_figures_are_the_same_in_every_run_and_follow_the_seed() -> None:
    texts = {0: texts_of(random.Random(2), 60, length=12), 2: texts_of(random.Random(3), 90, length=15)}
    first = diversity(texts, seed=5)
    assert diversity(dict(reversed(texts.items())), seed=5) == first
    assert diversity(texts, seed=6) != first
    assert [(one.round, one.equal) for one in first] == [(0, "texts"), (2, "texts"), (0, "words"), (2, "words")]
    assert all(tuple(one.measures) == Diversity._fields for one in first)
    assert {estimate.n for one in first for estimate in one.measures.values()} == {60}


def test_a_round_of_too_few_texts_is_left_out_and_the_others_are_not_measured_by_it() -> None:
    rng = random.Random(4)
    found = diversity({0: texts_of(rng, 60, length=9), 1: texts_of(rng, LEAST - 1, length=9)}, seed=0)
    assert {one.round for one in found} == {0}
    assert diversity({0: ["a"], 1: []}, seed=0) == ()
    assert diversity({}, seed=0) == ()


@pytest.mark.parametrize("text", ["", "?!", "the same words", "a"])
def test_texts_without_words_or_without_difference_are_measured_too(text: str) -> None:
    for one in diversity({0: [text] * 30, 1: [text] * 25}, seed=0):
        assert all(math.isfinite(estimate.value) for estimate in one.measures.values())
        assert one.measures["cluster_entropy"].value == 0


def test_nothing_heavy_is_loaded_until_it_is_needed() -> None:
    import subprocess

    code = (
        "import sys, data_gen.measure.difficulty, data_gen.measure.diversity, data_gen.measure.duplicates\n"
        "import data_gen.measure.contamination\n"
        "print(*{name.split('.')[0] for name in sys.modules} & {'scipy', 'sklearn', 'datasketch', 'pandas', 'jax'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

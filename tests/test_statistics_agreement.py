"""Agreement is that of published tables; a judge's leanings are found, and the longest answer is a judge to beat."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wizard_jax.evaluate.statistics.agreement import Agreement, agreement, kappa_half_width
from wizard_jax.evaluate.statistics.bias import always_longest, concordance, longer_preferred, order_consistency
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate
from wizard_jax.evaluate.statistics.wins import paired_difference

BOOTSTRAP = Bootstrap(seed=0, draws=2_000)
_ = math.nan


def of_table(table: list[list[int]]) -> np.ndarray:
    """Ratings of two raters whose table of counts this is."""
    rows = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return np.array(rows, dtype=float)


def values(found: Agreement) -> list[float]:
    figures = (found.raw, found.kappa, found.alpha_nominal, found.alpha_ordinal, found.ac1)
    return [math.nan if one is None else one.value for one in figures]


KRIPPENDORFF = np.array(
    # K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section D: four observers, twelve units.
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
).T


def gwet(ratings: np.ndarray) -> float:
    """AC1, one unit after the other."""
    rated = [[rating for rating in unit if not math.isnan(rating)] for unit in ratings]
    twice = [unit for unit in rated if len(unit) > 1]
    equal = [sum(a == b for k, a in enumerate(unit) for b in unit[:k]) / math.comb(len(unit), 2) for unit in twice]
    use = [np.mean([unit.count(category) / len(unit) for unit in rated]) for category in range(1, 6)]
    chance = sum(share * (1 - share) for share in use) / 4
    return float((np.mean(equal) - chance) / (1 - chance))


def test_several_raters_with_gaps_agree_as_krippendorff_and_gwet_compute() -> None:
    raw, _kappa, nominal, ordinal, ac1 = values(
        agreement(KRIPPENDORFF, bootstrap=BOOTSTRAP, categories=(1, 2, 3, 4, 5))
    )
    assert nominal == pytest.approx(0.743, abs=5e-4)
    assert ordinal == pytest.approx(0.815, abs=5e-4)
    # The same table in K. L. Gwet, Handbook of Inter-Rater Reliability (2014): agreement 0.8182, AC1 0.7754, for which
    # the unit with a single rating counts in what chance brings. Here such units count for nothing.
    assert raw == pytest.approx(0.8182, abs=5e-5)
    assert gwet(KRIPPENDORFF) == pytest.approx(0.7754, abs=5e-5)
    assert ac1 == pytest.approx(gwet(KRIPPENDORFF[:11]))


@pytest.mark.parametrize(
    ("table", "raw", "kappa", "ac1"),
    [
        # By hand: chance is 0.5 for kappa, and 2 * 0.55 * 0.45 for AC1.
        ([[20, 5], [10, 15]], 0.7, 0.4, (0.7 - 0.495) / 0.505),
        # A. R. Feinstein, D. V. Cicchetti, J Clin Epidemiol 43 (1990) 543-549, and Gwet (2008) on such tables.
        ([[118, 5], [2, 0]], 0.944, -0.0234, 0.9408),
        ([[25, 0], [0, 25]], 1.0, 1.0, 1.0),
        ([[0, 25], [25, 0]], 0.0, -1.0, -1.0),
        # By hand: chance is (40 * 38 + 35 * 35 + 25 * 27) / 100^2 = 0.342, and (0.2379 + 0.2275 + 0.1924) / 2.
        ([[30, 6, 4], [5, 25, 5], [3, 4, 18]], 0.73, 0.388 / 0.658, (0.73 - 0.3289) / 0.6711),
    ],
)
def test_kappa_and_ac1_of_two_raters_are_those_of_the_table(
    table: list[list[int]], raw: float, kappa: float, ac1: float
) -> None:
    counts = np.array(table)
    found = values(agreement(of_table(table), bootstrap=BOOTSTRAP, categories=range(len(table))))
    n, rows, cols = counts.sum(), counts.sum(1), counts.sum(0)
    assert found[0] == pytest.approx(raw)
    assert (found[1], found[4]) == pytest.approx((kappa, ac1), abs=5e-5)
    both = rows + cols
    disagreed = 1 - (both * (both - 1)).sum() / (2 * n * (2 * n - 1))
    assert found[2] == pytest.approx(1 - (1 - raw) / disagreed)


def test_ordinal_alpha_minds_how_far_apart_two_verdicts_are() -> None:
    agreed = [[1, 1], [0, 0], [-1, -1]] * 10
    near = values(agreement([*agreed, *[[1, 0], [0, -1]] * 6], bootstrap=BOOTSTRAP))
    far = values(agreement([*agreed, *[[1, -1], [-1, 1]] * 6], bootstrap=BOOTSTRAP))
    assert near[0] == far[0]
    assert near[3] > near[2] + 0.05
    assert far[3] < far[2] - 0.05


def test_of_three_raters_kappa_is_the_mean_over_pairs_by_the_items_they_share() -> None:
    random = np.random.default_rng(0)
    truth = random.choice([-1, 0, 1], size=90)
    ratings = np.where(random.uniform(size=(90, 3)) < 0.7, truth[:, None], random.choice([-1, 0, 1], size=(90, 3)))
    table = ratings.astype(float)
    table[60:, 2] = np.nan
    found = agreement(table, bootstrap=BOOTSTRAP)
    total = 0.0
    for i, j, n in ((0, 1, 90), (0, 2, 60), (1, 2, 60)):
        one = agreement(table[:n, [i, j]], bootstrap=BOOTSTRAP).kappa
        assert one is not None
        total += n * one.value
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(total / 210)


def test_raters_who_only_ever_say_one_thing_have_no_kappa_and_all_the_agreement_there_is() -> None:
    found = agreement([[1, 1]] * 30, bootstrap=BOOTSTRAP)
    assert found.kappa is None
    assert found.alpha_nominal is None
    assert found.alpha_ordinal is None
    assert found.raw.value == found.raw.high == 1
    assert 0.87 < found.raw.low < 0.9
    assert found.ac1 is not None
    assert found.ac1.value == 1


def test_the_interval_of_kappa_is_as_wide_as_planned() -> None:
    """0.72 / sqrt(n) at agreement 0.75, 0.4 of it by chance: so 200 items give +-0.10."""
    assert kappa_half_width(1) / 1.96 == pytest.approx(0.72, abs=0.002)
    assert kappa_half_width(200) == pytest.approx(0.10, abs=0.001)
    random = np.random.default_rng(0)
    truth = random.choice([-1, 0, 1], size=200, p=[0.35, 0.15, 0.5])
    other = np.where(random.uniform(size=200) < 0.585, truth, random.choice([-1, 0, 1], size=200, p=[0.35, 0.15, 0.5]))
    found = agreement(np.stack([truth, other], axis=1), bootstrap=BOOTSTRAP)
    assert found.kappa is not None
    assert found.raw.value == pytest.approx(0.75, abs=0.03)
    assert found.kappa.half_width == pytest.approx(0.10, abs=0.012)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreement([1, 1], bootstrap=BOOTSTRAP), r"shape \(2,\)"),
        (lambda: agreement([[1, 3]], bootstrap=BOOTSTRAP), "a rating is 3"),
        (lambda: agreement([[1, 1]], bootstrap=BOOTSTRAP, categories=(1,)), "two or more"),
        (lambda: agreement([[1, _], [_, 1]], bootstrap=BOOTSTRAP), "no item was rated twice"),
        (lambda: kappa_half_width(0), "do not go together"),
        (lambda: order_consistency([1], [1, 0], bootstrap=BOOTSTRAP), "verdicts in the first order"),
        (lambda: order_consistency([1, None], [None, 0], bootstrap=BOOTSTRAP), "graded in both orders"),
        (lambda: longer_preferred([1, 0.5], [50, 900], [40, 10], bootstrap=BOOTSTRAP), "not one case"),
    ],
)
def test_ratings_that_tell_nothing_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- what a judge goes by


def test_a_judge_who_takes_the_first_answer_is_even_over_both_orders_and_never_consistent() -> None:
    found = order_consistency([1] * 40, [-1] * 40, bootstrap=BOOTSTRAP)
    assert (found.same.value, found.reversed.value) == (0, 1)
    assert found.first_place is not None
    assert found.first_place.value == 1
    assert found.first_place.low > 0.9
    assert found.orders.raw.value == 0


def test_order_consistency_counts_by_hand() -> None:
    first = [1, 1, 1, 0, -1, -1, 0, None, 1, 0]
    second = [1, 1, -1, 0, -1, 1, 1, 1, None, 0]
    found = order_consistency(first, second, bootstrap=BOOTSTRAP)
    assert found.same.n == 8
    assert found.same.value == 5 / 8
    assert found.reversed.value == 2 / 8
    # First place: +1 in the first order (3 of 5 decisive), -1 in the second (2 of 6).
    assert found.first_place is not None
    assert found.first_place.value == pytest.approx(5 / 11)
    assert found.orders.raw.value == 5 / 8


def test_several_candidates_on_a_prompt_are_resampled_with_it() -> None:
    random = np.random.default_rng(0)
    same = np.repeat(random.integers(0, 2, size=100), 4)
    first = np.ones(400)
    second = np.where(same, 1, -1)
    by_prompt = order_consistency(first, second, prompts=np.repeat(range(100), 4), bootstrap=BOOTSTRAP)
    by_row = order_consistency(first, second, bootstrap=BOOTSTRAP)
    assert by_prompt.same.value == by_row.same.value
    assert by_prompt.same.half_width > 1.8 * by_row.same.half_width
    assert by_prompt.orders.ac1 is not None
    assert by_row.orders.ac1 is not None
    assert by_prompt.orders.ac1.value == pytest.approx(by_row.orders.ac1.value)
    assert by_prompt.orders.ac1.half_width > 1.8 * by_row.orders.ac1.half_width


def test_the_share_of_longer_answers_preferred_leaves_out_ties_and_near_lengths() -> None:
    scores = [1, 0, 1, 0.5, 1, 0.75]
    lengths, baseline = [100, 100, 100, 100, 100, 300], [10, 10, 200, 10, 75, 10]
    found = longer_preferred(scores, lengths, baseline, bootstrap=BOOTSTRAP)
    assert (found.n, found.value) == (4, 2 / 4)
    assert isinstance(found, Estimate)


def test_a_judge_must_be_right_more_often_than_the_longer_answer() -> None:
    random = np.random.default_rng(0)
    truth = random.choice([-1, 0, 1], size=400, p=[0.4, 0.2, 0.4])
    lengths = 500 + 60 * truth + random.normal(0, 100, size=400)
    baseline = np.full(400, 500.0)
    good = np.where(random.uniform(size=400) < 0.8, truth, -truth)
    longest = concordance(always_longest(lengths, baseline), truth)
    assert always_longest([3, 1, 2], [1, 3, 2]).tolist() == [1, -1, 0]
    assert concordance([1, 1, 1, 0], [1, 0, -1, 0]).tolist() == [1, 0.5, 0, 1]
    beats = paired_difference(concordance(good, truth), longest, bootstrap=BOOTSTRAP)
    assert beats.estimate.low > 0
    itself = paired_difference(longest, longest, bootstrap=BOOTSTRAP)
    assert itself.estimate.value == 0
    assert itself.p == 1
    assert itself.estimate.high > 0


def test_none_of_it_is_an_estimate_without_a_decisive_verdict() -> None:
    found = order_consistency([0, 0, 0], [0, 0, 0], bootstrap=BOOTSTRAP)
    assert found.first_place is None
    assert found.same.value == 1
    with pytest.raises(NoEstimate):
        longer_preferred([0.5, 0.5], [900, 800], [10, 10], bootstrap=BOOTSTRAP)

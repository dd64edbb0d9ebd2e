"""Bradley-Terry with ties and the length model find what made the verdicts, as general optimisers do."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.optimize import minimize

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, NoEstimate
from wizard_jax.evaluate.statistics.models import LENGTH_PRIOR, bradley_terry, length_controlled
from wizard_jax.evaluate.statistics.wins import win_rate

BOOTSTRAP = Bootstrap(seed=0, draws=2_000)

Comparisons = tuple[list[str], list[str], list[int], list[int]]


def played(
    random: np.random.Generator, strengths: dict[str, float], *, nu: float, prompts: int, orders: int = 1
) -> Comparisons:
    """Davidson's verdicts on each prompt for each pair, `orders` times."""
    rows: Comparisons = ([], [], [], [])
    for one, other in combinations(strengths, 2):
        half = (strengths[one] - strengths[other]) / 2
        odds = np.array([np.exp(half), nu, np.exp(-half)])
        for prompt in range(prompts):
            for _ in range(orders):
                verdict = int(random.choice([1, 0, -1], p=odds / odds.sum()))
                for column, value in zip(rows, (one, other, verdict, prompt), strict=True):
                    column.append(value)  # type: ignore[arg-type]
    return rows


def test_strengths_maximise_davidsons_likelihood() -> None:
    true = {"small": -0.6, "middle": 0.1, "large": 0.5, "other": 0.0}
    first, second, verdicts, prompts = played(np.random.default_rng(0), true, nu=0.8, prompts=60)
    found = bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=BOOTSTRAP)
    names = sorted(true)

    def loss(point: np.ndarray) -> float:
        strength = dict(zip(names, point[:-1], strict=True))
        total = 0.0
        for one, other, verdict in zip(first, second, verdicts, strict=True):
            i, j = np.exp(strength[one]), np.exp(strength[other])
            tie = np.exp(point[-1]) * np.sqrt(i * j)
            total -= np.log({1: i, -1: j, 0: tie}[verdict] / (i + j + tie))
        return total

    best = minimize(loss, np.zeros(len(names) + 1)).x
    expected = dict(zip(names, best[:-1] - best[:-1].mean(), strict=True))
    assert {one.model: one.strength.value for one in found.models} == pytest.approx(expected, abs=1e-3)
    assert found.ties.value == pytest.approx(np.exp(best[-1]) / (2 + np.exp(best[-1])), abs=1e-3)
    assert [one.model for one in found.models] == sorted(names, key=lambda name: -expected[name])
    assert all(one.strength.low < one.strength.value < one.strength.high for one in found.models)


def test_of_two_models_alone_the_expected_score_is_the_adjusted_win_rate() -> None:
    """What Davidson's ties are chosen for: in a chain each pair has a parameter of its own."""
    first, second = ["a"] * 100 + ["b"] * 100, ["b"] * 100 + ["c"] * 100
    verdicts = [1] * 55 + [0] * 20 + [-1] * 25 + [1] * 40 + [0] * 20 + [-1] * 40
    found = bradley_terry(first, second, verdicts, prompts=[*range(100)] * 2, bootstrap=BOOTSTRAP)
    scores = {frozenset((pair.stronger, pair.weaker)): pair.score.value for pair in found.pairs}
    assert scores[frozenset("ab")] == pytest.approx(0.65, abs=1e-4)
    assert scores[frozenset("bc")] == pytest.approx(0.5, abs=1e-4)
    assert len(found.pairs) == 3, "also the pair that never met"


def test_who_stands_first_in_a_row_does_not_matter_and_the_gap_is_that_of_the_strengths() -> None:
    first, second, verdicts, prompts = played(
        np.random.default_rng(1), {"a": 0.8, "b": 0.0, "c": -0.8}, nu=0.5, prompts=80
    )
    found = bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=BOOTSTRAP)
    turned = bradley_terry(second, first, [-v for v in verdicts], prompts=prompts, bootstrap=BOOTSTRAP)
    assert found == turned
    strength = {one.model: one.strength.value for one in found.models}
    for pair in found.pairs:
        assert pair.gap.value == pytest.approx(strength[pair.stronger] - strength[pair.weaker])
        assert pair.gap.low > 0, "the order is known"
        assert pair.score.low > 0.5


def test_four_verdicts_that_repeat_one_another_are_worth_one() -> None:
    rows = played(np.random.default_rng(2), {"a": 0.3, "b": 0.0, "c": -0.3}, nu=0.5, prompts=80)
    first, second, verdicts, prompts = ([value for value in column for _ in range(4)] for column in rows)
    once = bradley_terry(*rows[:3], prompts=rows[3], bootstrap=BOOTSTRAP)
    repeated = bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=BOOTSTRAP)
    battles = bradley_terry(first, second, verdicts, prompts=range(len(first)), bootstrap=BOOTSTRAP)
    assert repeated.pairs[0].gap.half_width == pytest.approx(once.pairs[0].gap.half_width, rel=1e-3)
    assert battles.pairs[0].gap.half_width < 0.6 * once.pairs[0].gap.half_width


def test_no_tie_at_all_is_the_model_of_bradley_and_terry() -> None:
    wins = {("a", "b"): 30, ("b", "a"): 20, ("b", "c"): 28, ("c", "b"): 22, ("a", "c"): 36, ("c", "a"): 14}
    rows = [(*pair, 1) for pair, times in wins.items() for _ in range(times)]
    first, second, verdicts = ([row[k] for row in rows] for k in range(3))
    found = bradley_terry(first, second, verdicts, prompts=range(len(rows)), bootstrap=BOOTSTRAP)
    worth = dict.fromkeys("abc", 1.0)
    for _ in range(500):  # Zermelo's iteration (1929)
        worth = {
            i: sum(wins[i, j] for j in worth if j != i)
            / sum((wins[i, j] + wins[j, i]) / (worth[i] + worth[j]) for j in worth if j != i)
            for i in worth
        }
    logs = {name: np.log(value) for name, value in worth.items()}
    expected = {name: log - sum(logs.values()) / 3 for name, log in logs.items()}
    assert {one.model: one.strength.value for one in found.models} == pytest.approx(expected, abs=1e-6)
    assert found.ties.value == 0
    assert 0 < found.ties.high < 0.05


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([("a", "b", 1), ("b", "a", 1)], NoEstimate, "three models or more, not 2"),
        ([("a", "b", 0), ("b", "c", 0), ("c", "a", 0)], NoEstimate, "all comparisons are ties"),
        ([("a", "b", 1), ("b", "a", 1), ("c", "d", 1), ("d", "c", 0)], NoEstimate, "from a to c, d: compare"),
        ([("a", "b", 1), ("b", "c", 1), ("c", "b", 1), ("a", "c", 1)], NoEstimate, "b never wins or ties against a"),
        ([("a", "a", 1), ("b", "c", 1), ("c", "b", 0)], ValueError, "comparison 0 is of a with itself"),
        ([("a", "b", float("nan")), ("b", "c", 1)], ValueError, "leave out what was not graded"),
    ],
)
def test_comparisons_that_bound_no_strengths_are_refused(
    rows: list[tuple[str, str, float]], error: type[ValueError], message: str
) -> None:
    first, second, verdicts = ([row[k] for row in rows] for k in range(3))
    with pytest.raises(error, match=message):
        bradley_terry(first, second, verdicts, prompts=range(len(rows)), bootstrap=BOOTSTRAP)


def test_resamples_in_which_a_model_wins_all_still_have_a_fit() -> None:
    first, second = ["a"] * 12 + ["b"] * 12, ["b"] * 12 + ["c"] * 12
    verdicts = [1] * 11 + [-1] + [1, -1] * 6
    found = bradley_terry(first, second, verdicts, prompts=range(24), bootstrap=BOOTSTRAP)
    gap = next(pair.gap for pair in found.pairs if pair.weaker == "b" and pair.stronger == "a")
    assert gap.low < gap.value < 3 < gap.high < 40


# --- length


def test_the_win_rate_at_equal_length_is_recovered_where_length_alone_makes_the_wins() -> None:
    random = np.random.default_rng(0)
    lengths, baseline = random.lognormal(6.5, 0.5, 3000), random.lognormal(6.0, 0.5, 3000)
    gaps = lengths - baseline
    won = (random.uniform(size=3000) < 1 / (1 + np.exp(-2.0 * np.tanh(gaps / gaps.std())))).astype(float)
    found = length_controlled(won, lengths, baseline, bootstrap=BOOTSTRAP)
    assert found.raw.low > 0.6
    assert found.controlled.low < 0.5 < found.controlled.high
    assert found.effect.low < 2.0 < found.effect.high
    assert found.raw.value == win_rate(won, bootstrap=BOOTSTRAP).estimate.value
    assert not found.separated


def test_the_length_model_maximises_the_penalised_likelihood_of_soft_labels() -> None:
    random = np.random.default_rng(1)
    scores = random.choice([0, 0.25, 0.5, 0.75, 1], size=90)
    lengths, baseline = random.integers(100, 2000, size=(2, 90))
    gaps = lengths - baseline
    term = np.tanh(gaps / gaps.std())

    def loss(point: np.ndarray) -> float:
        logits = point[0] + point[1] * term
        return float((np.logaddexp(0, logits) - scores * logits).sum() + LENGTH_PRIOR * point[1] ** 2 / 2)

    best = minimize(loss, np.zeros(2)).x
    found = length_controlled(scores, lengths, baseline, bootstrap=BOOTSTRAP)
    assert found.controlled.value == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-5)
    assert found.effect.value == pytest.approx(best[1], abs=1e-4)


def test_swapping_the_two_sides_gives_one_minus_the_rate() -> None:
    random = np.random.default_rng(2)
    scores, lengths, baseline = random.choice([0, 0.5, 1], size=70), *random.integers(50, 900, size=(2, 70))
    found = length_controlled(scores, lengths, baseline, bootstrap=BOOTSTRAP)
    turned = length_controlled(1 - scores, baseline, lengths, bootstrap=BOOTSTRAP)
    for one, other in ((found.controlled, turned.controlled), (found.raw, turned.raw)):
        assert (1 - other.high, 1 - other.value, 1 - other.low) == pytest.approx((one.low, one.value, one.high))
    assert turned.effect.value == pytest.approx(found.effect.value)


def test_a_judge_who_only_takes_the_longer_answer_is_found_out() -> None:
    random = np.random.default_rng(3)
    lengths, baseline = random.integers(500, 1500, size=60), random.integers(200, 1200, size=60)
    found = length_controlled((lengths > baseline).astype(float), lengths, baseline, bootstrap=BOOTSTRAP)
    assert found.separated
    assert found.raw.low > 0.6
    assert found.controlled.value < found.raw.value - 0.1
    assert np.isfinite([found.effect.low, found.effect.high]).all()


@pytest.mark.parametrize(
    ("scores", "lengths", "baseline", "message"),
    [
        ([1, 0, 1], [10, 20, 30], [5, 15, 25], "differ in length by 5 on every prompt"),
        ([1, 1, 1], [10, 20, 30], [5, 10, 25], "every prompt was won"),
        ([1, 2, 1], [10, 20, 30], [5, 10, 25], "0..1"),
        ([1, 0], [10, 20, 30], [5, 10, 25], "unlike numbers"),
    ],
)
def test_what_can_not_be_controlled_for_length_is_refused(
    scores: list[float], lengths: list[float], baseline: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled(scores, lengths, baseline, bootstrap=BOOTSTRAP)


def test_models_have_the_same_strengths_whatever_the_order_of_rows() -> None:
    rows = list(zip(*played(np.random.default_rng(4), {"a": 1.0, "b": 0, "c": -1}, nu=1, prompts=30), strict=True))
    found = []
    for order in list(permutations(range(3)))[:2]:
        turned = sorted(rows, key=lambda row, order=order: order["abc".index(row[0])])  # type: ignore[misc]
        first, second, verdicts, prompts = (list(column) for column in zip(*turned, strict=True))
        found.append(bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=BOOTSTRAP))
    assert found[0] == found[1]

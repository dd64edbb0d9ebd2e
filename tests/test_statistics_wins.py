"""Win rates, their intervals and tests are those of the published comparisons, computed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, estimate, mean, share
from wizard_jax.evaluate.statistics.wins import item_scores, paired_difference, sign_test, strict_verdicts, win_rate

BOOTSTRAP = Bootstrap(seed=0)


def scores(wins: int, losses: int, ties: int) -> np.ndarray:
    return np.repeat([1.0, 0.0, 0.5], [wins, losses, ties])


def mean_of(column: np.ndarray, how: Bootstrap) -> Estimate:
    return mean(column, bootstrap=how)


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "rate", "low", "high", "p"),
    # nlpxucan/WizardLM, figures win.png and windiff.png (7B against Alpaca, Vicuna, ChatGPT), counts of human votes.
    [
        (90, 52, 76, 0.587, 0.534, 0.640, 0.002),
        (90, 63, 65, 0.562, 0.509, 0.617, 0.035),
        (61, 89, 68, 0.436, 0.378, 0.491, 0.027),
        (41, 16, 6, 0.698, 0.587, 0.802, 0.001),
        (30, 21, 12, 0.571, 0.460, 0.683, 0.26),
        (27, 22, 14, 0.540, 0.429, 0.643, 0.57),
    ],
)
def test_the_published_comparisons_of_wizardlm_have_these_rates_intervals_and_tests(
    wins: int, losses: int, ties: int, rate: float, low: float, high: float, p: float
) -> None:
    found = win_rate(scores(wins, losses, ties), bootstrap=BOOTSTRAP)
    assert (found.wins, found.losses, found.ties, found.estimate.n) == (wins, losses, ties, wins + losses + ties)
    assert found.estimate.value == pytest.approx(rate, abs=5e-4)
    # One prompt more or less is 0.008 of 63 and 0.002 of 218: the ends of a bootstrap lie on such a grid.
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high), abs=0.5 / found.estimate.n + 0.004)
    assert found.p == pytest.approx(p, rel=0.02 if p > 0.1 else 0.35, abs=5e-4)
    assert found.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)


def test_the_sign_test_needs_32_of_49_and_88_of_150_decisive_prompts() -> None:
    assert sign_test(32, 17) > 0.04
    assert sign_test(31, 18) > 0.05 > sign_test(32, 17)
    assert sign_test(87, 63) > 0.05 > sign_test(88, 62)
    assert sign_test(0, 0) == sign_test(5, 5) == 1.0
    assert sign_test(6, 0) == pytest.approx(2 / 64)


def test_a_prompt_scores_the_mean_of_its_graded_verdicts_and_strictly_only_what_both_orders_say() -> None:
    first, second = [1, 1, 1, None, None, 0], [1, 0, -1, -1, None, -1]
    found = item_scores(np.stack([np.array(first, float), np.array(second, float)], axis=1))
    assert found.tolist() == pytest.approx([1, 0.75, 0.5, 0, math.nan, 0.25], nan_ok=True)
    assert strict_verdicts(first, second).tolist() == pytest.approx([1, 0, 0, math.nan, math.nan, 0], nan_ok=True)
    assert item_scores([1, 0, -1, None]).tolist() == pytest.approx([1, 0.5, 0, math.nan], nan_ok=True)


def test_a_paired_difference_is_that_of_the_two_rates_and_narrower_than_if_they_were_apart() -> None:
    random = np.random.default_rng(0)
    easy = random.uniform(size=300)
    one = (random.uniform(size=300) < easy * 0.9 + 0.1).astype(float)
    other = np.where(random.uniform(size=300) < 0.8, one, (random.uniform(size=300) < easy).astype(float))
    found = paired_difference(one, other, bootstrap=BOOTSTRAP)
    assert found.estimate.value == pytest.approx(one.mean() - other.mean())
    assert (found.wins, found.losses) == ((one > other).sum(), (one < other).sum())
    apart = math.hypot(*(win_rate(each, bootstrap=BOOTSTRAP).estimate.half_width for each in (one, other)))
    assert found.estimate.half_width < 0.7 * apart
    swapped = paired_difference(other, one, bootstrap=BOOTSTRAP)
    assert (swapped.estimate.low, swapped.estimate.high) == pytest.approx((-found.estimate.high, -found.estimate.low))


def test_intervals_agree_with_scipys_on_the_same_data() -> None:
    column = np.random.default_rng(1).gamma(0.7, size=40)
    for kind, name in (("percentile", "percentile"), ("bca", "BCa")):
        own = mean_of(column, Bootstrap(seed=0, draws=50_000, interval=kind))  # type: ignore[arg-type]
        other = stats.bootstrap(
            (column,), np.mean, n_resamples=50_000, method=kind, vectorized=True, rng=np.random.default_rng(2)
        ).confidence_interval
        assert (own.low, own.high) == pytest.approx((other.low, other.high), abs=0.012)
        assert own.method == f"{name} bootstrap over 40 prompts, 50,000 draws, seed 0"
    percentile, bca = (mean_of(column, Bootstrap(seed=0, interval=kind)) for kind in ("percentile", "bca"))  # type: ignore[arg-type]
    assert bca.high > percentile.high + 0.01, "the long tail is upwards"


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    column = np.random.default_rng(0).uniform(size=700)
    assert mean_of(column, BOOTSTRAP) == mean_of(column, Bootstrap(seed=0))
    assert mean_of(column, BOOTSTRAP).low != mean_of(column, Bootstrap(seed=1)).low
    drawn = np.concatenate(list(BOOTSTRAP.weights(700)))
    assert drawn.shape == (10_000, 700)
    assert (drawn.sum(axis=1) == 700).all()
    assert drawn.var() == pytest.approx(1 - 1 / 700, rel=0.01)


def test_resampling_battles_instead_of_prompts_makes_intervals_half_as_wide_as_they_are() -> None:
    """Two orders of two judges on a prompt are four battles that nearly always end alike."""
    random = np.random.default_rng(0)
    prompts, battles = 300, 4
    lean = random.choice([0.02, 0.5, 0.98], p=[0.35, 0.2, 0.45], size=(2000, prompts))
    won = (random.uniform(size=(2000, prompts, battles)) < lean[..., None]).astype(float)
    true = won.mean(axis=(1, 2)).std()
    one = won[0]
    clustered = share(one.ravel(), np.ones(one.size), np.repeat(np.arange(prompts), battles), bootstrap=BOOTSTRAP)
    battle = share(one.ravel(), np.ones(one.size), None, bootstrap=BOOTSTRAP)
    assert (clustered.n, battle.n) == (prompts, prompts * battles)
    assert clustered.half_width / 1.96 == pytest.approx(true, rel=0.1)
    assert battle.half_width / 1.96 < 0.6 * true
    assert win_rate(one.mean(axis=1), bootstrap=BOOTSTRAP).estimate.half_width == pytest.approx(
        clustered.half_width, rel=0.05
    )


@pytest.mark.parametrize("n", [1, 10, 63])
def test_prompts_that_were_all_won_leave_room_for_what_so_few_can_have_missed(n: int) -> None:
    exact = stats.binomtest(n, n).proportion_ci(method="exact")
    found = win_rate(np.ones(n), bootstrap=BOOTSTRAP).estimate
    assert (found.low, found.high) == pytest.approx((exact.low, 1.0))
    lost = win_rate(np.zeros(n), bootstrap=BOOTSTRAP).estimate
    assert (lost.low, lost.high) == pytest.approx((0.0, 1 - exact.low))
    tied = win_rate(np.full(n, 0.5), bootstrap=BOOTSTRAP).estimate
    assert tied.low == pytest.approx(exact.low / 2)
    assert tied.low + tied.high == pytest.approx(1)
    assert "can have missed" in tied.method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate([], bootstrap=BOOTSTRAP), "no items"),
        (lambda: win_rate([1.0, math.nan], bootstrap=BOOTSTRAP), r"scores\[1\] is nan: leave out"),
        (lambda: win_rate([[1.0, 0.0]], bootstrap=BOOTSTRAP), r"shape \(1, 2\)"),
        (lambda: win_rate([1.0, 2.0], bootstrap=BOOTSTRAP), "scores go from 1 to 2"),
        (lambda: paired_difference([1.0], [1.0, 0.0], bootstrap=BOOTSTRAP), "unlike numbers.*1 first, 2 second"),
        (lambda: paired_difference([9.0, 3], [1.0, 0], bootstrap=BOOTSTRAP), "say other bounds"),
        (lambda: item_scores([1, 2]), "2.0 is no verdict"),
        (lambda: strict_verdicts([1], [1, 0]), "1 verdicts in the first order and 2"),
        (lambda: sign_test(-1, 2), "can not be negative"),
        (lambda: Bootstrap(seed=0, draws=1999), "1999 draws are too few"),
        (lambda: Bootstrap(seed=0, interval="normal"), "neither"),  # type: ignore[arg-type]
        (lambda: mean([1.0], bootstrap=BOOTSTRAP), "too few"),
        (lambda: share([True], [False], None, bootstrap=BOOTSTRAP), "not one case"),
        (lambda: share([1, 0], [1, 1], ["a"], bootstrap=BOOTSTRAP), "1 prompts are named for 2 rows"),
    ],
)
def test_rows_that_tell_nothing_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_figure_that_many_resamples_leave_undefined_is_no_estimate() -> None:
    def of_the_first(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] > 0, 1.0 + weights[:, 1], np.nan)

    with pytest.raises(NoEstimate, match="too few, or too much alike"):
        estimate(of_the_first, n=10, bootstrap=BOOTSTRAP)

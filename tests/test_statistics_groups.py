"""Skills, bands, capacity, many tests at once, and rank correlations: the figures of the published test set."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, NoEstimate
from wizard_jax.evaluate.statistics.capacity import capacity
from wizard_jax.evaluate.statistics.multiple import by_group, detectable_effect, half_width, holm, pooled
from wizard_jax.evaluate.statistics.rank import eta_squared, spearman
from wizard_jax.evaluate.statistics.wins import win_rate

BOOTSTRAP = Bootstrap(seed=0)
QUICK = Bootstrap(seed=0, draws=2_000)

TEST_SET = Path(__file__).parents[2] / "shared" / "data" / "WizardLM_testset.jsonl"


def _by_skill(table: dict[int, str]) -> dict[str, int]:
    return {skill: figure for figure, skills in table.items() for skill in skills.split(", ")}


COUNTS = _by_skill(
    {
        19: "Math",
        18: "Code Generation, Writting",
        15: "Computer Science",
        13: "Reasoning",
        12: "Complex Format",
        10: "Code Debug",
        9: "Common-Sense",
        8: "Counterfactual",
        7: "Multilingual",
        6: "Roleplay, Biology, Technology, Ethics",
        5: "TruthfulQA, Sport, Law, Medicine, Literature, Entertainment, Art, Music, Economy, Physics",
        4: "Toxicity, History, Academic Writing",
        2: "Chemistry",
        1: "Philosophy",
    }
)
"""nlpxucan/WizardLM, WizardLM/data/WizardLM_testset.jsonl: items by skill."""

BARS_30B = _by_skill(
    {
        136: "Toxicity",
        113: "Academic Writing",
        108: "Chemistry, Ethics",
        107: "Music, Sport, Physics",
        106: "Common-Sense",
        105: "Literature",
        104: "Economy",
        102: "Roleplay",
        101: "Counterfactual, History, Reasoning, Biology, Technology",
        100: "Entertainment, Philosophy",
        98: "Law, Writting",
        97: "Medicine",
        96: "TruthfulQA",
        93: "Computer Science",
        92: "Art",
        89: "Math, Code Generation",
        87: "Multilingual, Complex Format",
        83: "Code Debug",
    }
)
"""Percent of ChatGPT by skill: the bars of WizarLM30b-GPT4.png there."""


# --- capacity


def test_the_published_bars_are_97_5_by_item_and_100_6_by_skill() -> None:
    skills = [skill for skill, count in COUNTS.items() for _ in range(count)]
    scores = [BARS_30B[skill] / 10 for skill in skills]
    found = capacity(scores, [10.0] * 218, skills, bootstrap=BOOTSTRAP)
    assert found.item_weighted.value * 100 == pytest.approx(97.5, abs=0.05)
    assert found.skill_mean.value * 100 == pytest.approx(100.6, abs=0.05)
    assert found.item_weighted.n == 218
    assert all(one is None for one in found.skills.values()), "within a skill all items are alike here"


def test_a_ratio_of_sums_counts_each_item_as_its_baseline_score() -> None:
    found = capacity([4, 2, 9, 9], [8, 8, 9, 9], ["Math", "Math", "History", "History"], bootstrap=QUICK)
    assert found.item_weighted.value == pytest.approx(24 / 34)
    assert found.skill_mean.value == pytest.approx((6 / 16 + 1) / 2)
    math_, history = found.skills["Math"], found.skills["History"]
    assert math_ is not None
    assert math_.value == 6 / 16
    assert math_.n == 2
    assert history is None


def test_capacity_and_win_rate_can_disagree_in_sign() -> None:
    scores, baseline = np.array([8.0] * 60 + [1.0] * 40), np.array([7.0] * 60 + [9.0] * 40)
    found = capacity(scores, baseline, ["Math"] * 100, bootstrap=QUICK)
    assert found.item_weighted.high < 1
    assert win_rate((scores > baseline).astype(float), bootstrap=QUICK).estimate.low > 0.5


@pytest.mark.parametrize(
    ("scores", "baseline", "skills", "message"),
    [
        ([1, 2], [0, 3], ["a", "b"], "scores 0 on all items of a"),
        ([1, -2], [1, 3], ["a", "b"], "below 0"),
        ([1, 2], [1, 3], ["a"], "1 skills are named for 2"),
        ([2], [3], ["a"], "1 items are too few"),
    ],
)
def test_what_has_no_capacity_is_refused(
    scores: list[float], baseline: list[float], skills: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        capacity(scores, baseline, skills, bootstrap=QUICK)


# --- many groups


def test_skills_under_20_items_are_pooled_into_families_first() -> None:
    skills = [skill for skill, count in COUNTS.items() for _ in range(count)]
    assert set(pooled(skills)) == {"other skills"}, "not one of the 29 skills has 20 items"
    families = {"Code Generation": "Code", "Code Debug": "Code", "Computer Science": "Code", "Math": "Mathematics"}
    counts = Counter(pooled(skills, families=families))
    assert counts == {"Code": 43, "other skills": 175}
    assert Counter(pooled(skills, least=15)) == {
        "Math": 19,
        "Code Generation": 18,
        "Writting": 18,
        "Computer Science": 15,
        "other skills": 148,
    }


def test_each_group_has_its_own_rate_n_and_corrected_p_and_small_ones_no_claim() -> None:
    scores = np.concatenate([np.repeat([1.0, 0], [24, 6]), np.repeat([1.0, 0], [18, 12]), np.ones(8)])
    groups = ["Math"] * 30 + ["Code"] * 30 + ["Law"] * 8
    found = by_group(scores, groups, bootstrap=QUICK)
    assert [(one.name, one.comparison.estimate.n) for one in found] == [("Math", 30), ("Code", 30), ("Law", 8)]
    for one in found:
        assert one.comparison == win_rate(scores[np.array(groups) == one.name], bootstrap=QUICK)
    assert found[0].holm == pytest.approx(2 * found[0].comparison.p)
    assert found[1].holm == pytest.approx(found[1].comparison.p)
    assert found[2].holm is None
    assert found[2].comparison.p < 0.01
    with pytest.raises(ValueError, match="3 groups are named for 2"):
        by_group([1, 0], ["a"] * 3, bootstrap=QUICK)


def test_holm_corrects_step_by_step() -> None:
    # By hand: 4 * .005, then 3 * .01, 2 * .03, and .04, none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"lies in 0\.\.1"):
        holm([1.2])


@pytest.mark.parametrize(
    ("n", "half", "least"),
    [
        (63, 0.101, 0.145),
        (80, 0.090, 0.128),
        (218, 0.054, 0.078),
        (300, 0.046, 0.066),
        (541, 0.035, 0.049),
        (805, 0.028, 0.040),
        (1319, 0.022, 0.032),
    ],
)
def test_what_so_many_prompts_can_show(n: int, half: float, least: float) -> None:
    assert half_width(n) == pytest.approx(half, abs=6e-4)
    assert detectable_effect(n) == pytest.approx(least, abs=6e-4)


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    n, deviation = 218, 0.41
    gaps = random.normal(detectable_effect(n, deviation=deviation), deviation, size=(4000, n))
    z = gaps.mean(axis=1) / gaps.std(axis=1, ddof=1) * math.sqrt(n)
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("n", "deviation", "power"), [(0, 0.4, 0.8), (9, -1, 0.8), (9, 0.4, 0.2), (9, 0.4, 1.0)])
def test_what_can_not_be_planned_is_refused(n: int, deviation: float, power: float) -> None:
    with pytest.raises(ValueError, match="plan"):
        detectable_effect(n, deviation=deviation, power=power)


# --- ranks


def test_ranks_in_a_resample_are_those_of_ranking_it_anew() -> None:
    """So the interval is the plain bootstrap's, here against one of its draws at a time."""
    random = np.random.default_rng(0)
    first, second = random.integers(0, 8, size=40), random.integers(0, 8, size=40) + random.integers(0, 2, size=40)
    found = spearman(first, second, bootstrap=QUICK)
    assert found.value == pytest.approx(stats.spearmanr(first, second).statistic)
    drawn = []
    for weights in QUICK.weights(40):
        for row in weights.astype(int):
            index = np.repeat(np.arange(40), row)
            drawn.append(stats.spearmanr(first[index], second[index]).statistic if len(drawn) < 300 else np.nan)
    low = spearman(first, second, bootstrap=QUICK).low
    assert np.nanmean(np.array(drawn) < low) == pytest.approx(0.025, abs=0.025)
    assert np.nanquantile(drawn, 0.5) == pytest.approx(found.value, abs=0.05)


def test_length_is_taken_out_by_its_ranks() -> None:
    random = np.random.default_rng(1)
    length = random.normal(size=300)
    first, second = (length + random.normal(size=300) for _ in range(2))
    assert spearman(first, second, bootstrap=QUICK).low > 0.25
    partial = spearman(first, second, without=length, bootstrap=QUICK)
    assert partial.low < 0 < partial.high
    ranks = [stats.rankdata(each) for each in (first, second, length)]
    left = [rank - np.polyval(np.polyfit(ranks[2], rank, 1), ranks[2]) for rank in ranks[:2]]
    assert partial.value == pytest.approx(np.corrcoef(*left)[0, 1])


def test_within_groups_only_differences_inside_a_group_count() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(["a", "b", "c"], 100)
    shift = np.repeat([0.0, 5.0, 10.0], 100)
    first, second = (shift + random.normal(size=300) for _ in range(2))
    assert spearman(first, second, bootstrap=QUICK).low > 0.7
    within = spearman(first, second, within=groups, bootstrap=QUICK)
    assert within.low < 0 < within.high
    ranks = [stats.rankdata(each) for each in (first, second)]
    left = [rank - np.repeat([rank[groups == g].mean() for g in "abc"], 100) for rank in ranks]
    assert within.value == pytest.approx(np.corrcoef(*left)[0, 1])
    both = spearman(first, second, within=groups, without=random.normal(size=300), bootstrap=QUICK)
    assert abs(both.value - within.value) < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spearman([1, 2, 3], [5, 5, 5], bootstrap=QUICK), "too much alike"),
        (lambda: spearman([1, 2, 3], [5, 5], bootstrap=QUICK), "unlike numbers"),
        (lambda: spearman([1, 2, 3], [5, 6, 7], within=["a"], bootstrap=QUICK), "1 groups"),
        (lambda: spearman([1, 2, 3], [5, 6, 7], within=["a", "b", "c"], bootstrap=QUICK), "too much alike"),
        (lambda: spearman([1, 2, 3, 4] * 9, [2, 1, 3, 4] * 9, without=[1, 2, 3, 4] * 9, bootstrap=QUICK), "alike"),
        (lambda: eta_squared([1, 2], ["a"]), "1 groups"),
    ],
)
def test_what_has_no_rank_correlation_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the published test set


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    if not TEST_SET.exists():
        pytest.skip("the WizardLM test set is not here")
    return [json.loads(line) for line in TEST_SET.read_text(encoding="utf-8").splitlines()]


def test_the_test_set_has_these_skills_and_bands(rows: list[dict]) -> None:
    assert len(rows) == 218
    assert Counter(row["Skill"] for row in rows) == COUNTS
    histogram = Counter(row["Difficulty"] for row in rows)
    assert [histogram[level] for level in range(1, 11)] == [11, 19, 27, 23, 9, 42, 24, 39, 13, 11]
    bands = ["easy" if row["Difficulty"] <= 4 else "hard" if row["Difficulty"] >= 8 else "medium" for row in rows]
    groups = by_group([0.5] * 218, bands, bootstrap=QUICK)
    assert {one.name: one.comparison.estimate.n for one in groups} == {"easy": 80, "medium": 75, "hard": 63}
    assert sum(count <= 5 for count in COUNTS.values()) == 15
    assert sum(count <= 10 for count in COUNTS.values()) == 23


def test_skill_explains_30_percent_of_difficulty_and_length_a_little(rows: list[dict]) -> None:
    difficulty = [row["Difficulty"] for row in rows]
    assert eta_squared(difficulty, [row["Skill"] for row in rows]) == pytest.approx(0.303, abs=5e-4)
    lengths = [len(row["Instruction"].split()) for row in rows]
    found = spearman(difficulty, lengths, bootstrap=BOOTSTRAP)
    assert found.value == pytest.approx(0.27, abs=0.005)
    assert (found.low, found.high) == pytest.approx((0.15, 0.38), abs=0.015)


def test_near_duplicates_of_the_test_set_carry_other_difficulties(rows: list[dict]) -> None:
    shingles = {}
    for row in rows:
        text = row["Instruction"].lower().split()
        shingles[row["idx"]] = {tuple(text[k : k + 3]) for k in range(len(text) - 2)}
    level = {row["idx"]: row["Difficulty"] for row in rows}
    near = {}
    for one, other in combinations(sorted(shingles), 2):
        a, b = shingles[one], shingles[other]
        if a and b and (jaccard := len(a & b) / len(a | b)) > 0.6:
            near[one, other] = (round(jaccard, 2), level[one], level[other])
    assert near[57, 64] == (1.0, 9, 8)
    assert near[59, 61][0] == 0.93
    assert near[145, 146] == (0.68, 8, 7)
    assert len({row["Instruction"] for row in rows}) == 218


def test_an_estimate_that_these_data_do_not_determine_is_told_apart_from_bad_rows() -> None:
    with pytest.raises(NoEstimate):
        spearman([1, 2], [5, 5], bootstrap=QUICK)
    with pytest.raises(ValueError, match="is nan") as refused:
        spearman([1, math.nan], [5, 6], bootstrap=QUICK)
    assert not isinstance(refused.value, NoEstimate)

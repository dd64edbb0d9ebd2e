"""Sections of an evaluation's page on who is better than whom: verdicts, strengths and capacities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_gen.page import Content, element, table
from wizard_jax.evaluate.statistics.multiple import LEAST
from wizard_jax.report.claims import interval
from wizard_jax.report.figures import Point, bars, radar
from wizard_jax.report.reading import Evaluation, Parts

RATE = (0.0, 1.0)
EVEN = 0.5
_CORNERS = 3
"""A radar of fewer skills is a line."""

RULE = (
    "An item's score is the mean over judges, orders and samples of 1 for a win, 0.5 for a tie and 0 for a loss; the "
    "win rate is the mean score. Strict verdicts, of which there is one for each judge and pair of answers, are wins "
    "only where both orders say so. Intervals are of 95 %, by resampling items."
)
EQUAL_LENGTH = (
    "At equal length: a logistic fit on these items says what the win rate would be were each answer as long as the "
    "one that it is compared with."
)


def verdicts_section(evaluation: Evaluation) -> Parts:
    """Of every comparison: win rate, counts, sign test, strict verdicts; raw beside equal length; skills and bands."""
    comparisons = evaluation.results.get("comparisons", [])
    if not comparisons:
        return []
    judged = [one for one in comparisons if "none" not in one["win_rate"]]
    head = ("comparison", "win rate", "wins / ties / losses", "sign test p", "at equal length", "strict w / t / l")
    rows = [(_pair(one, evaluation), *_cells(one)) for one in comparisons]
    parts: Parts = [table(head, rows), element("p", RULE)]
    if not judged:
        return parts
    points = [point for one in judged for point in _raw_and_equal(one, evaluation)]
    parts += [
        bars(
            points,
            name="win rates",
            caption="Win rates as counted, and at equal length; above 0.5 the first model of the pair is ahead.",
            x_label="win rate",
            reference=EVEN,
            limits=RATE,
        ),
        element("p", EQUAL_LENGTH),
        *(
            element("p", f"Unknown for {_pair(one, evaluation)}: {one['length_controlled']['none']}.")
            for one in judged
            if "none" in one["length_controlled"]
        ),
        table(
            ("comparison", "items graded", "known to", "smallest effect", "mean characters", "judges that count"),
            [
                (_pair(one, evaluation), _graded(one), *_detectable(one), _lengths(one), ", ".join(one["judges"]))
                for one in judged
            ],
        ),
        element(
            "p",
            "The smallest effect is the true distance of the win rate from 0.5 that so many items find four "
            "times in five (two-sided, p below 0.05), with scores that deviate as much as on public pairs of answers.",
        ),
    ]
    for one in judged:
        parts += _groups(one, evaluation)
    return parts


def _pair(comparison: Mapping[str, Any], evaluation: Evaluation) -> str:
    return " against ".join(evaluation.called[comparison[role]] for role in ("candidate", "baseline"))


def _cells(comparison: Mapping[str, Any]) -> tuple[str, ...]:
    rate = comparison["win_rate"]
    if "none" in rate:
        return (rate["none"], "", "", "", "")
    strict, length = comparison["strict"], comparison["length_controlled"]
    return (
        interval(rate["estimate"]),
        _counts(rate),
        _p(rate["p"]),
        "unknown" if "none" in length else interval(length["controlled"]),
        _counts(strict),
    )


def _counts(found: Mapping[str, Any]) -> str:
    return f"{found['wins']} / {found['ties']} / {found['losses']}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _graded(comparison: Mapping[str, Any]) -> str:
    return f"{comparison['graded']:,} of {comparison['items']:,}"


def _detectable(comparison: Mapping[str, Any]) -> tuple[str, str]:
    return f"±{comparison['half_width']:.3f}", f"{comparison['detectable_effect']:.3f}"


def _lengths(comparison: Mapping[str, Any]) -> str:
    return " and ".join(f"{length:,.0f}" for length in comparison["mean_lengths"])


def _raw_and_equal(comparison: Mapping[str, Any], evaluation: Evaluation) -> list[Point]:
    pair, length = _pair(comparison, evaluation), comparison["length_controlled"]
    found = [Point.of(comparison["win_rate"]["estimate"], group=pair, series="as counted")]
    if "none" not in length:
        found.append(Point.of(length["controlled"], group=pair, series="at equal length"))
    return found


def _groups(comparison: Mapping[str, Any], evaluation: Evaluation) -> Parts:
    """By skill, smallest skills pooled, and by band of difficulty."""
    pair = _pair(comparison, evaluation)
    parts: Parts = []
    skills, bands = comparison["by_skill"], comparison["by_band"]
    if skills or bands:
        parts.append(element("h3", pair))
    if skills:
        parts += _drawn(_points(skills, pair), name=f"by skill: {pair}", what="skill", is_ranked=True)
        parts.append(_group_table("skill", skills))
    if bands:
        parts += _drawn(_points(bands, pair), name=f"by difficulty: {pair}", what="band of difficulty", is_ranked=False)
        parts.append(_group_table("band of difficulty", bands))
    return parts


def _points(groups: Sequence[Mapping[str, Any]], pair: str) -> list[Point]:
    return [Point.of(one["comparison"]["estimate"], group=one["name"] or "none named", series=pair) for one in groups]


def _drawn(points: list[Point], *, name: str, what: str, is_ranked: bool) -> Parts:
    """Bars, from the highest down where they have no order of their own; then also a radar, if it has a shape."""
    ordered = sorted(points, key=lambda point: -point.value) if is_ranked else points
    parts: Parts = [
        bars(
            ordered,
            name=name,
            caption=f"Win rate by {what}, with 95 % intervals and the number of items.",
            x_label="win rate",
            reference=EVEN,
            limits=RATE,
        )
    ]
    if is_ranked and len(points) >= _CORNERS:
        caption = f"The same by {what} as a radar; the ribbon is the 95 % interval, the broken circle is even."
        parts.append(radar(points, name=f"{name} (radar)", caption=caption, limits=RATE, reference=EVEN))
    return parts


def _group_table(what: str, groups: Sequence[Mapping[str, Any]]) -> Content:
    rows = []
    for one in groups:
        found = one["comparison"]
        corrected = f"under {LEAST} items: no claim" if one["holm"] is None else _p(one["holm"])
        estimate = found["estimate"]
        rows.append((one["name"] or "none named", estimate["n"], interval(estimate), _counts(found), corrected))
    return table((what, "items", "win rate", "wins / ties / losses", "sign test p, after Holm"), rows)


def strengths_section(evaluation: Evaluation) -> Parts:
    """Bradley-Terry strengths of three or more models."""
    found = evaluation.results.get("strengths")
    if found is None:
        return []
    if "none" in found:
        return [element("p", f"There are none to tell: {found['none']}.")]
    called = evaluation.called
    points = [Point.of(one["strength"], group=called[one["model"]], series="strength") for one in found["models"]]
    caption = "Strengths (Bradley and Terry, with ties as Davidson has them), strongest first; their mean is 0."
    return [
        bars(points, name="strengths", caption=caption, x_label="strength, in log odds", reference=0.0),
        table(
            ("stronger", "weaker", "gap of strengths", "expected score of the stronger"),
            [
                (called[one["stronger"]], called[one["weaker"]], interval(one["gap"], 2), interval(one["score"]))
                for one in found["pairs"]
            ],
        ),
        element(
            "p",
            "Gaps are in log odds, 1 being 174 points of Elo; the order of two is known where the interval is above 0. "
            f"Equal models would tie in {interval(found['ties'])} of comparisons.",
        ),
    ]


def capacity_section(evaluation: Evaluation) -> Parts:
    """Graded scores relative to the baseline's: weighted by items as published, and the plain mean of skills."""
    found = evaluation.results.get("capacity")
    if found is None:
        return []
    baseline = evaluation.config.baseline
    if not baseline:
        return [element("p", "The config names no baseline, so there is nothing that grades could be relative to.")]
    if not found:
        return [element("p", "No judge that counts graded answers of a model and of the baseline to one item.")]
    rows, points = [], []
    for name, told in found.items():
        model, (own, other) = evaluation.called[name], told["mean_grades"]
        whole = (
            ("unknown", "unknown")
            if "none" in told
            else (interval(told["item_weighted"]), interval(told["skill_mean"]))
        )
        rows.append((model, *whole, f"{own:.2f}", f"{other:.2f}", told["items"]))
        skills = [(skill, one) for skill, one in told.get("skills", {}).items() if one is not None]
        if len(skills) > 1:
            points += [Point.of(one, group=skill or "none named", series=model) for skill, one in skills]
    head = ("model", "weighted by items (as published)", "plain mean of skills", "mean grade")
    parts: Parts = [
        table((*head, f"of {evaluation.called[baseline]}", "items"), rows),
        element(
            "p",
            f"Ratios to {evaluation.called[baseline]}; times 100 they are percent. Weighted by items, an item counts "
            "as the baseline's grade of it; in the plain mean, a skill of one item counts as much as one of twenty.",
        ),
        *(
            element("p", f"Unknown for {evaluation.called[name]}: {told['none']}.")
            for name, told in found.items()
            if "none" in told
        ),
    ]
    if points:
        caption = "Capacity by skill, with 95 % intervals and the number of items; few items say little."
        ordered = sorted(points, key=lambda point: -point.value)
        parts.append(
            bars(ordered, name="capacity by skill", caption=caption, x_label="of the baseline's", reference=1.0)
        )
    return parts

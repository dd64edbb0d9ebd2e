"""What the verdicts and grades of the judges that count come to: who is better than whom, where, and how surely."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.judging.rows import Graded, Verdict
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, NoEstimate
from wizard_jax.evaluate.statistics.capacity import capacity
from wizard_jax.evaluate.statistics.models import bradley_terry, length_controlled
from wizard_jax.evaluate.statistics.multiple import by_group, detectable_effect, half_width, pooled
from wizard_jax.evaluate.statistics.wins import win_rate

Told = dict[str, Any]
"""Plain values, as results.json has them; where a figure can not be had, {"none": why}."""


def comparisons(
    verdicts: Iterable[Verdict],
    pairings: Sequence[tuple[str, str]],
    items: Sequence[Item],
    *,
    counted: Collection[str],
    families: Mapping[str, str],
    bootstrap: Bootstrap,
) -> list[Told]:
    """Of each (candidate, baseline) what the judges in `counted` say; an item's score is the mean of all of theirs."""
    rows = [row for row in verdicts if row.judge in counted]
    known = {item.id: item for item in items}
    return [
        _comparison(
            candidate,
            baseline,
            [row for row in rows if (row.candidate, row.baseline) == (candidate, baseline)],
            known,
            families=families,
            bootstrap=bootstrap,
        )
        for candidate, baseline in pairings
    ]


def _comparison(
    candidate: str,
    baseline: str,
    rows: Sequence[Verdict],
    items: Mapping[str, Item],
    *,
    families: Mapping[str, str],
    bootstrap: Bootstrap,
) -> Told:
    told: Told = {
        "candidate": candidate,
        "baseline": baseline,
        "judges": list(dict.fromkeys(row.judge for row in rows)),
    }
    scored: dict[str, list[float]] = defaultdict(list)
    lengths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            scored[row.item].append(row.score)
            lengths[row.item].append(row.lengths)
    asked = len({row.item for row in rows})
    told |= {"items": asked, "graded": len(scored)}
    if not scored:
        return {**told, "win_rate": {"none": "no judge that counts graded a pair of them"}}
    ids = list(scored)
    scores = np.array([np.mean(scored[item]) for item in ids])
    own, other = np.array([np.mean(lengths[item], axis=0) for item in ids]).T
    bands = [items[item].band for item in ids]
    skills = pooled([items[item].skill for item in ids], families=families)
    return {
        **told,
        "win_rate": asdict(win_rate(scores, bootstrap=bootstrap)),
        "strict": _strict(rows),
        "length_controlled": _or_why(lambda: length_controlled(scores, own, other, bootstrap=bootstrap)),
        "mean_lengths": [float(own.mean()), float(other.mean())],
        "half_width": half_width(len(ids)),
        "detectable_effect": detectable_effect(len(ids)),
        "by_skill": _groups(scores, skills, bootstrap=bootstrap),
        "by_band": _groups(scores, bands, bootstrap=bootstrap),
    }


def _strict(rows: Sequence[Verdict]) -> dict[str, int]:
    """Verdicts (of each judge and sample) that both orders give, FastChat's rule: a tie where they differ."""
    found = Counter(row.strict for row in rows)
    return {name: found[value] for name, value in (("wins", 1), ("ties", 0), ("losses", -1), ("not_graded", None))}


def _groups(scores: np.ndarray, groups: Sequence[str], *, bootstrap: Bootstrap) -> list[Told]:
    if len(set(groups)) < 2:
        return []
    return [asdict(group) for group in by_group(scores, groups, bootstrap=bootstrap)]


def strengths(verdicts: Iterable[Verdict], *, counted: Collection[str], bootstrap: Bootstrap) -> Told:
    """Bradley-Terry strengths of three or more models, from every verdict in every order."""
    rows = [
        (row.candidate, row.baseline, said, row.item)
        for row in verdicts
        if row.judge in counted
        for said in (row.first, row.second)
        if said is not None
    ]
    if not rows:
        return {"none": "no judge that counts graded any pair"}
    candidates, baselines, said, items = zip(*rows, strict=True)
    return _or_why(lambda: bradley_terry(candidates, baselines, said, prompts=items, bootstrap=bootstrap))


def capacities(
    grades: Iterable[Graded],
    models: Sequence[str],
    items: Sequence[Item],
    *,
    baseline: str,
    counted: Collection[str],
    bootstrap: Bootstrap,
) -> dict[str, Told]:
    """Of each model but the baseline: its graded scores relative to the baseline's, by model.

    A grade counts where the same judge graded the baseline's answer of the same turn and sample too: what one judge
    alone gave would compare judges, and what one turn alone got would compare turns.
    """
    known = {item.id: item for item in items}
    given: dict[str, dict[tuple[str, str, int, int], float]] = defaultdict(dict)
    for row in grades:
        if row.judge in counted and row.grade is not None:
            given[row.model][row.item, row.judge, row.turn, row.sample] = row.grade
    found = {}
    for model in models:
        both: dict[str, list[tuple[float, float]]] = defaultdict(list)
        judges: dict[str, None] = {}
        for key, grade in given[model].items():
            if key in given[baseline]:
                both[key[0]].append((grade, given[baseline][key]))
                judges[key[1]] = None
        if model == baseline or not both:
            continue
        shared = list(both)
        own, other = np.array([np.mean(both[item], axis=0) for item in shared]).T.tolist()
        skills = [known[item].skill for item in shared]
        found[model] = {
            "judges": list(judges),
            "items": len(shared),
            "mean_grades": [float(np.mean(own)), float(np.mean(other))],
            **_or_why(functools.partial(capacity, own, other, skills, bootstrap=bootstrap)),
        }
    return found


def _or_why(figure: Callable[[], Any]) -> Told:
    try:
        return asdict(figure())
    except NoEstimate as error:
        return {"none": str(error)}

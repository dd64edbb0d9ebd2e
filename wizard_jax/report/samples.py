"""Sections of an evaluation's page that show what was said: pairs with both orders' reasons, or answers with scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from data_gen.page import Content, Html, element, join
from data_gen.report_lineages import cut
from wizard_jax.evaluate.judging.rows import Verdict
from wizard_jax.report.reading import Evaluation, Parts

DISPUTED, OTHERS = 8, 4
"""Pairs shown of those on which judges or orders disagree, and of all others."""

UNJUDGED = 8
"""Items shown where there are no judges."""

WHY = (
    "judges that count disagree",
    "a judge that counts turned round with the order",
    "a judge that counts did not grade it",
    "judges disagree, of which some do not count",
    "a judge that does not count turned round with the order",
    "no disagreement",
)
"""Why a pair is shown, the most telling first."""


def samples_section(evaluation: Evaluation) -> Parts:
    """Pairs of answers with what every judge said in both orders; disagreements first."""
    pairs: dict[tuple[str, str, str, int], list[Verdict]] = defaultdict(list)
    for row in evaluation.verdicts():
        pairs[row.item, row.candidate, row.baseline, row.sample].append(row)
    if not pairs:
        return _unjudged(evaluation)
    counted = {name for name, told in evaluation.results["judges"].items() if told["counts"]}
    why = {key: why_shown(rows, counted=counted) for key, rows in pairs.items()}
    ordered = sorted(pairs, key=lambda key: WHY.index(why[key]))
    chosen = [key for key in ordered if why[key] != WHY[-1]][:DISPUTED]
    rest = ordered[len(chosen) :]
    if rest:
        chosen += rest[:: -(-len(rest) // OTHERS)]
    answers = {(row["model"], row["id"], row["sample"]): row for row in evaluation.answers()}
    disputed = sum(one in WHY[:2] for one in why.values())
    told = (
        f"{len(chosen)} of {len(pairs):,} pairs of answers, the most telling first: judges that count, or their "
        f"orders, disagree on {disputed:,}. Long texts are cut here; the rows are whole in answers.jsonl and "
        "verdicts.jsonl."
    )
    return [element("p", told), *(_pair(pairs[key], why[key], answers, evaluation) for key in chosen)]


def why_shown(rows: Sequence[Verdict], *, counted: set[str]) -> str:
    """Which of `WHY` holds of what all judges said of one pair: the first that does."""
    whose = [row for row in rows if row.judge in counted]
    for found, (disagree, turned, missing) in ((whose, WHY[:3]), (rows, (*WHY[3:5], WHY[-1]))):
        scores = [row.score for row in found if row.score is not None]
        if scores and min(scores) < 0.5 < max(scores):
            return disagree
        if any(row.strict is not None and row.first != row.second for row in found):
            return turned
        if any(row.strict is None for row in found):
            return missing
    return WHY[-1]


def _pair(
    rows: Sequence[Verdict],
    why: str,
    answers: Mapping[tuple[str, str, int], Mapping[str, Any]],
    evaluation: Evaluation,
) -> Html:
    first = rows[0]
    own, other = (answers[model, first.item, first.sample] for model in (first.candidate, first.baseline))
    names = evaluation.called[first.candidate], evaluation.called[first.baseline]
    sides = (_answer(own, names[0]), _answer(other, names[1]))
    return element(
        "div",
        element("h3", _item(own)),
        element("p", element("span", why, css="tag")),
        _texts(own["turns"]),
        element("div", *sides, css="plots"),
        *(_said(row, names) for row in rows),
        css="item",
    )


def _said(row: Verdict, names: tuple[str, str]) -> Html:
    if row.how == "identical":
        return element("p", element("b", row.judge), " was not asked: the answers are the same, a tie.")
    orders = zip(names, (row.first, row.second), row.reasons, row.problems, strict=True)
    shown = (
        element(
            "div",
            element("p", f"{name} shown first: ", element("b", _verdict(verdict, names))),
            *(element("pre", cut(text)) for text in (reasons, problem) if text),
        )
        for name, verdict, reasons, problem in orders
    )
    return element("div", element("h4", row.judge), element("div", *shown, css="plots"), css="part")


def _verdict(verdict: int | None, names: tuple[str, str]) -> str:
    match verdict:
        case 1:
            return f"{names[0]} is better"
        case -1:
            return f"{names[1]} is better"
        case 0:
            return "a tie"
    return "not graded"


def _unjudged(evaluation: Evaluation) -> Parts:
    """Items of all bands, those first on which the models' scores differ."""
    items: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in evaluation.answers():
        items[row["id"], row["sample"]].append(row)
    if not items:
        return []
    bands: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key, rows in items.items():
        bands[rows[0]["band"]].append(key)
    chosen = []
    for keys in bands.values():
        keys.sort(key=lambda key: len({str(row["scores"]) for row in items[key]}), reverse=True)
        chosen += keys[: -(-UNJUDGED // len(bands))]
    told = f"{len(chosen)} of {len(items):,} items, from every band; those first on which scores differ."
    return [
        element("p", f"{told} Long texts are cut here; answers.jsonl has them whole."),
        *(_scored(items[key], evaluation) for key in chosen),
    ]


def _scored(rows: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> Html:
    sides = (_answer(row, evaluation.called[row["model"]]) for row in rows)
    target = rows[0]["target"]
    right = (element("p", "Right result:"), element("pre", cut(target))) if target else ()
    return element(
        "div",
        element("h3", _item(rows[0])),
        _texts(rows[0]["turns"]),
        *right,
        element("div", *sides, css="plots"),
        css="item",
    )


def _item(row: Mapping[str, Any]) -> str:
    difficulty = "" if row["difficulty"] is None else f"difficulty {row['difficulty']:g}"
    return ", ".join(filter(None, (f"Item {row['id']}", row["skill"], difficulty)))


def _answer(row: Mapping[str, Any], name: str) -> Html:
    """An answer with what a program found of it."""
    scores = ", ".join(f"{score}: {value:g}" for score, value in row["scores"].items())
    found: list[Content] = [element("p", element("b", name))]
    if row["problem"]:
        found.append(element("p", f"No answer: {row['problem']}"))
    found.append(_texts(row["answers"]))
    if scores:
        taken = f" (taken from it: {cut(row['extracted'])})" if row["extracted"] else ""
        found.append(element("p", f"{scores}{taken}"))
    if "length" in row["finish_reasons"]:
        found.append(element("p", "It was cut off at max_tokens."))
    return element("div", *found)


def _texts(texts: Sequence[str]) -> Html:
    return join(*(element("pre", cut(text)) for text in texts))

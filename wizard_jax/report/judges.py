"""The section of an evaluation's page on its judges: gates, what their verdicts go by, how far they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_gen.page import Content, Html, element, folded, table
from wizard_jax.report.claims import has_passed, interval
from wizard_jax.report.figures import Point, bars
from wizard_jax.report.reading import Evaluation, Parts

KAPPA = "kappa, alpha and AC1 take out of it what chance brings, each in its own way, and are 0 for chance alone"


def judges_section(evaluation: Evaluation) -> Parts:
    """Each judge's gates in words; bias on the evaluation's own pairs; agreement, raw beside corrected."""
    judges: Mapping[str, Mapping[str, Any]] = evaluation.results.get("judges", {})
    if not judges:
        return []
    parts: Parts = [_gates(name, told) for name, told in judges.items()]
    parts += [
        element("h3", "On the pairs of this evaluation"),
        table(("figure", *judges), _bias_rows(judges)),
        element(
            "p",
            "Longer answer preferred: of decisive pairs more than 30 characters apart. Kappa and AC1 take out of the "
            "agreement of the two orders what chance would bring. Nobody knows who is right on these pairs; the gates "
            "are on pairs of which the truth is known.",
        ),
    ]
    points = [
        Point.of(found, group=name, series=what) for name, told in judges.items() for what, found in _leanings(told)
    ]
    if points:
        caption = "What verdicts go by besides the answers: 1 is consistent; 0.5 leans to no place and to no length."
        parts.append(
            bars(points, name="judges", caption=caption, x_label="share of pairs", reference=0.5, limits=(0.0, 1.0))
        )
    parts += [element("h3", "Pairs of known truth"), *_known(judges)]
    return parts + _agreement(evaluation)


def _gates(name: str, told: Mapping[str, Any]) -> Html:
    if told["failed"]:
        verdict = (
            "failed a gate, and counts because the config says so" if told["counts"] else "failed, and does not count"
        )
    elif has_passed(told):
        verdict = "passed every gate, and counts"
    else:
        verdict = "was not tried: there are no gates"
    lines = [element("p", element("b", "Failed. "), line) for line in told["failed"]]
    if told["passed"]:
        passed = element("ul", *(element("li", line) for line in told["passed"]))
        lines.append(folded(f"{len(told['passed'])} gates passed", passed))
    return element("div", element("h3", f"{name}: {verdict}"), element("p", f"Model: {told['model']}"), *lines)


def _leanings(told: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    said = told["said"]
    orders = said["orders"] or {}
    found = {
        "same in both orders": orders.get("same"),
        "first place": orders.get("first_place"),
        "longer answer": said["longer"],
    }
    return [(what, one) for what, one in found.items() if one is not None]


def _bias_rows(judges: Mapping[str, Mapping[str, Any]]) -> list[tuple[Content, ...]]:
    said = [told["said"] for told in judges.values()]
    orders = [one["orders"] or {} for one in said]
    between = [one.get("orders") or {} for one in orders]

    def figures(name: str, found: list[Mapping[str, Any] | None]) -> tuple[Content, ...]:
        return name, *(interval(one, 2) if one else "-" for one in found)

    return [
        ("pairs asked about", *(f"{one['pairs']:,}" for one in said)),
        ("identical answers, a tie unasked", *(f"{one['identical']:,}" for one in said)),
        ("pairs not graded in both orders", *(f"{one['not_graded']:,}" for one in said)),
        ("why not", *(_reasons(one["reasons"]) for one in said)),
        ("replies that could not be read", *(f"{one['unread']:,}" for one in said)),
        ("grades not given", *(f"{told['grades_not_given']:,}" for told in judges.values())),
        figures("same verdict in both orders", [one.get("same") for one in orders]),
        figures("other verdict in the other order", [one.get("reversed") for one in orders]),
        figures("kappa between orders", [one.get("kappa") for one in between]),
        figures("AC1 between orders", [one.get("ac1") for one in between]),
        figures("first place preferred", [one.get("first_place") for one in orders]),
        figures("longer answer preferred", [one["longer"] for one in said]),
    ]


def _reasons(found: Mapping[str, int]) -> str:
    return "; ".join(f"{why}: {count:,}" for why, count in found.items()) or "-"


def _known(judges: Mapping[str, Mapping[str, Any]]) -> Parts:
    rows = [
        (
            name,
            one["kind"],
            f"{one['graded']:,} of {one['asked']:,}",
            interval(one["accuracy"], 2),
            "" if one["longest"] is None else f"{one['longest']:.2f}",
            interval(one["orders"]["same"], 2) if one["orders"] else "-",
        )
        for name, told in judges.items()
        for one in told["known"]
    ]
    rankings = [
        (
            name,
            one["source"],
            f"{one['graded']:,} of {one['asked']:,}",
            interval(one["correlation"], 2),
            interval(one["without_length"], 2),
        )
        for name, told in judges.items()
        for one in told["rankings"]
    ]
    if not rows and not rankings:
        return [element("p", "None was asked about any, so no judge has passed.")]
    parts: Parts = []
    if rows:
        whether = ("graded", "right", "right by length alone", "same in both orders")
        parts.append(table(("judge", "pairs of known truth", *whether), rows))
    if rankings:
        ranked = ("graded", "rank correlation", "without length")
        parts.append(table(("judge", "difficulty known of", *ranked), rankings))
    return parts


def _agreement(evaluation: Evaluation) -> Parts:
    found = evaluation.results.get("agreement", [])
    if not found:
        return []
    names = ("raw", "kappa", "alpha_nominal", "alpha_ordinal", "ac1")
    rows = [
        (" and ".join(one["judges"]), one["pairs"], *(interval(one["agreement"][name], 2) or "-" for name in names))
        for one in found
    ]
    return [
        element("h3", "Agreement between judges"),
        table(("judges", "pairs", "raw", "kappa", "alpha, nominal", "alpha, ordinal", "AC1"), rows),
        element(
            "p",
            f"Raw is the share of equal verdicts; {KAPPA}. Judges that do not count are among them; - is undefined, "
            "as where everyone always says the same.",
        ),
    ]

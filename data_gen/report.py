"""The page of an evolved data set: counts, money and models first; then rounds, rules, costs, measures, lineages."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs.folder import write_atomically
from data_gen import shards
from data_gen.figures import figures_of
from data_gen.llm import simulated
from data_gen.llm.chat import NOTHING, Spent
from data_gen.llm.pricing import dollars
from data_gen.page import Content, Html, bar, element, facts, figure, folded, join, page, table
from data_gen.report_counts import Counts, count, read_rejected
from data_gen.report_lineages import SEED, CostsOf, cut, lineages_section
from data_gen.report_measures import measures_section
from data_gen.tally import Rate

LINEAGES_SHOWN = 50
SOURCES_SHOWN = 20
CELLS_SHOWN = 300

RULES = MappingProxyType(
    {
        "no_gain": "the rewritten instruction was judged equal to the one before",
        "refusal": "the answer says sorry, in few words",
        "empty_answer": "the answer holds only punctuation and stop words",
        "copied_prompt": "the rewritten instruction copies words of the rewriting prompt",
        "invalid_input": "the input data that was added does not parse, or there is none",
        "word_count": "the rewrite does not add the 10 to 20 words that it was asked for",
        "changed_meaning": "a paraphrase was judged to ask something else",
        "duplicate": "a near-duplicate of an earlier record",
        "contaminated": "repeats an item of a test set",
        "empty_instruction": "the rewrite came back empty",
        "truncated": "the reply was cut off at max_tokens",
        "unreadable_reply": "the provider's reply held no text, or no verdict where one was asked for",
        "refused_request": "the provider refused or withheld this reply for good",
        "gave_up": "no reply after the allowed number of attempts, or a refusal that does not say what it refuses",
    }
)
"""The first four are the published rules of elimination."""

_TABLES_OF_THEIR_OWN = ("by_round", "by_operation", "by_rule", "rates", "spent", "settled")


def write_report(
    folder: Path,
    *,
    summary: Mapping[str, Any],
    spent: Mapping[tuple[int, str], Spent] | None = None,
    costs: CostsOf | None = None,
    measures: Mapping[str, Any] | None = None,
    lineages_shown: int = LINEAGES_SHOWN,
) -> Path:
    """Writes `folder`/report.html about the data set in `folder`/dataset and what was dropped, `folder`/rejected.jsonl.

    `summary` is what the run counted. `spent` is what it paid, by round and purpose, and `costs` what a lineage did; a
    data set without a journal has neither. `measures` is as `data_gen.figures` reads it. Memory holds counts
    and the lineages shown.
    """
    counts = count(
        shards.read_dataset(folder / "dataset"), read_rejected(folder / "rejected.jsonl"), sampled=lineages_shown
    )
    title = "Evolved instructions"
    contents: list[Content] = [_first(counts, summary=summary, spent=spent, measures=measures or {})]
    sections: dict[str, Content] = {
        "Rounds": _rounds(counts),
        "Operations": _operations(counts),
    }
    if settled := summary.get("settled"):
        sections["What the pilot settled"] = _settled(settled)
    sections["What was dropped, and why"] = _rules(counts)
    if spent:
        sections["Money and tokens"] = _money(spent)
    if measures:
        sections["Measures"] = measures_section(measures)
    sections["Lineages"] = lineages_section(counts.sample, of=max(counts.lineages, len(counts.sample)), costs=costs)
    sections["The run"] = table(
        ("counted", "in this run"),
        [(key.replace("_", " "), _flat(value)) for key, value in summary.items() if key not in _TABLES_OF_THEIR_OWN],
    )
    for heading, section in sections.items():
        contents += [element("h2", heading), section]
    target = folder / "report.html"
    write_atomically(target, page(title, *contents))
    return target


_SIMULATION = element(
    "p",
    "The model behind this data is a simulation. It shows that the pipeline works, and says nothing about what a "
    "hosted model would write.",
    css="note",
)


def _first(
    counts: Counts,
    *,
    summary: Mapping[str, Any],
    spent: Mapping[tuple[int, str], Spent] | None,
    measures: Mapping[str, Any],
) -> Html:
    """What one asks first of a data set: how much there is, whether it got harder, what it cost, and who wrote it."""
    whole = counts.whole
    named: dict[str, Content] = {
        "conversations": f"{whole.kept:,}",
        "lineages": f"{counts.lineages:,}",
        "candidates dropped": f"{whole.dropped.total() / max(whole.tried, 1):.1%}",
    }
    scores = sorted(figures_of(measures.get("difficulty", {})).rounds.get("score", {}).items())
    if len(scores) > 1:
        (first, before), (last, after) = scores[0], scores[-1]
        named[f"difficulty of 10, rounds {first} and {last}"] = f"{before.value:.1f} → {after.value:.1f}"
    if spent:
        paid = _sum(spent.values())
        named["paid"] = f"${paid.usd:,.2f}"
        if paid.usd:
            named["paid for 1,000 conversations"] = f"${1000 * paid.usd / max(whole.kept, 1):,.2f}"
        named["tokens in and out"] = f"{_short(paid.input_tokens)} + {_short(paid.output_tokens)}"
    lost = summary.get("possibly_paid_twice", 0)
    if lost:
        named["replies possibly paid twice"] = f"{lost:,}"
    for flag, number in sorted(counts.flags.items()):
        named[f"flagged: {flag}"] = f"{number:,}"
    answered = ", ".join(sorted(model or "the seed file" for model in counts.models))
    written = ", ".join(sorted(counts.evolvers))
    by = f"; rewritten by {written}" if written and written != answered else ""
    parts: list[Content] = [
        facts(named),
        element("p", f"{whole.kept:,} conversations; answers by {answered}{by}."),
    ]
    if simulated.NAME in counts.models or simulated.NAME in counts.evolvers:
        parts.append(_SIMULATION)
    return join(*parts)


# --- what was kept and dropped


def _rounds(counts: Counts) -> Html:
    from data_gen import plots

    by_round = counts.tally.by("round", of="all")
    has_steps = any(sums.simulated for sums in counts.rounds.values())
    rows = []
    for (number,), rate in by_round.items():
        sums, kept = counts.rounds[int(number)], max(rate.kept, 1)
        told = bool(number and rate.kept)  # seeds were not asked to grow
        row: list[Content] = [
            number,
            f"{rate.kept:,}",
            f"{rate.dropped.total():,}",
            bar(rate.dropped.total() / rate.tried),
            f"{sums.words / kept:.1f}",
            f"{rate.words / kept:+.1f}" if told else "",
            f"{rate.as_asked / rate.in_depth:.1%}" if rate.in_depth else "",
            f"{sums.words_of_answers / kept:.1f}",
        ]
        if has_steps:
            row.append(f"{sums.steps / sums.simulated:.2f}" if sums.simulated else "")
        rows.append(row)
    head = [
        "round",
        "kept",
        "dropped",
        "share dropped",
        "words per instruction",
        "words added",
        "in depth: added 10 to 20",
    ]
    head += ["words per answer", *(["steps per task"] if has_steps else [])]
    heights = {"kept": [float(rate.kept) for rate in by_round.values()]}
    for rule in _rules_by_size(counts):
        heights[rule] = [float(rate.dropped[rule]) for rate in by_round.values()]
    drawing = plots.stacked([str(number) for (number,) in by_round], heights, x_label="round", y_label="candidates")
    return join(table(head, rows), figure(drawing, "Candidates of each round: kept, or dropped by which rule."))


def _operations(counts: Counts) -> Html:
    rows = [
        (operation, f"{rate.kept:,}", f"{rate.dropped.total():,}", bar(rate.kept / rate.tried))
        for (operation,), rate in counts.tally.by("operation", of="all").items()
        if operation
    ]
    return table(("operation", "kept", "dropped", "share kept"), rows)


def _settled(settled: Mapping[str, Any]) -> Html:
    """On what grounds lineages after the pilot's were drawn and ended otherwise."""
    text = f"The first {settled['lineages']:,} seeds evolved by equal chances through all rounds."
    if "stop_after" in settled:
        text += f" All others end after round {settled['stop_after']}; pilot.margin was {settled['margin']:g}."
    parts: list[Content] = [element("p", text)]
    rows = [
        (
            gain["round"],
            f"{gain['measured']:,}",
            f"{gain['mean']:+.2f}",
            "" if (error := gain["standard_error"]) is None else f"{error:.2f}",
        )
        for gain in settled["gains"]
    ]
    if rows:
        parts.append(table(("round", "rewrites measured", "mean gain, in points of 10", "standard error"), rows))
    probabilities = settled.get("probabilities", ())
    if probabilities:
        names = [name for name in probabilities[0] if name not in ("source", "round")]
        shown = [
            (row["source"] or "any other", row["round"], *(f"{row[name]:.1%}" for name in names))
            for row in probabilities[:CELLS_SHOWN]
        ]
        cut_off = f", the first {CELLS_SHOWN} shown" if len(probabilities) > CELLS_SHOWN else ""
        parts.append(folded(f"Probabilities of operations{cut_off}", table(("source", "round", *names), shown)))
    return join(*parts)


def _rules(counts: Counts) -> Html:
    whole, rules = counts.whole, _rules_by_size(counts)
    if not rules:
        return element("p", "Nothing was eliminated.")
    meaning = [(rule, f"{whole.dropped[rule]:,}", _share(whole, rule), RULES.get(rule, "")) for rule in rules]
    by_source = counts.tally.by("source", of="all")
    largest = sorted(by_source, key=lambda key: -by_source[key].tried)[:SOURCES_SHOWN]
    cells = counts.tally.by("operation", "round", "source", of="all")
    parts: list[Content] = [
        table(("rule", "candidates", "of all", "what it means"), meaning),
        element("h3", "Rates by operation"),
        _rates(("of operation",), counts.tally.by("operation", of="all"), rules),
        element("h3", "Rates by round"),
        _rates(("in round",), counts.tally.by("round", of="all"), rules),
        element("h3", "Rates by source"),
        _rates(("from source",), {key: by_source[key] for key in largest}, rules),
    ]
    if len(largest) < len(by_source):
        parts.append(element("p", element("small", f"The {len(largest)} largest of {len(by_source):,} sources.")))
    cut_off = f", the first {CELLS_SHOWN} shown" if len(cells) > CELLS_SHOWN else ""
    shown = dict(list(cells.items())[:CELLS_SHOWN])
    title = f"Rates by operation, round and source: {len(cells):,} cells{cut_off}"
    return join(*parts, folded(title, _rates(("operation", "round", "source"), shown, rules)))


def _rates(head: Sequence[str], cells: Mapping[tuple[str | int, ...], Rate], rules: Sequence[str]) -> Html:
    """For each cell the share of its candidates that each rule dropped, with their number."""
    rows = [
        (*(SEED if part == "" else part for part in key), f"{rate.tried:,}", *(_share(rate, rule) for rule in rules))
        for key, rate in cells.items()
    ]
    return table((*head, "candidates", *(rule.replace("_", " ") for rule in rules)), rows, css="dense")


def _share(rate: Rate, rule: str) -> str:
    number = rate.dropped[rule]
    return f"{number / rate.tried:.1%} ({number:,})" if number else "0"


def _rules_by_size(counts: Counts) -> list[str]:
    return [rule for rule, _ in counts.tally.rules.most_common()]


# --- what it cost


def _money(spent: Mapping[tuple[int, str], Spent]) -> Html:
    from data_gen import plots

    rounds = sorted({round_ for round_, _ in spent})
    purposes = sorted({purpose for _, purpose in spent})
    by_purpose = {name: _sum(cost for (_, purpose), cost in spent.items() if purpose == name) for name in purposes}
    by_round = {number: _sum(cost for (round_, _), cost in spent.items() if round_ == number) for number in rounds}
    head = ("replies", "tokens in", "tokens out", "paid")
    parts: list[Content] = [
        table(("for", *head), [(name, *_cells(cost)) for name, cost in by_purpose.items()]),
        table(("paid in round", *head), [(number, *_cells(cost)) for number, cost in by_round.items()]),
    ]
    free = not any(cost.usd for cost in spent.values())
    drawing = plots.stacked(
        [str(number) for number in rounds],
        {
            name: [
                float(cost.output_tokens if free else cost.usd)
                for cost in (spent.get((number, name), NOTHING) for number in rounds)
            ]
            for name in purposes
        },
        x_label="round",
        y_label="tokens out" if free else "US dollars",
    )
    caption = (
        "Tokens written in each round, by what for; they cost nothing." if free else "Paid in each round, for what."
    )
    return join(*parts, figure(drawing, caption))


def _cells(cost: Spent) -> tuple[str, ...]:
    return (f"{cost.calls:,}", f"{cost.input_tokens:,}", f"{cost.output_tokens:,}", dollars(cost.usd))


def _sum(costs: Iterable[Spent]) -> Spent:
    return functools.reduce(Spent.plus, costs, NOTHING)


def _short(number: int) -> str:
    """Three figures: 12,300,000 is 12.3M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(part) for part in value)
    return cut(f"{value:,}" if isinstance(value, int) else str(value))

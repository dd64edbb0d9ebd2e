"""What was measured of a data set, on its page: plots by round, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_gen.figures import MEANINGS, SIZES, Figure, Figures, figures_of, said
from data_gen.page import Content, Html, element, figure, folded, join, table

ROWS_SHOWN = 200
ROUNDS_AT_FULL_SIZE = 3
"""Of more rounds, figures with intervals leave the page unless they are set smaller."""
FEW = 12
"""So many figures are shown at once, and more only when they are asked for."""


def measures_section(measures: Mapping[str, Any]) -> Html:
    """For each measure its plots by round, the figures behind them, and what else it says."""
    parts: list[Content] = []
    for name, measured in measures.items():
        figures = figures_of(measured)
        parts += [element("h3", _words(name).capitalize()), *_drawings(figures)]
        if figures.rounds:
            head = ("measure", *(f"round {number}" for number in figures.numbers))
            rows = [
                (_words(kind), *(said(of.get(number)) for number in figures.numbers))
                for kind, of in figures.rounds.items()
            ]
            parts.append(table(head, rows, css="dense" if len(figures.numbers) > ROUNDS_AT_FULL_SIZE else ""))
        for title, listed in figures.tables.items():
            columns = list(listed[0])
            cells = [[said(row.get(column)) for column in columns] for row in listed[:ROWS_SHOWN]]
            parts += [element("p", f"{_words(title)}:") if title else "", table(list(map(_words, columns)), cells)]
        others = [(_words(kind), value) for kind, value in figures.others.items()]
        if others:
            shown = table(("measured", "value"), others[:ROWS_SHOWN])
            parts.append(shown if len(others) <= FEW else folded(f"{len(others)} figures", shown))
        if meanings := figures.meanings:
            told = table(("figure", "what it says"), [(_words(kind), meaning) for kind, meaning in meanings])
            parts.append(folded("What these figures say", told))
    return join(*parts)


def _drawings(figures: Figures) -> list[Html]:
    """A plot of each figure that says what was found, and is not the same in every round."""
    from data_gen import plots

    drawings = [
        figure(
            plots.estimates(
                {kind: [(float(number), *_ends(known)) for number, known in sorted(of.items())]},
                x_label="round",
                y_label=_words(kind),
            ),
            _caption(kind) + ("; with 95 % intervals" if any(f.low is not None for f in of.values()) else ""),
        )
        for kind, of in figures.rounds.items()
        if len(of) > 1 and kind not in SIZES and len(set(of.values())) > 1
    ]
    return [element("div", *drawings, css="plots")] if drawings else []


def _caption(kind: str) -> str:
    told = MEANINGS.get(kind, f"{_words(kind)} by round")
    return told[0].upper() + told[1:]


def _ends(known: Figure) -> tuple[float, float, float]:
    low, high = (known.value if end is None else end for end in (known.low, known.high))
    return known.value, low, high


def _words(name: str) -> str:
    return name.replace("_", " ")

"""What was measured of a data set, on its page: plots by round, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_gen.figures import Figure, Figures, figures_of, said
from data_gen.page import Content, Html, element, figure, folded, join, table

ROWS_SHOWN = 200
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
            parts.append(table(head, rows))
        for title, listed in figures.tables.items():
            columns = list(listed[0])
            cells = [[said(row.get(column)) for column in columns] for row in listed[:ROWS_SHOWN]]
            parts += [element("p", f"{_words(title)}:") if title else "", table(list(map(_words, columns)), cells)]
        others = [(_words(kind), value) for kind, value in figures.others.items()]
        if others:
            shown = table(("measured", "value"), others[:ROWS_SHOWN])
            parts.append(shown if len(others) <= FEW else folded(f"{len(others)} figures", shown))
    return join(*parts)


def _drawings(figures: Figures) -> list[Html]:
    from data_gen import plots

    drawings = [
        figure(
            plots.estimates(
                {kind: [(float(number), *_ends(known)) for number, known in sorted(of.items())]},
                x_label="round",
                y_label=_words(kind),
            ),
            f"{_words(kind)} by round"
            + (", with 95 % intervals" if any(f.low is not None for f in of.values()) else ""),
        )
        for kind, of in figures.rounds.items()
        if len(of) > 1
    ]
    return [element("div", *drawings, css="plots")] if drawings else []


def _ends(known: Figure) -> tuple[float, float, float]:
    low, high = (known.value if end is None else end for end in (known.low, known.high))
    return known.value, low, high


def _words(name: str) -> str:
    return name.replace("_", " ")

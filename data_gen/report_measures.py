"""What was measured of a data set, as plots by round and tables.

Measures are a mapping, as JSON keeps it. Wherever in it a list "rounds" stands, its members are mappings with a "round"
and figures; a figure is a number, or an estimate with its interval: [value, low, high, n], or a mapping of these names.
Everything else is shown as it is, by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_gen.page import Content, Html, element, figure, folded, join, table

ROWS_SHOWN = 200


class Figure(NamedTuple):
    """A value, and its 95 % interval where there is one."""

    value: float
    low: float | None
    high: float | None


def measures_section(measures: Mapping[str, Any]) -> Html:
    """For each measure its plots by round, the figures behind them, and what else it says."""
    parts: list[Content] = []
    for name, measured in measures.items():
        parts.append(element("h3", name.replace("_", " ").capitalize()))
        if not isinstance(measured, Mapping):
            parts.append(element("p", _said(measured)))
            continue
        parts.append(_by_round(measured))
        others = list(_flattened({key: value for key, value in measured.items() if key != "rounds"}))
        if others:
            shown = table(("measured", "value"), others[:ROWS_SHOWN])
            parts.append(shown if len(others) <= 12 else folded(f"{len(others)} figures", shown))
    return join(*parts)


def series(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, Figure]]]:
    """The figures of each name, by round, where there is one."""
    found: defaultdict[str, list[tuple[int, Figure]]] = defaultdict(list)
    for row in rounds:
        for name, value in row.items():
            known = read_figure(value)
            if name != "round" and known is not None:
                found[name].append((int(row["round"]), known))
    return dict(found)


def read_figure(value: object) -> Figure | None:
    """A number or an estimate as it stands in JSON; None for anything else."""
    if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
        value = [value["value"], value.get("low"), value.get("high")]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Figure(float(value), None, None)
    if isinstance(value, list | tuple) and len(value) in (3, 4) and isinstance(value[0], int | float):
        low, high = (float(end) if isinstance(end, int | float) else None for end in value[1:3])
        return Figure(float(value[0]), low, high)
    return None


def _by_round(measured: Mapping[str, Any]) -> Html:
    from data_gen import plots

    rounds = measured.get("rounds")
    if not isinstance(rounds, list | tuple) or not all(isinstance(row, Mapping) and "round" in row for row in rounds):
        return join()
    found = series(rounds)
    if not found:
        return join()
    drawings = [
        figure(
            plots.estimates(
                {name: [(float(number), *_ends(known)) for number, known in points]},
                x_label="round",
                y_label=name.replace("_", " "),
            ),
            f"{name.replace('_', ' ')} by round, with 95 % intervals where they were estimated.",
        )
        for name, points in found.items()
        if len(points) > 1
    ]
    numbers = sorted({number for points in found.values() for number, _ in points})
    by_name = {name: dict(points) for name, points in found.items()}
    rows = [(name.replace("_", " "), *(_said(of.get(number)) for number in numbers)) for name, of in by_name.items()]
    return join(element("div", *drawings, css="plots"), table(("measure", *(f"round {n}" for n in numbers)), rows))


def _ends(known: Figure) -> tuple[float, float, float]:
    low, high = (known.value if end is None else end for end in (known.low, known.high))
    return known.value, low, high


def _flattened(value: object, name: str = "") -> list[tuple[str, str]]:
    if read_figure(value) is None and isinstance(value, Mapping):
        inner = [_flattened(part, f"{name}, {key}" if name else str(key)) for key, part in value.items()]
        return [row for rows in inner for row in rows]
    return [(name.replace("_", " "), _said(value))]


def _said(value: object) -> str:
    known = value if isinstance(value, Figure) else read_figure(value)
    if known is None:
        if isinstance(value, list | tuple):
            return ", ".join(map(_said, value[:20])) + (", ..." if len(value) > 20 else "")
        return "" if value is None else str(value)
    whole = known.value == int(known.value) and abs(known.value) < 1e15 and known.low is None
    text = f"{int(known.value):,}" if whole else f"{known.value:.3g}"
    return text if known.low is None or known.high is None else f"{text} [{known.low:.3g}, {known.high:.3g}]"

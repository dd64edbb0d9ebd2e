"""Plots as SVG text."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

LABEL_CHARACTERS = 40
PARTS_SHOWN = 12
"""Of a stacked bar; what is smaller than these is drawn as one."""

Interval = tuple[float, float, float]
"""A value, and the low and the high end of its interval."""

_NARROW = 5.2
"""Inches: drawings that are still read on a telephone, or two beside each other."""


def _repeatable_text() -> AbstractContextManager[None]:
    """Letters stay text, whatever they are, and the same plot gives the same bytes."""
    return matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "wizard", "font.family": "sans-serif", "text.parse_math": False}
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # It only measures the text with this font: a browser has the letters that it lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _label(text: str) -> str:
    """A name that leaves room for the drawing."""
    return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 3]}..."


def shares(groups: Sequence[str], arms: Mapping[str, Sequence[tuple[float, float, float]]], *, y_label: str) -> str:
    """Grouped bars with intervals: for each arm a (share, low, high) per group. Returns SVG."""
    with _repeatable_text():
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / max(len(arms), 1)
        bars = []
        for place, values in enumerate(arms.values()):
            x = [group + (place - (len(arms) - 1) / 2) * width for group in range(len(groups))]
            height = [share for share, _, _ in values]
            below = [share - low for share, low, _ in values]
            above = [high - share for share, _, high in values]
            bars.append(axes.bar(x, height, width * 0.92, yerr=[below, above], capsize=3, error_kw={"lw": 1}))
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylim(0, 1.0)
        axes.set_ylabel(y_label)
        axes.legend(bars, list(arms), frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def curves(arms: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> str:
    """One line for each arm through its (x, y) points. Returns SVG."""
    with _repeatable_text():
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        for points in arms.values():
            axes.plot([x for x, _ in points], [y for _, y in points], lw=1.2)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(axes.lines, list(arms), frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def stacked(groups: Sequence[str], parts: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> str:
    """One bar for each group, made of parts laid on one another: for each part a height per group. Returns SVG."""
    if len(parts) > PARTS_SHOWN:
        largest = sorted(parts, key=lambda name: -sum(parts[name]))[: PARTS_SHOWN - 1]
        rest = [heights for name, heights in parts.items() if name not in largest]
        parts = {name: parts[name] for name in parts if name in largest} | {
            "others": [sum(c) for c in zip(*rest, strict=True)]
        }
    with _repeatable_text():
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        floor = [0.0] * len(groups)
        bars: list[BarContainer] = []
        for heights in parts.values():
            # The colours of a cycle of ten would come twice.
            color = matplotlib.colormaps["tab20"](len(bars) % 20)
            bars.append(axes.bar(range(len(groups)), heights, 0.7, bottom=floor, color=color))
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlabel(x_label)
        axes.set_ylabel(_label(y_label))
        axes.legend(
            bars, list(map(_label, parts)), frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
        )
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def estimates(lines: Mapping[str, Sequence[tuple[float, float, float, float]]], *, x_label: str, y_label: str) -> str:
    """One line for each name through its (x, value, low, high), with the intervals, x being whole. Returns SVG."""
    with _repeatable_text():
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        drawn = []
        for place, points in enumerate(lines.values()):
            x = [point[0] + 0.03 * place for point in points]  # intervals on one another could not be told apart
            below = [max(value - low, 0.0) for _, value, low, _ in points]
            above = [max(high - value, 0.0) for _, value, _, high in points]
            values = [point[1] for point in points]
            drawn.append(axes.errorbar(x, values, yerr=[below, above], marker="o", ms=4, lw=1.2, capsize=3))
        axes.set_xticks(sorted({round(x) for points in lines.values() for x, *_ in points}))
        axes.set_xlabel(x_label)
        axes.set_ylabel(_label(y_label))
        if len(lines) > 1:
            axes.legend(drawn, list(map(_label, lines)), frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
    *,
    x_label: str,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Horizontal bars with intervals, one of each series for each group, the first group on top. Returns SVG.

    None leaves a bar out. `reference` is where a line is drawn, such as the value of two equal models.
    """
    with _repeatable_text():
        rows = len(groups) * len(series)
        figure = Figure(figsize=(_NARROW, 0.9 + 0.22 * rows + 0.12 * len(groups)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / max(len(series), 1)
        drawn: list[Any] = []  # its stubs do not count a BarContainer among what a legend is of
        for place, values in enumerate(series.values()):
            known = [(group, value) for group, value in enumerate(values) if value is not None]
            y = [group + (place - (len(series) - 1) / 2) * height for group, _ in known]
            below = [max(value - low, 0.0) for _, (value, low, _) in known]
            above = [max(high - value, 0.0) for _, (value, _, high) in known]
            widths = [value for _, (value, _, _) in known]
            drawn.append(axes.barh(y, widths, height * 0.9, xerr=[below, above], capsize=2, error_kw={"lw": 1}))
        axes.set_yticks(range(len(groups)), list(map(_label, groups)))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(x_label)
        if limits is not None:
            axes.set_xlim(*limits)
        if reference is not None:
            axes.axvline(reference, color="black", lw=0.8, ls="--")
        if len(series) > 1:
            names = list(map(_label, series))
            figure.legend(drawn, names, frameon=False, fontsize="small", loc="outside upper left", ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def radar(
    groups: Sequence[str],
    values: Sequence[Interval],
    *,
    limits: tuple[float, float],
    reference: float | None = None,
) -> str:
    """A closed line through the value of each group, in a ribbon of the intervals. Returns SVG."""
    with _repeatable_text():
        figure = Figure(figsize=(_NARROW, _NARROW * 0.8))
        # Room for the names around: a layout does not know how wide a browser's letters are.
        axes = figure.add_axes((0.22, 0.12, 0.56, 0.76), projection="polar")
        angles = [2 * math.pi * place / len(groups) for place in range(len(groups))]
        around = [*angles, 2 * math.pi]
        value, low, high = ([*ends, ends[0]] for ends in zip(*values, strict=True))
        (line,) = axes.plot(around, value, marker="o", ms=3, lw=1.4)
        axes.fill_between(around, low, high, color=line.get_color(), alpha=0.25, lw=0)
        if reference is not None:
            circle = [2 * math.pi * step / 100 for step in range(101)]
            axes.plot(circle, [reference] * len(circle), color="black", lw=0.8, ls="--")
        axes.set_xticks(angles, [textwrap.fill(_label(group), 16) for group in groups])
        axes.set_ylim(*limits)
        axes.tick_params(labelsize="small")
        axes.tick_params(axis="x", pad=9)
        return _svg(figure)

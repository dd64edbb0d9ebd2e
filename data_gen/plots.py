"""Plots as SVG text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

LABEL_CHARACTERS = 40
PARTS_SHOWN = 12
"""Of a stacked bar; what is smaller than these is drawn as one."""


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

"""Plots as SVG text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.figure import Figure


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

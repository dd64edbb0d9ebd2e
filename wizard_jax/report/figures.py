"""Figures of a page, each with the numbers that it draws, which also go into a CSV file beside the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Self

from data_gen import plots
from wizard_jax.evaluate.people.sheet_csv import no_formula


@dataclass(frozen=True, kw_only=True)
class Point:
    """One bar, or one corner of a radar."""

    group: str
    series: str
    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, found: Mapping[str, Any], *, group: str, series: str) -> Self:
        """From an estimate as results.json has it."""
        return cls(group=group, series=series, **{name: found[name] for name in ("value", "low", "high", "n")})

    @property
    def interval(self) -> plots.Interval:
        return self.value, self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str
    """In the CSV file."""
    caption: str
    svg: str
    points: tuple[Point, ...]


def bars(
    points: Sequence[Point],
    *,
    name: str,
    caption: str,
    x_label: str,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Bars in the order of the points, each group with its n, or the smallest and the largest of its series."""
    by_place = {(point.group, point.series): point for point in points}
    groups, series = (list(dict.fromkeys(getattr(point, by) for point in points)) for by in ("group", "series"))
    drawn = {
        one: [by_place[group, one].interval if (group, one) in by_place else None for group in groups] for one in series
    }
    labels = [_with_n(group, [point.n for point in points if point.group == group]) for group in groups]
    svg = plots.bars(labels, drawn, x_label=x_label, reference=reference, limits=limits)
    return Figure(name=name, caption=caption, svg=svg, points=tuple(points))


def radar(
    points: Sequence[Point],
    *,
    name: str,
    caption: str,
    limits: tuple[float, float],
    reference: float | None = None,
) -> Figure:
    """A closed line through the points, which are of one series."""
    groups, values = [point.group for point in points], [point.interval for point in points]
    svg = plots.radar(groups, values, limits=limits, reference=reference)
    return Figure(name=name, caption=caption, svg=svg, points=tuple(points))


def figures_csv(figures: Iterable[Figure]) -> str:
    """A row for each point: figure,group,series,value,low,high,n; no cell is a formula, whatever the names are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["figure", *(field.name for field in fields(Point))])
    for figure in figures:
        for point in figure.points:
            cells = (figure.name, *astuple(point))
            writer.writerow([no_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def _with_n(group: str, sizes: Sequence[int]) -> str:
    least, most = min(sizes), max(sizes)
    # A long name is cut by the drawing: the n that is told behind it has to stay.
    kept = group if len(group) <= _NAME_CHARACTERS else f"{group[: _NAME_CHARACTERS - 3]}..."
    return f"{kept} (n={least:,})" if least == most else f"{kept} (n={least:,} to {most:,})"


_NAME_CHARACTERS = 26

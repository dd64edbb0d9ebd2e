"""Measures as figures: what stands in measures.json, sorted by how it can be shown.

Measures are a mapping, as JSON keeps it, from the name of each to what it says. Where that holds a list "rounds", its
members are mappings with a "round" and figures. A figure is a number, or an estimate with its interval: [value, low,
high, n], or a mapping with these names. Any other list of mappings is a table, and everything else is told by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "score": "difficulty from 1 to 10, each instruction judged by itself",
        "rank": "difficulty from 1 to 10, all versions of a lineage judged side by side",
        "score_gain": "score above that of the instruction it was rewritten from",
        "rank_gain": "rank above that of the instruction it was rewritten from",
        "harder": "share of rewrites ranked above what they were rewritten from; ties count half",
        "agreement": "rank correlation of score and rank",
        "agreement_within": "the same within lineages: of their changes alone",
        "problems, score": "replies that held no score",
        "problems, rank": "replies that held no ranking",
        "texts": "instructions in each sample",
        "words": "words in each sample",
        "distinct_1": "different words over all words; more diverse is higher",
        "distinct_2": "different pairs of words over all pairs; more diverse is higher",
        "distinct_3": "different runs of three words over all of them; more diverse is higher",
        "compression": "bytes over bytes after compression; more diverse is lower",
        "nearest": "cosine of an instruction with the one most like it; more diverse is lower",
        "vendi": "Vendi score: how many wholly unlike instructions they are worth; more diverse is higher",
        "cluster_entropy": "how evenly they fall into 20 clusters, at most 1; more diverse is higher",
        "of the same round": "near-duplicates of an earlier lineage in the same round",
        "of an earlier round": "near-duplicates of another lineage in an earlier round",
        "like an earlier version of their own lineage": "hardly reworded; these are no duplicates",
        "repeated": "records that hold runs of words of a test item",
        "similar": "records that are as like a test item as a reworded one is",
        "share": "of the records of the round",
        "touched": "test items that some record repeats or is like",
    }
)
"""What the figures of `measures.json` say, by their names there."""

SIZES = frozenset({"texts", "words", "records"})
"""Names of figures that say how much was measured, and nothing of what was found."""


class Figure(NamedTuple):
    """A value, and its 95 % interval where there is one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Figures:
    """What one measure says, sorted by how it can be shown."""

    rounds: Mapping[str, Mapping[int, Figure]]
    """By name and round."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Lists of mappings, such as one for each test file, by name."""
    others: Mapping[str, str]

    @property
    def meanings(self) -> list[tuple[str, str]]:
        """(name, what it says) of all figures here that have a meaning, each once."""
        columns = (column for rows in self.tables.values() for row in rows for column in row)
        names = dict.fromkeys((*self.rounds, *self.others, *columns))
        return [(name, MEANINGS[name]) for name in names if name in MEANINGS]

    @property
    def numbers(self) -> list[int]:
        """The rounds of which there is a figure."""
        return sorted({number for of in self.rounds.values() for number in of})


def figures_of(measured: object) -> Figures:
    """Sorts out what a measure says."""
    inner: Mapping[str, Any] = measured if isinstance(measured, Mapping) else {"": measured}
    rounds: defaultdict[str, dict[int, Figure]] = defaultdict(dict)
    if _is_table(inner.get("rounds")) and all("round" in row for row in inner["rounds"]):
        for row in inner["rounds"]:
            for name, known in _named({key: value for key, value in row.items() if key != "round"}):
                rounds[name][int(row["round"])] = known
        inner = {name: value for name, value in inner.items() if name != "rounds"}
    tables = {name: value for name, value in inner.items() if _is_table(value)}
    others = _flattened({name: value for name, value in inner.items() if name not in tables})
    return Figures(dict(rounds), tables, {name: value for name, value in others if value})


def _named(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Figure]]:
    """The figures of a round, and those in a mapping there: {"measures": {"entropy": 3}} holds "entropy"."""
    for key, value in row.items():
        known = read_figure(value)
        if known is not None:
            yield f"{before}{key}", known
        elif isinstance(value, Mapping):
            yield from _named(value, before if key == "measures" else f"{before}{key} ")


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


def said(value: object) -> str:
    """A figure with its interval, or any other value, in words."""
    known = value if isinstance(value, Figure) else read_figure(value)
    if known is None:
        if isinstance(value, list | tuple):
            return ", ".join(map(said, value[:20])) + (", ..." if len(value) > 20 else "")
        return "" if value is None else str(value)
    whole = known.low is None and abs(known.value) < 1e15 and known.value == int(known.value)
    text = f"{int(known.value):,}" if whole else _three_figures(known.value)
    if known.low is None or known.high is None:
        return text
    return f"{text} [{_three_figures(known.low)}, {_three_figures(known.high)}]"


def _three_figures(number: float) -> str:
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.3g}"


def _is_table(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) and row for row in value)


def _flattened(value: object, name: str = "") -> list[tuple[str, str]]:
    if read_figure(value) is None and isinstance(value, Mapping):
        inner = [_flattened(part, f"{name}, {key}" if name else str(key)) for key, part in value.items()]
        return [row for rows in inner for row in rows]
    return [(name, said(value))]

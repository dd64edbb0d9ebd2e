"""What a run came to, in counts, and what became of its candidates by operation, round and source."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from data_gen.eliminate import word_count
from data_gen.evolve import Lineage
from data_gen.operations import OPERATIONS
from data_gen.records import Record, Rejected

_IN_DEPTH = frozenset(name for name, operation in OPERATIONS.items() if operation.kind == "depth")


class Cell(NamedTuple):
    """Where a candidate comes from; the operation is empty for seeds."""

    operation: str
    round: int
    source: str


@dataclass
class Rate:
    """What became of the candidates of a cell, or of several."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Candidates by the rule that dropped them."""
    words: int = 0
    """Words that the kept ones have more than their parents, in all."""
    in_depth: int = 0
    """How many of the kept ones are by operations in depth, which alone ask for 10 to 20 words more."""
    as_asked: int = 0
    """How many of those have so many."""

    @property
    def tried(self) -> int:
        return self.kept + self.dropped.total()

    def add(self, other: Rate) -> None:
        self.kept += other.kept
        self.dropped += other.dropped
        self.words += other.words
        self.in_depth += other.in_depth
        self.as_asked += other.as_asked

    def to_json(self) -> dict[str, Any]:
        """Counts, and of what was kept the mean of words added, and of that in depth the share with 10 to 20.

        Each of the two is None where nothing was.
        """
        return {
            "tried": self.tried,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "mean_words_added": self.words / self.kept if self.kept else None,
            "share_with_10_to_20": self.as_asked / self.in_depth if self.in_depth else None,
        }


@dataclass
class Tally:
    """Counts over all lineages."""

    records: int = 0
    rounds: Counter[int] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    rates: defaultdict[Cell, Rate] = field(default_factory=lambda: defaultdict(Rate))

    def add(self, lineage: Lineage) -> None:
        for record in lineage.records:
            self.add_record(record)
        for rejected in lineage.rejected:
            self.add_rejected(rejected)

    def add_record(self, record: Record) -> None:
        self.records += 1
        self.rounds[record.round] += 1
        self.accepted[record.operation] += bool(record.operation)
        self.models.update({record.model} - {""})
        rate = self.rates[Cell(record.operation, record.round, record.source)]
        rate.kept += 1
        if record.operation:
            rate.words += record.words_added
            if record.operation in _IN_DEPTH:
                rate.in_depth += 1
                rate.as_asked += word_count(record.words_added) is None

    def add_rejected(self, rejected: Rejected) -> None:
        self.dropped[rejected.operation] += bool(rejected.operation)
        self.rules[rejected.rule] += 1
        self.rates[Cell(rejected.operation, rejected.round, rejected.source)].dropped[rejected.rule] += 1

    def by(
        self, *columns: Literal["operation", "round", "source"], of: Literal["rewrites", "all"] = "rewrites"
    ) -> dict[tuple[str | int, ...], Rate]:
        """The rates of rewrites, or of these and the seeds, by some of operation, round and source, in order."""
        order = {name: number for number, name in enumerate(OPERATIONS)}
        cells = [cell for cell in self.rates if cell.operation or of == "all"]

        def place(cell: Cell) -> tuple[Any, ...]:
            """By the columns in their order: operations in their own, and seeds behind them."""
            named = {**cell._asdict(), "operation": (not cell.operation, order.get(cell.operation, len(order)))}
            return tuple(named[column] for column in columns)

        summed: defaultdict[tuple[str | int, ...], Rate] = defaultdict(Rate)
        for cell in sorted(sorted(cells), key=place):
            summed[tuple(getattr(cell, column) for column in columns)].add(self.rates[cell])
        return dict(summed)

    def summary(self) -> dict[str, Any]:
        tried = [name for name in OPERATIONS if self.accepted[name] + self.dropped[name]]
        return {
            "records": self.records,
            "rejected": self.rules.total(),
            "by_round": {str(number): self.rounds[number] for number in sorted(self.rounds)},
            "by_operation": {name: {"accepted": self.accepted[name], "rejected": self.dropped[name]} for name in tried},
            "by_rule": dict(sorted(self.rules.items())),
            "models": sorted(self.models),
            "rates": [
                {"operation": operation, "round": round_, "source": source, **rate.to_json()}
                for (operation, round_, source), rate in self.by("operation", "round", "source").items()
            ],
        }

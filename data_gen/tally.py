"""What a run came to, in counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_gen.evolve import Lineage
from data_gen.operations import OPERATIONS


@dataclass
class Tally:
    """Counts over all lineages."""

    records: int = 0
    rounds: Counter[int] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, lineage: Lineage) -> None:
        self.records += len(lineage.records)
        for record in lineage.records:
            self.rounds[record.round] += 1
            self.accepted[record.operation] += bool(record.operation)
            self.models.update({record.model} - {""})
        for rejected in lineage.rejected:
            self.dropped[rejected.operation] += bool(rejected.operation)
            self.rules[rejected.rule] += 1

    def summary(self) -> dict[str, Any]:
        tried = [name for name in OPERATIONS if self.accepted[name] + self.dropped[name]]
        return {
            "records": self.records,
            "rejected": self.rules.total(),
            "by_round": {str(number): self.rounds[number] for number in sorted(self.rounds)},
            "by_operation": {name: {"accepted": self.accepted[name], "rejected": self.dropped[name]} for name in tried},
            "by_rule": dict(sorted(self.rules.items())),
            "models": sorted(self.models),
        }

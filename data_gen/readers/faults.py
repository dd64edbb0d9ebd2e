"""What is wrong with the rows of the seeds, counted, and told in few lines however many there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_gen.readers.rows import Row
from data_gen.readers.schemas import SCHEMAS, UNKNOWN_SCHEMA

_SHOWN = 10
OTHER = "other faults"


@dataclass
class Faults:
    """The rows that can not be used. Memory holds ten kinds of fault, and ten rows of each."""

    rows: int = 0
    """Rows with a fault; one with several counts once."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Fault -> number of rows with it; beyond ten kinds they are one, `OTHER`."""
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Fault -> (source, number) of the first rows with it."""

    def add(self, row: Row, *faults: str) -> None:
        self.rows += 1
        for fault in faults:
            kind = fault if fault in self.kinds or len(self.kinds) < _SHOWN else OTHER
            self.kinds[kind] += 1
            places = self.places.setdefault(kind, [])
            if len(places) < _SHOWN:
                places.append((row.source, row.number))

    def report(self, path: str, *, rows: int) -> str:
        """All of them, of `rows` rows that were looked at."""
        lines = [f"{path}: {self.rows} of {rows} rows can not be used; mend or remove them, then start again"]
        lines += [f"  {self._where(kind)}: {kind}" for kind in self.kinds]
        if self.rows < rows:
            lines.append("  To go on without such rows, set seeds.bad_rows=skip")
        if any(kind.startswith(UNKNOWN_SCHEMA) for kind in self.kinds):
            lines.append(f"Known schemas:\n{SCHEMAS}")
        return "\n".join(lines)

    def _where(self, kind: str) -> str:
        """Such as `rows 1, 2 and 7 more`, with the files where there are several."""
        by_source: dict[str, list[int]] = {}
        for source, number in self.places[kind]:
            by_source.setdefault(source, []).append(number)
        several = len({source for places in self.places.values() for source, _ in places}) > 1
        told = [
            f"{f'{source} ' * several}{'row' if len(numbers) == 1 else 'rows'} {', '.join(map(str, numbers))}"
            for source, numbers in by_source.items()
        ]
        unseen = self.kinds[kind] - len(self.places[kind])
        return "; ".join(told) + (f" and {unseen} more" if unseen else "")

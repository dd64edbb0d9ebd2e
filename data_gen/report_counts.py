"""What a data set's page counts, in one pass over its records and one over what was dropped.

Memory holds the counts, and the lineages of a sample: not the data set.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_gen.evolve import Lineage
from data_gen.records import Record, Rejected
from data_gen.tally import Rate, Tally
from data_gen.word_counts import count_words


@dataclass
class RoundCounts:
    """Sums over the records of a round, beside those of `Tally`."""

    words: int = 0
    words_of_answers: int = 0
    simulated: int = 0
    """Tasks of the simulated world, which alone have a number of steps."""
    steps: int = 0


@dataclass
class Counts:
    """All that the page says of a data set in numbers, and the lineages that it shows."""

    tally: Tally = field(default_factory=Tally)
    rounds: defaultdict[int, RoundCounts] = field(default_factory=lambda: defaultdict(RoundCounts))
    models: Counter[str] = field(default_factory=Counter)
    """Who wrote the answers; "" where the seeds brought their own."""
    evolvers: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    lineages: int = 0
    """Of which there is at least one record: data sets are written lineage by lineage."""
    sample: tuple[Lineage, ...] = ()

    @property
    def whole(self) -> Rate:
        """What became of all candidates, seeds among them."""
        return self.tally.by(of="all").get((), Rate())


def count(records: Iterable[Record], rejected: Iterable[Rejected], *, sampled: int) -> Counts:
    """Counts everything, and keeps `sampled` lineages, chosen by the hash of their ids."""
    counts, sample = Counts(), _Sample(sampled)
    last = None
    for record in records:
        counts.lineages += record.lineage != last
        last = record.lineage
        counts.tally.add_record(record)
        counts.models[record.model] += 1
        counts.evolvers.update({record.evolver} - {""})
        counts.flags.update(record.flags)
        _add(record, counts.rounds[record.round])
        sample.add(record)
    for row in rejected:
        counts.tally.add_rejected(row)
        sample.add(row)
    counts.sample = sample.lineages()
    return counts


def read_rejected(file: Path) -> Iterator[Rejected]:
    """The rows of rejected.jsonl, one at a time."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Rejected(**json.loads(line))


def _add(record: Record, sums: RoundCounts) -> None:
    sums.words += count_words(record.instruction)
    sums.words_of_answers += count_words(record.answer)
    sums.simulated += record.steps > 0
    sums.steps += record.steps


class _Sample:
    """The lineages with the smallest hashes of those that were seen, with all that was seen of them.

    The sample is that of the whole data set in whatever order it is read: a lineage that once had to leave can not
    come back, for the hashes to beat only get smaller.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[str, tuple[list[Record], list[Rejected]]] = {}
        self._largest: list[tuple[int, str]] = []  # a heap of (-hash, lineage)

    def add(self, outcome: Record | Rejected) -> None:
        lineage = outcome.lineage
        if lineage not in self._held and not self._enter(lineage):
            return
        records, rejected = self._held[lineage]
        if isinstance(outcome, Record):
            records.append(outcome)
        else:
            rejected.append(outcome)

    def _enter(self, lineage: str) -> bool:
        key = -int.from_bytes(hashlib.sha256(lineage.encode()).digest()[:8], "big")
        if len(self._held) >= self._size:
            if not self._largest or key <= self._largest[0][0]:
                return False
            _, gone = heapq.heappop(self._largest)
            del self._held[gone]
        heapq.heappush(self._largest, (key, lineage))
        self._held[lineage] = ([], [])
        return True

    def lineages(self) -> tuple[Lineage, ...]:
        return tuple(Lineage(tuple(records), tuple(rejected)) for _, (records, rejected) in sorted(self._held.items()))

"""What a data set's page counts, in one pass over its records and one over what was dropped.

Memory holds the counts, the lineages of a sample, and some bytes for each of the others: not the data set.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_gen.evolve import Lineage
from data_gen.records import Record, Rejected
from data_gen.tally import Rate, Tally
from data_gen.word_counts import count_words

_AT_ONCE = 4096  # hashes; one in a set takes ten times the memory that it takes in an array


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
    """Of which there is at least one record."""
    sample: tuple[Lineage, ...] = ()

    @property
    def whole(self) -> Rate:
        """What became of all candidates, seeds among them."""
        return self.tally.by(of="all").get((), Rate())


def count(records: Iterable[Record], rejected: Iterable[Rejected], *, sampled: int) -> Counts:
    """Counts everything, and keeps `sampled` lineages, chosen by the hash of their ids."""
    counts, sample, lineages = Counts(), _Sample(sampled), Distinct()
    for record in records:
        lineages.add(record.lineage)
        counts.tally.add_record(record)
        counts.models[record.model] += 1
        counts.evolvers.update({record.evolver} - {""})
        counts.flags.update(record.flags)
        _add(record, counts.rounds[record.round])
        sample.add(record)
    for row in rejected:
        counts.tally.add_rejected(row)
        sample.add(row)
    counts.lineages = lineages.count()
    counts.sample = sample.lineages()
    return counts


class Distinct:
    """Counts the lineages that come by, in whatever order: a data set may be shuffled. Of most, 8 bytes are held."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.uint64)  # hashes, sorted, each once
        self._new: set[int] = set()  # some of which may be held

    def add(self, lineage: str) -> None:
        self._new.add(_hash(lineage))
        if len(self._new) >= max(_AT_ONCE, len(self._held) // 8):
            self._join()

    def count(self) -> int:
        self._join()
        return len(self._held)

    def _join(self) -> None:
        self._held = np.union1d(self._held, np.fromiter(self._new, np.uint64, len(self._new)))
        self._new.clear()


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
        key = -_hash(lineage)
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


def _hash(lineage: str) -> int:
    return int.from_bytes(hashlib.sha256(lineage.encode()).digest()[:8], "big")

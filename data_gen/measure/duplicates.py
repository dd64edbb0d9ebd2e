"""Near-duplicates among instructions of different lineages, within a round and across rounds.

Two instructions are near-duplicates if the Jaccard similarity of their runs of five words (Broder 1997) reaches the
threshold. MinHash signatures (`datasketch`) bring the candidates, sorted bands of them instead of datasketch's index,
which takes 3 kB an instruction and more; each candidate is then compared run by run, so nothing is merged by chance.

The earliest is kept: by round, then by lineage. Every other is compared with those that were kept before it, so a
chain of small differences does not merge its ends. Versions of one lineage resemble each other by design; they are
counted apart and are never duplicates of each other.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_gen.measure.words import run_hashes
from data_gen.records import Record
from data_gen.word_counts import UNSPACED

if TYPE_CHECKING:
    import datasketch

RUN = 5
"""Words of a run. A shorter text is one run of all its words, so it has only the same words as a near-duplicate."""

PERMUTATIONS = 128
RECALL = 0.995
"""Of pairs at the threshold, this share at least becomes a candidate; more similar ones are missed more rarely."""

# Signs of sums and code count, those of sentences do not; where no spaces stand between words, every letter is one.
_TOKEN = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+|[^\w\s.,;:!?'\"`‘’“”…、。，；：！？「」]")
_KNOWN_WORDS = 1_000_000  # whose hashes are kept at hand


@dataclass(frozen=True)
class Duplicate:
    """A record whose instruction was there before."""

    record: str
    """The record's id."""
    round: int
    of: str
    """The id of the record that is kept: the earliest that it is like."""
    of_round: int
    similarity: float
    """Jaccard similarity of the runs of words of the two."""


@dataclass(frozen=True)
class Duplicates:
    """What was found among so many records."""

    records: int
    found: tuple[Duplicate, ...]
    """In the order in which they were kept or not: by round, then by lineage."""
    near_own_lineage: Mapping[int, int]
    """By round: records that are as like an earlier version of their own lineage. They are no duplicates."""


def find_duplicates(records: Callable[[], Iterable[Record]], *, threshold: float = 0.8) -> Duplicates:
    """Finds the near-duplicates; the same ones in whatever order the records come.

    `records` makes the iterator, and is called twice: for signatures, and for the runs of words of what may be a
    duplicate. Memory: 0.2 kB a record and 8 bytes a word of those that may be one.
    """
    assert 0 < threshold <= 1
    names, keys = _signed(records(), bands=_bands(threshold))
    order = sorted(range(len(names)), key=lambda index: (names[index].round, names[index].lineage, names[index].id))
    places = np.empty(len(order), np.int64)  # by index: where in the order it comes
    places[order] = np.arange(len(order))
    buckets = _buckets(keys)
    del keys
    suspects = np.asarray((buckets >= 0).any(axis=1))
    runs: dict[int, np.ndarray] = {}
    hashes = _Hashes()
    for index, record in enumerate(records()):
        assert record.id == names[index].id, "the second reading brings the same records in the same order"
        if suspects[index]:
            runs[index] = hashes.runs(record.instruction)
    found: list[Duplicate] = []
    near_own = Counter[int]()
    kept = _Kept(buckets)
    for index in sorted(np.flatnonzero(suspects).tolist(), key=lambda index: places[index]):
        near = kept.near(index, runs, threshold=threshold)
        others = [(other, similarity) for other, similarity in near if names[other].lineage != names[index].lineage]
        if others:
            of, similarity = min(others, key=lambda pair: places[pair[0]])
            name, first = names[index], names[of]
            found.append(Duplicate(name.id, name.round, first.id, first.round, round(similarity, 6)))
            del runs[index]
            continue
        if near:
            near_own[names[index].round] += 1
        kept.add(index)
    return Duplicates(records=len(names), found=tuple(found), near_own_lineage=dict(sorted(near_own.items())))


def band_keys(records: Iterable[Record], *, threshold: float) -> np.ndarray:
    """uint64 [N, bands]: only records with the same number in some column may be near-duplicates."""
    return _signed(records, bands=_bands(threshold))[1]


@dataclass(frozen=True, slots=True)
class _Name:
    id: str
    lineage: str
    round: int


# --- candidates


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows): as many rows as find a pair at the threshold with `RECALL`; more rows bring fewer candidates."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def _signed(records: Iterable[Record], *, bands: tuple[int, int]) -> tuple[list[_Name], np.ndarray]:
    """The records' names, and the hashes of the bands of their signatures, uint64 [N, bands]."""
    count, rows = bands
    names: list[_Name] = []
    blocks: list[np.ndarray] = []
    hashes = _Hashes()
    for block in _some(records):
        names += [_Name(record.id, record.lineage, record.round) for record in block]
        signatures = np.stack([hashes.signature(record.instruction) for record in block])
        columns = [signatures[:, band * rows : (band + 1) * rows] for band in range(count)]
        blocks.append(np.stack([_row_hashes(column) for column in columns], axis=1))
    return names, np.concatenate(blocks) if blocks else np.zeros((0, count), np.uint64)


def _some(records: Iterable[Record]) -> Iterator[list[Record]]:
    held: list[Record] = []
    for record in records:
        held.append(record)
        if len(held) == 1_000:
            yield held
            held = []
    if held:
        yield held


def _row_hashes(column: np.ndarray) -> np.ndarray:
    """One 64-bit hash of each row."""
    flat = run_hashes(np.ascontiguousarray(column).reshape(-1).astype(np.uint64), column.shape[1])
    return flat[:: column.shape[1]]


def _buckets(keys: np.ndarray) -> np.ndarray:
    """int32 [N, bands]: records with the same key in a band have the same number there; -1 where nobody else has it."""
    buckets = np.full(keys.shape, -1, np.int32)
    used = 0
    for band in range(keys.shape[1]):
        _, numbers, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        shared = counts > 1
        renumbered = np.where(shared, np.cumsum(shared) - 1 + used, -1)
        buckets[:, band] = renumbered[numbers]
        used += int(shared.sum())
    return buckets


class _Kept:
    """The records kept so far, by bucket. A duplicate is never added, so a crowd of them costs no more than one."""

    def __init__(self, buckets: np.ndarray) -> None:
        self._buckets = buckets
        sizes = np.bincount(buckets[buckets >= 0])
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._filled = np.zeros(len(sizes), np.int64)
        self._members = np.empty(int(self._starts[-1]), np.int32)

    def add(self, index: int) -> None:
        own = self._buckets[index]
        own = own[own >= 0]
        self._members[self._starts[own] + self._filled[own]] = index
        self._filled[own] += 1

    def near(self, index: int, runs: Mapping[int, np.ndarray], *, threshold: float) -> list[tuple[int, float]]:
        """(index, Jaccard similarity) of those kept that reach the threshold."""
        own = self._buckets[index]
        own = own[own >= 0]
        own = own[self._filled[own] > 0]
        if not len(own):
            return []
        starts = self._starts[own]
        ranges = zip(starts.tolist(), (starts + self._filled[own]).tolist(), strict=True)
        candidates = np.unique(np.concatenate([self._members[start:end] for start, end in ranges])).tolist()
        mine = runs[index]
        size = len(mine)
        texts = [(other, runs[other]) for other in candidates]
        # Sets of such different sizes can not be so similar.
        texts = [(o, t) for o, t in texts if min(size, len(t)) >= threshold * max(size, len(t))]
        if not texts:
            return []
        lengths = np.array([len(text) for _, text in texts])
        theirs = np.concatenate([text for _, text in texts])
        at = np.minimum(np.searchsorted(mine, theirs), size - 1)
        common = np.add.reduceat(mine[at] == theirs, np.cumsum(lengths) - lengths, dtype=np.int64)
        similarities = common / (size + lengths - common)
        reached = zip(texts, similarities.tolist(), strict=True)
        return [(other, similarity) for (other, _), similarity in reached if similarity >= threshold]


# --- from texts to numbers


class _Hashes:
    """Hashes of words, those of the commonest kept at hand."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._blank: datasketch.MinHash | None = None

    def runs(self, text: str) -> np.ndarray:
        """The set of runs of `RUN` words of a text, as sorted 64-bit hashes; at least one."""
        tokens = _TOKEN.findall(text.casefold()) or [text.strip()]
        numbers = np.array([self._word(token) for token in tokens], dtype=np.uint64)
        return np.unique(run_hashes(numbers, min(RUN, len(numbers))))

    def signature(self, text: str) -> np.ndarray:
        """MinHash, uint32 [PERMUTATIONS]."""
        if self._blank is None:
            import datasketch

            self._blank = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=_itself, scheme="affine32")
        sketch = self._blank.copy()
        sketch.update_batch((self.runs(text) >> np.uint64(32)).tolist())
        signature: np.ndarray = sketch.hashvalues
        return signature

    def _word(self, word: str) -> int:
        number = self._words.get(word)
        if number is None:
            if len(self._words) >= _KNOWN_WORDS:
                self._words.clear()
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = self._words[word] = int.from_bytes(digest, "big")
        return number


def _itself(number: Any) -> Any:
    return number

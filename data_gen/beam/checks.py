"""Near-duplicates and test items among more records than one machine holds: the findings of `data_gen.measure`.

Near-duplicates: records that share a band of their MinHash signatures are linked, and what is linked, directly or
through others, is a group. What is decided within a group does not depend on any other, so each is given to
`find_duplicates` as if it were the whole data set, and the findings are the same as those of all records together.
One place sees the links, as pairs of numbers: some 300 bytes a record that has a link. A group is held by one worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from data_gen.beam.kept import kept
from data_gen.measure import contamination
from data_gen.measure.contamination import Finding, TestSet
from data_gen.measure.duplicates import Duplicate, Duplicates, band_keys, find_duplicates
from data_gen.records import Record, Turn

_MOST_AT_ONCE = 1_000


def compared(record: Record) -> Record:
    """What the checks need of a record: its names and its instruction."""
    turns = (Turn("user", record.instruction),)
    return Record(id=record.id, lineage=record.lineage, round=record.round, turns=turns)


# --- near-duplicates


def near_duplicates(records: beam.PCollection, *, threshold: float) -> beam.PCollection:
    """Records -> `Duplicates`, one for each group of records that may be duplicates of each other; see `joined`."""
    links = (
        records
        | "some records" >> beam.BatchElements(max_batch_size=_MOST_AT_ONCE)
        | "bands" >> beam.FlatMap(_bands, threshold=threshold)
        | "by band" >> beam.GroupByKey()
        | "links" >> beam.FlatMap(_links)
        | "each link once" >> beam.Distinct()
    )
    groups = (
        links
        | "to one place" >> beam.WithKeys(0)
        | "all links" >> beam.GroupByKey()
        | "groups" >> beam.FlatMap(_groups)
    )
    numbered = records | "numbered" >> beam.Map(_numbered)
    return (
        {"record": numbered, "group": groups}
        | "records with a link" >> beam.CoGroupByKey()
        | "to their group" >> beam.FlatMap(_to_group)
        | "by group" >> beam.GroupByKey()
        | "decided" >> beam.Map(_decided, threshold=threshold)
    )


def kept_duplicates(file: Path, *, records: int) -> Duplicates:
    """What was found in all groups, among so many records: as `find_duplicates` would have said it."""
    near_own = Counter[int]()
    found: list[Duplicate] = []
    for part in kept(file):
        found += [Duplicate(**one) for one in part["found"]]
        near_own.update({int(round_): count for round_, count in part["near_own_lineage"].items()})
    found.sort(key=lambda one: (one.round, one.record.rpartition("/")[0], one.record))
    return Duplicates(records=records, found=tuple(found), near_own_lineage=dict(sorted(near_own.items())))


def _number(record: Record) -> int:
    """64 bits for an id. Two records with the same number fall into one group, which changes nothing else."""
    return int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=8).digest(), "big", signed=True)


def _numbered(record: Record) -> tuple[int, Record]:
    return _number(record), record


def _bands(records: Sequence[Record], *, threshold: float) -> Iterator[tuple[bytes, int]]:
    """(band and its hash, record's number); in bytes, for Beam's own coder of numbers has no 64 unsigned bits."""
    keys = band_keys(records, threshold=threshold)
    for record, row in zip(records, keys, strict=True):
        number = _number(record)
        for band, key in enumerate(row):
            yield band.to_bytes(2, "big") + key.tobytes(), number


def _links(band: tuple[bytes, Iterable[int]]) -> Iterator[tuple[int, int]]:
    """Everyone in a band linked to one of them: it joins them all."""
    several = iter(band[1])
    first = next(several)
    for other in several:
        if other != first:
            yield min(first, other), max(first, other)


def _groups(links: tuple[int, Iterable[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """(record's number, group) for every record with a link; a group goes by its smallest number."""
    parents: dict[int, int] = {}

    def group(number: int) -> int:
        while (parent := parents.setdefault(number, number)) != number:
            parents[number] = number = parents[parent]
        return number

    for first, second in links[1]:
        low, high = sorted((group(first), group(second)))
        parents[high] = low
    for number in parents:
        yield number, group(number)


def _to_group(numbered: tuple[int, Mapping[str, Iterable[Any]]]) -> Iterator[tuple[int, Record]]:
    """The records with this number, if there is a group for them."""
    _, found = numbered
    for group in found["group"]:
        for record in found["record"]:
            yield group, record


def _decided(group: tuple[int, Iterable[Record]], *, threshold: float) -> Duplicates:
    held = list(group[1])
    return find_duplicates(lambda: iter(held), threshold=threshold)


# --- test items


def test_sets(pipeline: beam.Pipeline, files: Sequence[str], *, ngram: int) -> beam.PCollection:
    """The test sets in their order, read and indexed once: one element, a list of `TestSet`."""
    return (
        pipeline
        | "names of test sets" >> beam.Create([tuple(files)])
        | "test sets" >> beam.Map(_open_test_sets, ngram=ngram)
    )


def contaminated(records: beam.PCollection, tests: beam.PCollection, *, similarity: float) -> beam.PCollection:
    """Records -> `Finding`, at most one for each record; `tests` is what `test_sets` made."""
    return (
        records
        | "some to compare" >> beam.BatchElements(max_batch_size=_MOST_AT_ONCE)
        | "compared with test sets" >> beam.FlatMap(_search, beam.pvalue.AsSingleton(tests), similarity=similarity)
    )


def kept_findings(file: Path) -> tuple[Finding, ...]:
    """All findings, by lineage and round."""
    return tuple(sorted((Finding(**one) for one in kept(file)), key=lambda one: (one.lineage, one.round)))


def _open_test_sets(files: Sequence[str], *, ngram: int) -> list[TestSet]:
    return [contamination.open_test_set(file, ngram=ngram) for file in files]


def _search(records: Sequence[Record], tests: Sequence[TestSet], *, similarity: float) -> Iterator[Finding]:
    return contamination.find(records, tests, similarity=similarity)

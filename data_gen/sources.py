"""Public instruction data sets -> Records of round 0, one after another, however many there are.

    found = check_seeds(config.seeds)            reads everything once: how many, their digest, all bad rows together
    for record in iter_seeds(config.seeds): ...  reads again; memory holds one row

Containers (JSON, Parquet, ...) are in `readers/containers.py`, schemas (Alpaca, ShareGPT, ...) in `readers/schemas.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from data_gen import world
from data_gen.config import SeedFile, Shard, SimulatedSeeds
from data_gen.readers.containers import is_there, rows_of
from data_gen.readers.conversations import Conversation, RowError
from data_gen.readers.faults import Faults
from data_gen.readers.oasst import is_message
from data_gen.readers.rows import Row, SourceError
from data_gen.readers.schemas import conversations_of, language_of, may_repeat
from data_gen.readers.scratch import Scratch
from data_gen.records import Record, Turn

__all__ = ["SeedsFound", "SourceError", "are_there", "check_seeds", "in_shard", "iter_seeds", "load_seeds", "seed_id"]

_WHOLE = Shard()


@dataclass(frozen=True, kw_only=True)
class SeedsFound:
    """What the seeds are, and what became of the rows that are none."""

    count: int
    sha256: str
    """Of the lineages and turns in their order, whatever files they came in."""
    sources: Mapping[str, int]
    """File or data set -> number of seeds from it."""
    rows: int
    """Rows that were read; one may hold several seeds, or none."""
    skipped: Mapping[str, int]
    """Fault -> number of rows, where seeds.bad_rows is 'skip'."""
    left_out: Mapping[str, int]
    """Why -> number of rows with nothing wrong that are no seeds: repeated, deleted, or in another language."""
    mended: Mapping[str, int]
    """What was cut off -> number of conversations."""

    def told(self) -> list[str]:
        """What a user should know of the rows that were not taken as they are, one line for each kind."""
        return [
            *(f"{_rows(count)} skipped: {fault}" for fault, count in self.skipped.items()),
            *(f"{_rows(count)} left out: {reason}" for reason, count in self.left_out.items()),
            *(f"{_rows(count)} mended: {how}" for how, count in self.mended.items()),
        ]


def check_seeds(seeds: SeedFile | SimulatedSeeds) -> SeedsFound:
    """Reads all seeds once, without holding them, and reports all bad rows together.

    Raises:
      SourceError: a file is missing, empty, damaged or of no known kind, or not one seed is left; and, unless
        seeds.bad_rows is 'skip', a row has an unknown schema, no instruction or a conversation that can not be
        followed.
    """
    counted = _Counted()
    digest = hashlib.sha256()
    count = 0
    for record in _records(seeds, counted, when_bad="collect"):
        digest.update(b"\n" * bool(count) + seed_id(record).encode())
        count += 1
    if isinstance(seeds, SeedFile):
        if counted.faults.rows and seeds.bad_rows == "refuse":
            raise SourceError(counted.faults.report(seeds.path, rows=counted.rows))
        if seeds.language and not counted.with_language:
            raise SourceError(
                f"seeds.language = {seeds.language!r} has no effect: no row of {seeds.path} says its language under "
                "'lang'; leave the setting out"
            )
        if not count:
            raise SourceError(_none_left(seeds, counted))
    return SeedsFound(
        count=count,
        sha256=digest.hexdigest(),
        sources=dict(counted.sources),
        rows=counted.rows,
        skipped=dict(counted.faults.kinds),
        left_out=dict(counted.left_out),
        mended=dict(counted.mended),
    )


def iter_seeds(seeds: SeedFile | SimulatedSeeds, *, shard: Shard = _WHOLE) -> Iterator[Record]:
    """The seeds of a shard as records of round 0, in their own order; the lineage is the seed's number, from 000000.

    The numbers are those of all shards together, so a lineage is in exactly one.

    Raises:
      SourceError: as `check_seeds`, at the first bad row.
    """
    skips = isinstance(seeds, SeedFile) and seeds.bad_rows == "skip"
    for record in _records(seeds, _Counted(), when_bad="skip" if skips else "stop"):
        if in_shard(record.lineage, shard):
            yield record


def load_seeds(seeds: SeedFile | SimulatedSeeds) -> list[Record]:
    """All seeds at once, after all were checked; for few.

    Raises:
      SourceError: as `check_seeds`.
    """
    check_seeds(seeds)
    return list(iter_seeds(seeds))


def are_there(seeds: SeedFile | SimulatedSeeds) -> bool:
    """Whether there is anything where the seeds should be; a finished run does without."""
    return isinstance(seeds, SimulatedSeeds) or is_there(seeds.path)


def seed_id(seed: Record) -> str:
    """The lineage with a digest of its seed, so that a changed row is named."""
    turns = json.dumps([[turn.role, turn.content] for turn in seed.turns])
    return f"{seed.lineage} {hashlib.sha256(turns.encode()).hexdigest()[:16]}"


def in_shard(lineage: str, shard: Shard) -> bool:
    """Whether the hash of a lineage falls to the shard."""
    return int.from_bytes(hashlib.sha256(lineage.encode()).digest()[:8], "big") % shard.count == shard.index


# --- rows -> records


@dataclass
class _Counted:
    """What a pass over the seeds has seen so far."""

    rows: int = 0
    with_language: int = 0
    faults: Faults = field(default_factory=Faults)
    sources: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)


def _records(
    seeds: SeedFile | SimulatedSeeds, counted: _Counted, *, when_bad: Literal["collect", "skip", "stop"]
) -> Iterator[Record]:
    """All seeds in their order; what is wrong with a row is counted, and ends it if `when_bad` says so."""
    if isinstance(seeds, SimulatedSeeds):
        yield from _simulated(seeds, counted)
        return
    if seeds.limit < 0:
        raise SourceError(f"seeds.limit is {seeds.limit}: give a number of seeds, or 0 for all")
    index = 0
    with Scratch() as scratch:
        for row in _rows_and_trees(seeds, counted, scratch):
            faults: dict[str, None] = {}
            for one in _conversations(row, seeds, counted):
                if one.fault:
                    faults[one.fault] = None
                elif one.left_out:
                    counted.left_out[one.left_out] += 1
                else:
                    counted.sources[row.source] += 1
                    counted.mended.update([one.mended] * bool(one.mended))
                    yield _record(index, one.turns, source=row.source)
                    index += 1
                    if index == seeds.limit:
                        break
            if faults:
                counted.faults.add(row, *faults)
                if when_bad == "stop":
                    raise SourceError(counted.faults.report(seeds.path, rows=counted.rows))
            if seeds.limit and index == seeds.limit:
                return


def _rows_and_trees(seeds: SeedFile, counted: _Counted, scratch: Scratch) -> Iterator[Row]:
    """All rows in their order; then the trees of those that were single messages. What repeats is left out."""
    for row in rows_of(seeds.path):
        counted.rows += 1
        new = True
        if is_message(row.value):
            try:
                new = scratch.add_message(row)
            except RowError as fault:
                yield Row(row.source, row.number, fault=str(fault))
        elif may_repeat(row.value) and not scratch.is_new(row.value):
            new = False
        else:
            yield row
        if not new:
            counted.left_out["repeats an earlier row"] += 1
    yield from scratch.trees()


def _conversations(row: Row, seeds: SeedFile, counted: _Counted) -> Iterator[Conversation]:
    if row.fault:
        yield Conversation(fault=row.fault)
        return
    language = language_of(row.value)
    if language is not None:
        counted.with_language += 1
        if seeds.language and not _speaks(language, seeds.language):
            yield Conversation(left_out=f"not in the language {seeds.language!r}")
            return
    yield from conversations_of(row.value)


def _speaks(language: str, wanted: str) -> bool:
    """Whether a tag such as pt-BR is the one wanted, or of the language wanted (pt)."""
    found = language.lower().replace("_", "-")
    return found == wanted.lower() or found.split("-")[0] == wanted.lower()


def _simulated(seeds: SimulatedSeeds, counted: _Counted) -> Iterator[Record]:
    if seeds.count < 1:
        raise SourceError(f"seeds.count is {seeds.count}: ask for at least one seed")
    source = f"simulated world (seed {seeds.seed})"
    for index, text in enumerate(world.sample_seeds(seeds.count, seeds.seed)):
        counted.rows += 1
        counted.sources[source] += 1
        yield _record(index, (Turn("user", text),), source=source)


def _record(index: int, turns: tuple[Turn, ...], *, source: str) -> Record:
    lineage = f"{index:06d}"
    return Record(id=f"{lineage}/0", lineage=lineage, turns=turns, source=source)


def _none_left(seeds: SeedFile, counted: _Counted) -> str:
    told = [f"{reason} ({_rows(count)})" for reason, count in (counted.left_out + counted.faults.kinds).items()]
    return f"{seeds.path}: not one seed is left of {_rows(counted.rows)}: {'; '.join(told) or 'they hold none'}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"

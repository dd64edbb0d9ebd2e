"""What is measured of the finished records of a run: duplicates, contamination, diversity and difficulty by round.

    measures = await per_round(records, config=config.measure, seed=config.seed, judge=judge)
    measures.checks["seed_7/2"]  -> (Check("duplicate", "flag", "0.91 of the runs of words are also in seed_3/1"),)
    measures.to_json()           -> {"difficulty": {"rounds": [{"round": 0, "score": {"value": 3.1, ...}, ...}]}, ...}

Records are read several times as an iterator; memory holds the names of all of them, and the texts of samples.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.errors import UserError
from data_gen.config import Measure
from data_gen.measure.asking import Judge, keyed_number, together
from data_gen.measure.contamination import Decided, FileContamination, Finding, by_file, decide, find, open_test_set
from data_gen.measure.difficulty import Difficulty, judge_lineage, summarise
from data_gen.measure.diversity import EQUAL, LEAST, RoundDiversity, diversity
from data_gen.measure.duplicates import Duplicates, find_duplicates
from data_gen.measure.estimates import Estimate
from data_gen.records import Record

Records = Callable[[], Iterable[Record]]
"""Makes an iterator over the records; called several times, it brings the same ones in the same order."""


class MeasureError(UserError):
    """A setting of what is measured can not be used."""


class Check(NamedTuple):
    """What a check found of one record, what is to become of it, and why."""

    rule: Literal["duplicate", "contaminated"]
    action: Literal["flag", "drop"]
    evidence: str


class Found(NamedTuple):
    """What was found elsewhere among the same records by the same settings."""

    duplicates: Duplicates
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Contamination:
    """What the search for test items came to."""

    files: tuple[FileContamination, ...]
    decided: Decided


@dataclass(frozen=True)
class Measures:
    """All that was measured; None, or nothing, of what was not asked for."""

    config: Measure
    records: Mapping[int, int]
    """Number of records by round, before any was dropped."""
    duplicates: Duplicates | None
    contamination: Contamination | None
    diversity: tuple[RoundDiversity, ...]
    """Of the records that are not to be dropped, as is difficulty."""
    difficulty: Difficulty | None

    @property
    def checks(self) -> Mapping[str, tuple[Check, ...]]:
        """By record id, what was found of it; records of which nothing was found are absent."""
        return _checks(self.config, self.duplicates, self.contamination)

    def to_json(self) -> dict[str, Any]:
        """By the name of each measure its figures: those by round under "rounds", an estimate as a mapping."""
        told: dict[str, Any] = {}
        if self.difficulty is not None:
            told["difficulty"] = _plain(self.difficulty)
        for equal in EQUAL:
            rounds = [{"round": of.round, **_plain(of.measures)} for of in self.diversity if of.equal == equal]
            if rounds:
                told[f"diversity at equal {equal}"] = {"rounds": rounds}
        if self.duplicates is not None:
            told["duplicates"] = _duplicates_by_round(self.duplicates, self.records)
        if self.contamination is not None:
            told["contamination"] = _contamination_by_round(self.contamination, self.records)
        return told


def check_measure(config: Measure) -> None:
    """Raises MeasureError for settings that can not be used or have no effect; reads the test sets for that."""
    for name in ("difficulty_lineages", "diversity_sample"):
        if getattr(config, name) < 0:
            raise MeasureError(
                f"measure.{name} = {getattr(config, name)}: it must be at least 0, which is: not measured"
            )
    if 0 < (sample := config.diversity_sample) < 2 * LEAST:
        raise MeasureError(f"measure.diversity_sample = {sample}: it must be at least {2 * LEAST}, or 0: not measured")
    for name in ("duplicate_threshold", "contamination_similarity"):
        if not 0 < getattr(config, name) <= 1:
            raise MeasureError(f"measure.{name} = {getattr(config, name)}: it must be above 0 and at most 1")
    if config.contamination_ngram < 2:
        raise MeasureError(f"measure.contamination_ngram = {config.contamination_ngram}: it must be at least 2 words")
    if not config.contamination_files and (config.contamination, config.contamination_verdict) != ("flag", "retrieval"):
        raise MeasureError("measure.contamination_files is empty: without a test set, nothing is searched for")
    if len(set(config.contamination_files)) < len(config.contamination_files):
        raise MeasureError("measure.contamination_files: one is named twice")
    for file in config.contamination_files:
        open_test_set(Path(file), ngram=config.contamination_ngram)


def asks_judge(config: Measure) -> bool:
    """Whether any measure needs a judge."""
    return config.difficulty_lineages > 0 or bool(
        config.contamination_files and config.contamination_verdict == "model"
    )


async def per_round(
    records: Records, *, config: Measure, seed: int, judge: Judge | None = None, found: Found | None = None
) -> Measures:
    """Measures finished records, whatever order they come in; the same records and replies give the same figures.

    Duplicates and test items that were `found` are not searched for again.

    Raises:
      MeasureError: a test set that can not be read.
      Permanent: with scope "run", when the judge would not answer any other request either.
    """
    assert judge is not None or not asks_judge(config)
    counts = Counter(record.round for record in records())
    duplicates = contamination = None
    if config.duplicates != "off":
        duplicates = found.duplicates if found else find_duplicates(records, threshold=config.duplicate_threshold)
    if config.contamination_files:
        contamination = await find_contaminated(records, config=config, judge=judge, found=found)
    dropped = {
        name
        for name, checks in _checks(config, duplicates, contamination).items()
        if any(check.action == "drop" for check in checks)
    }

    def left() -> Iterator[Record]:
        return (record for record in records() if record.id not in dropped)

    difficulty = None
    if judge is not None and config.difficulty_lineages:
        lineages = sample_lineages(left(), count=config.difficulty_lineages, seed=seed)
        judged = await together([judge_lineage(lineage, judge=judge) for lineage in lineages])
        difficulty = summarise(judged, seed=seed)
    texts = sample_instructions(left(), count=config.diversity_sample, seed=seed) if config.diversity_sample else {}
    return Measures(
        config=config,
        records=dict(sorted(counts.items())),
        duplicates=duplicates,
        contamination=contamination,
        diversity=diversity(texts, seed=seed),
        difficulty=difficulty,
    )


async def find_contaminated(
    records: Records, *, config: Measure, judge: Judge | None = None, found: Found | None = None
) -> Contamination:
    """The records that repeat or rephrase an item of `config.contamination_files`.

    With contamination_verdict = 'model' a judge decides on those that are only similar.

    Raises:
      MeasureError: a test set that can not be read.
      Permanent: with scope "run", when the judge would not answer any other request either.
    """
    tests = [open_test_set(Path(file), ngram=config.contamination_ngram) for file in config.contamination_files]
    findings = found.findings if found else tuple(find(records(), tests, similarity=config.contamination_similarity))
    if config.contamination_verdict == "model":
        assert judge is not None
        decided = await decide(findings, judge=judge)
    else:
        decided = Decided(standing=findings, cleared=(), unread=())
    return Contamination(by_file(decided.standing, tests), decided)


# --- samples


def sample_lineages(records: Iterable[Record], *, count: int, seed: int) -> list[list[Record]]:
    """The versions of `count` lineages in the order of rounds: those with the least keyed numbers, in that order."""
    held: dict[str, list[Record]] = {}
    greatest: list[tuple[int, str]] = []  # a heap of the negative numbers of the lineages held
    for record in records:
        if record.lineage not in held:
            number = keyed_number(seed, record.lineage, "difficulty sample")
            if len(held) == count and number >= -greatest[0][0]:
                continue
            if len(held) == count:
                del held[heapq.heappop(greatest)[1]]
            heapq.heappush(greatest, (-number, record.lineage))
            held[record.lineage] = []
        held[record.lineage].append(record)
    names = [name for _, name in sorted(greatest, reverse=True)]
    return [sorted(held[name], key=lambda record: record.round) for name in names]


def sample_instructions(records: Iterable[Record], *, count: int, seed: int) -> dict[int, list[str]]:
    """At most `count` instructions of each round: those with the least keyed numbers, in that order."""
    held: defaultdict[int, list[tuple[int, str, str]]] = defaultdict(list)  # heaps of negative numbers
    for record in records:
        heap = held[record.round]
        entry = (-keyed_number(seed, record.id, "diversity sample"), record.id, record.instruction)
        if len(heap) < count:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    return {round_: [text for _, _, text in sorted(heap, reverse=True)] for round_, heap in sorted(held.items())}


# --- what is told


def _checks(
    config: Measure, duplicates: Duplicates | None, contamination: Contamination | None
) -> dict[str, tuple[Check, ...]]:
    checks: dict[str, tuple[Check, ...]] = {}
    if duplicates is not None and config.duplicates != "off":
        for found in duplicates.found:
            evidence = f"like {found.of}: {found.similarity:.2f} of their runs of words are the same"
            checks[found.record] = (Check("duplicate", config.duplicates, evidence),)
    for finding in contamination.decided.standing if contamination else ():
        what = "of its runs of words repeated" if finding.how == "repeated" else "similar"
        evidence = f"like item {finding.item + 1} of {Path(finding.file).name}: {finding.score:.2f} {what}"
        checks[finding.record] = (
            *checks.get(finding.record, ()),
            Check("contaminated", config.contamination, evidence),
        )
    return checks


def _duplicates_by_round(duplicates: Duplicates, records: Mapping[int, int]) -> dict[str, Any]:
    within = Counter(found.round for found in duplicates.found if found.round == found.of_round)
    across = Counter(found.round for found in duplicates.found if found.round != found.of_round)
    rounds = [
        {
            "round": round_,
            "records": count,
            "of the same round": within[round_],
            "of an earlier round": across[round_],
            "share": _digits((within[round_] + across[round_]) / count),
            "like an earlier version of their own lineage": duplicates.near_own_lineage.get(round_, 0),
        }
        for round_, count in records.items()
    ]
    return {"rounds": rounds, "records": duplicates.records, "found": len(duplicates.found)}


def _contamination_by_round(contamination: Contamination, records: Mapping[int, int]) -> dict[str, Any]:
    decided = contamination.decided
    repeated = Counter(finding.round for finding in decided.standing if finding.how == "repeated")
    similar = Counter(finding.round for finding in decided.standing if finding.how == "similar")
    rounds = [
        {
            "round": round_,
            "records": count,
            "repeated": repeated[round_],
            "similar": similar[round_],
            "share": _digits((repeated[round_] + similar[round_]) / count),
        }
        for round_, count in records.items()
    ]
    files = [replace(file, file=Path(file.file).name) for file in contamination.files]
    told: dict[str, Any] = {"rounds": rounds, "files": _plain(files)}
    if decided.cleared or decided.unread:
        told["cleared by the judge"] = len(decided.cleared)
        told["verdicts that could not be read"] = len(decided.unread)
    return told


def _plain(value: Any) -> Any:
    """Dataclasses, estimates and mappings as JSON keeps them, figures to six digits."""
    if isinstance(value, Estimate):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, float):
        return _digits(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(part) for name, part in vars(value).items() if part is not None}
    return value


def _digits(value: float) -> float:
    return float(f"{value:.6g}")

"""Records that repeat or rephrase an item of a test set: by runs of words, by retrieval, and by a model's verdict.

Evolution rewords, and runs of 13 words find none of 1,319 reworded GSM8K items; so each record is also compared with
every item by TF-IDF (`retrieval.py`), and on wish a model decides on each that was found so. The instruction is what
is compared; turns before it and the answer are not.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.errors import UserError
from data_gen.framing import framed, quoted, template, unframed, without_thoughts
from data_gen.llm.chat import RequestKey
from data_gen.measure import retrieval
from data_gen.measure.asking import Judge, ask, together
from data_gen.readers.containers import is_of_rows, opened, rows_of_file
from data_gen.readers.rows import SourceError
from data_gen.records import Record

SIMILARITY = 0.2
"""The least similarity at which at most 1 % of one half of the GSM8K items are taken for another item of that set
(`benchmarks/contamination.py`, which also says what it does on the other half and on unrelated instructions)."""

KEYS = ("question", "instruction", "prompt", "text", "turns")
"""Where a row of a test set has its item; the first that it has counts. Case does not matter."""


_KINDS = (
    "make it a .jsonl, .ndjson, .json (each also .gz), .parquet or .arrow file with the text of each item under "
    f"{KEYS[0]!r}, or a .txt file with an item a line and no header"
)


class ContaminationError(UserError):
    """A test set can not be read."""


@dataclass(frozen=True)
class TestSet:
    """The items of a test set, and its index."""

    __test__ = False  # pytest takes every class of such a name for its own

    file: str
    items: tuple[str, ...]
    index: retrieval.Index


@dataclass(frozen=True)
class Finding:
    """A record that was found to repeat a test item, or to be similar to one; the best of all items of all files."""

    record: str
    """The record's id."""
    lineage: str
    round: int
    file: str
    item: int
    """Which item of the file, from 0."""
    how: Literal["repeated", "similar"]
    score: float
    """Repeated: the share of the item's runs of words. Similar: the cosine of TF-IDF."""
    instruction: str
    text: str
    """The test item."""


# --- the test sets


def open_test_set(path: str | Path, *, ngram: int) -> TestSet:
    """Reads a test set and indexes it; `ngram` is how many words in a row give a record away.

    Raises:
      ContaminationError: no such file, no text, or a row without any of `KEYS`.
    """
    items = tuple(read_items(Path(path)))
    return TestSet(file=str(path), items=items, index=retrieval.build_index(items, ngram=ngram))


def read_items(path: Path) -> list[str]:
    """The items of a test set: a file of rows, read as seeds are, or a .txt with an item a line.

    Raises:
      ContaminationError: no such file, of another kind, damaged, no text, or a row without any of `KEYS`.
    """
    try:
        if is_of_rows(path):
            items = list(_of_rows(path))
        elif path.suffix == ".txt":
            items = _of_lines(path)
        else:
            raise ContaminationError(f"measure.contamination_files: {path} is of no kind that is read here: {_KINDS}")
    except SourceError as error:
        raise ContaminationError(f"measure.contamination_files: {error}") from error
    if not any(re.search(r"\w", item) for item in items):
        raise ContaminationError(f"measure.contamination_files: {path} holds no text to compare with")
    return items


def _of_lines(path: Path) -> list[str]:
    with opened(path) as stream:
        content = stream.read()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def _of_rows(path: Path) -> Iterator[str]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        with opened(path) as stream:
            is_list = stream.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if not is_list:  # of an object, a field might be taken for the only item
            raise ContaminationError(f"{path}: a JSON test set is a list of items; write one row a line as .jsonl")
    place = f"{path}:" if name.endswith((".jsonl", ".ndjson")) else f"{path}, item "
    for row in rows_of_file(path, source=path.name):
        if row.fault:
            raise ContaminationError(f"{place}{row.number} is {row.fault}")
        yield _item(row.value, f"{place}{row.number}")


def _item(row: Any, where: str) -> str:
    if isinstance(row, str):
        return row
    fields = {key.lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
    for key in KEYS:
        value = fields.get(key)
        if isinstance(value, list):  # turns, as strings or as messages
            parts = [turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn for turn in value]
            value = "\n".join(part for part in parts if isinstance(part, str))
        if isinstance(value, str):
            extra = fields.get("input")
            return f"{value}\n{extra}" if key == "instruction" and isinstance(extra, str) and extra else value
    raise ContaminationError(f"{where}: a row of a test set has its text under one of {', '.join(KEYS)}")


# --- the search


def find(records: Iterable[Record], tests: Sequence[TestSet], *, similarity: float = SIMILARITY) -> Iterator[Finding]:
    """At most one finding per record, in the order of the records: what is repeated goes before what is similar."""
    for some in _blocks(records):
        tokenised, kept = some
        best: list[Finding | None] = [None] * len(kept)
        for test in tests:
            block = retrieval.numbered(tokenised, test.index)
            repeated = retrieval.most_repeated(block, test.index)
            similar = retrieval.most_similar(block, test.index)
            for row, record in enumerate(kept):
                if repeated[row].score > 0:
                    found = _finding(record, test, repeated[row], "repeated")
                elif similar[row].score >= similarity:
                    found = _finding(record, test, similar[row], "similar")
                else:
                    continue
                before = best[row]
                if before is None or _strength(found) > _strength(before):
                    best[row] = found
        yield from (found for found in best if found)


def _blocks(records: Iterable[Record]) -> Iterator[tuple[list[list[str]], list[Record]]]:
    held: list[Record] = []

    def instructions() -> Iterator[str]:
        for record in records:
            held.append(record)
            yield record.instruction

    for tokenised in retrieval.blocks(instructions()):
        yield tokenised, list(held)
        held.clear()


def _finding(record: Record, test: TestSet, match: retrieval.Match, how: Literal["repeated", "similar"]) -> Finding:
    return Finding(
        record=record.id,
        lineage=record.lineage,
        round=record.round,
        file=test.file,
        item=match.item,
        how=how,
        score=round(match.score, 6),
        instruction=record.instruction,
        text=test.items[match.item],
    )


def _strength(finding: Finding) -> tuple[bool, float]:
    return finding.how == "repeated", finding.score


# --- the verdict


def verdict_prompt(instruction: str, *, item: str) -> str:
    """Asks whether a training instruction and a test item are the same task."""
    return framed(template("contamination"), first=instruction, second=item)


def recognise_verdict(prompt: str) -> tuple[str, str] | None:
    """Exact inverse of `verdict_prompt`: (instruction, item); None for any other text."""
    texts = unframed(template("contamination"), prompt)
    return (texts["first"], texts["second"]) if texts else None


_VERDICT = re.compile(r"(?:verdict|answer)?[\s:*_]*(?P<said>same|different)[\s.*_]*", re.IGNORECASE)


def parse_verdict(reply: str) -> Literal["same", "different"] | None:
    """The verdict in a reply, which must hold nothing else but a label; None where it can not be read."""
    matched = _VERDICT.fullmatch(without_thoughts(reply).strip().strip("\"'`*_"))
    if matched is None:
        return None
    return "same" if matched["said"].lower() == "same" else "different"


@dataclass(frozen=True)
class Decided:
    """What is left of findings after a model has looked at them."""

    standing: tuple[Finding, ...]
    cleared: tuple[Finding, ...]
    unread: tuple[tuple[Finding, str], ...]
    """Findings that still stand, because what the model said could not be read; and why."""


async def decide(findings: Sequence[Finding], *, judge: Judge) -> Decided:
    """Asks a model about each finding by similarity. What is repeated stands, and so does what it gave no verdict on.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    said = await together([_verdict(finding, judge=judge) for finding in findings])
    verdicts = list(zip(findings, said, strict=True))
    return Decided(
        standing=tuple(finding for finding, (verdict, _) in verdicts if verdict != "different"),
        cleared=tuple(finding for finding, (verdict, _) in verdicts if verdict == "different"),
        unread=tuple((finding, problem) for finding, (_, problem) in verdicts if problem),
    )


async def _verdict(finding: Finding, *, judge: Judge) -> tuple[Literal["same", "different"] | None, str]:
    if finding.how == "repeated":
        return "same", ""
    key = RequestKey(finding.lineage, finding.round, "contamination")
    heard = await ask(verdict_prompt(finding.instruction, item=finding.text), key=key, judge=judge)
    if heard.problem:
        return None, heard.problem
    verdict = parse_verdict(heard.text)
    return verdict, "" if verdict else f"neither Same nor Different: {quoted(heard.text)}"


# --- what it comes to


@dataclass(frozen=True)
class FileContamination:
    """How much of one test set is in the data."""

    file: str
    items: int
    touched: int
    """Items that a record repeats or rephrases."""
    records: int
    """Records that do."""


def by_file(findings: Iterable[Finding], tests: Sequence[TestSet]) -> tuple[FileContamination, ...]:
    """Per test set the items touched and the records that touch them."""
    touched: dict[str, set[int]] = {test.file: set() for test in tests}
    records: Counter[str] = Counter()
    for finding in findings:
        touched[finding.file].add(finding.item)
        records[finding.file] += 1
    return tuple(
        FileContamination(file=t.file, items=len(t.items), touched=len(touched[t.file]), records=records[t.file])
        for t in tests
    )

"""What the pipeline finds is what `data_gen.measure` finds, whatever bundles and workers the records fall to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from data_gen.beam import checks
from data_gen.beam.kept import keep
from data_gen.measure import contamination
from data_gen.measure.contamination import Finding
from data_gen.measure.duplicates import Duplicates, find_duplicates
from data_gen.records import Record, Turn

WORDS = [f"word{number}" for number in range(400)]


def record(lineage: int, round_: int, words: Sequence[str]) -> Record:
    name = f"{lineage:06d}"
    turns = (Turn("user", " ".join(words)), Turn("assistant", "Here it is."))
    return Record(id=f"{name}/{round_}", lineage=name, turns=turns, round=round_)


def changed(rng: random.Random, words: Sequence[str], *, count: int) -> list[str]:
    new = list(words)
    for place in rng.sample(range(len(new)), count):
        new[place] = rng.choice(WORDS)
    return new


def crowded(lineages: int, *, seed: int) -> list[Record]:
    """Lineages of four rounds: copies of some few, chains of small changes, versions like their own, and others."""
    rng = random.Random(seed)
    few = [rng.choices(WORDS, k=40) for _ in range(5)]
    records = []
    for lineage in range(lineages):
        for round_ in range(4):
            few.append(changed(rng, rng.choice(few), count=rng.choice((0, 1, 1, 2))))
            texts = {
                "copy": rng.choice(few[:5]),
                "chain": few[-1],
                "own": changed(rng, records[-1].instruction.split(), count=1) if round_ else rng.choices(WORDS, k=40),
                "other": rng.choices(WORDS, k=rng.randint(1, 50)),
            }
            records.append(record(lineage, round_, texts[rng.choice(list(texts))]))
    return records


def ran(build: Callable[[beam.Pipeline], object], *, repeat: int = 0) -> None:
    with beam.Pipeline(runner=FnApiRunner(bundle_repeat=repeat)) as pipeline:
        build(pipeline)


def duplicates_by_beam(records: Sequence[Record], folder: Path, *, threshold: float) -> Duplicates:
    file = folder / "duplicates.jsonl"

    def build(pipeline: beam.Pipeline) -> None:
        compared = pipeline | beam.Create(records) | beam.Reshuffle() | beam.Map(checks.compared)
        keep(checks.near_duplicates(compared, threshold=threshold), file, name="duplicates")

    ran(build)
    return checks.kept_duplicates(file, records=len(records))


@pytest.mark.parametrize("threshold", [0.8, 0.5])
def test_the_same_duplicates_are_found_as_in_one_process(threshold: float, tmp_path: Path) -> None:
    records = crowded(60, seed=1)
    here = find_duplicates(lambda: iter(records), threshold=threshold)
    assert len(here.found) > 50, "there is something to find"
    assert sum(here.near_own_lineage.values()) > 10
    random.Random(2).shuffle(records)
    assert duplicates_by_beam(records, tmp_path, threshold=threshold) == here


def test_where_nothing_is_alike_nothing_is_found(tmp_path: Path) -> None:
    records = [record(lineage, 0, random.Random(lineage).choices(WORDS, k=40)) for lineage in range(20)]
    assert duplicates_by_beam(records, tmp_path, threshold=0.8) == Duplicates(20, (), {})


def test_the_same_test_items_are_found_as_in_one_process(tmp_path: Path) -> None:
    rng = random.Random(3)
    items = [rng.choices(WORDS, k=30) for _ in range(40)]
    records = [
        record(lineage, 0, changed(rng, rng.choice(items), count=rng.choice((0, 3, 9)))) for lineage in range(60)
    ]
    records += [record(lineage, 0, rng.choices(WORDS, k=30)) for lineage in range(60, 120)]
    files = []
    for number, half in enumerate((items[:20], items[15:])):  # with five in both: the first file is the one named
        files.append(str(tmp_path / f"test{number}.jsonl"))
        Path(files[-1]).write_text("".join(json.dumps({"question": " ".join(item)}) + "\n" for item in half))
    tests = [contamination.open_test_set(file, ngram=13) for file in files]
    here = tuple(contamination.find(records, tests))
    assert {(finding.how, finding.file) for finding in here} == {
        (how, file) for how in ("repeated", "similar") for file in files
    }

    def build(pipeline: beam.Pipeline) -> None:
        compared = pipeline | beam.Create(records) | beam.Reshuffle() | beam.Map(checks.compared)
        indexes = checks.test_sets(pipeline, files, ngram=13)
        found = checks.contaminated(compared, indexes, similarity=contamination.SIMILARITY)
        keep(found, tmp_path / "found.jsonl", name="findings")

    ran(build)
    found: tuple[Finding, ...] = checks.kept_findings(tmp_path / "found.jsonl")
    assert found == here

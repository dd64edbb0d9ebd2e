"""From the lineages in a journal to all that comes out: shards, what was dropped, measures, a card and a page.

Lineages are read from the journal as often as they are needed, so memory holds one, and what is known of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from configs.errors import UserError
from configs.folder import replacing
from configs.interrupt import StopFlag
from data_gen import shards
from data_gen.config import Measure
from data_gen.evolve import Lineage
from data_gen.llm import journal_file, simulated
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import Spent
from data_gen.report import write_report
from data_gen.run import Run
from data_gen.shard_files import FileFormat
from data_gen.tally import Tally

DATASET = "dataset"
REJECTED = "rejected.jsonl"


class FinishError(UserError):
    """Nothing came out that could be written."""


class Output(Protocol):
    """How a data set is written: settings that `EvolveConfig` and `AnswerConfig` share."""

    @property
    def name(self) -> str: ...
    @property
    def records_per_shard(self) -> int: ...
    @property
    def file_format(self) -> FileFormat: ...
    @property
    def measure(self) -> Measure: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was made, wherever it lies: in one journal, or in those of several shards."""

    lineages: Callable[[], Iterator[Lineage]]
    """In the order of the seeds, as often as it is called."""
    spent: Mapping[tuple[int, str], Spent]
    """By round and purpose."""
    costs: Callable[[str], Mapping[int, Spent]]
    """Of one lineage, by round."""
    facts: Mapping[str, Any]
    """What else the run counted."""


def made_by(run: Run, *, facts: Mapping[str, Any]) -> Made:
    """What the journal of a run holds."""
    journal, pacings = run.journal, run.stack.pacings
    return Made(
        lineages=partial(saved_lineages, journal, stop=run.stop),
        spent=journal.read(journal_file.spent_by_purpose),
        costs=lambda lineage: journal.read(partial(journal_file.spent_by_round, lineage=lineage)),
        facts={
            **facts,
            "unfinished": run.total - run.done,
            "asked": journal.asked,
            "from_journal": journal.cached,
            "rate_limited": sum(pacing.rate_limited for pacing in pacings),
            "not_sent": sum(pacing.not_sent for pacing in pacings),
            "lost_after_sending": sum(pacing.ambiguous for pacing in pacings),
            "possibly_paid_twice": journal.possibly_paid_twice,
            **journal.spent._asdict(),
        },
    )


def saved_lineages(journal: Journal, *, stop: StopFlag) -> Iterator[Lineage]:
    for saved in journal.lineages():
        stop.raise_if_set()
        yield Lineage.from_json(saved.payload)


def write(config: Output, out: Path, *, made: Made) -> dict[str, Any]:
    """Writes everything but the completion mark into `out`, and returns the summary.

    Raises:
      FinishError: not one record survived.
    """
    tally = Tally()
    with replacing(out / REJECTED) as lines:
        for lineage in made.lineages():
            tally.add(lineage)
            for rejected in lineage.rejected:
                lines.write(json.dumps(vars(rejected), ensure_ascii=False) + "\n")
    if not tally.records:
        raise FinishError(_nothing_left(tally, out))
    manifest = shards.write_dataset(
        (record for lineage in made.lineages() for record in lineage.records),
        out / DATASET,
        name=config.name,
        count=tally.records,
        records_per_shard=config.records_per_shard,
        description=_description(tally, made.facts),
        file_format=config.file_format,
    )
    summary = {**made.facts, **tally.summary(), "dataset_sha256": manifest.sha256}
    write_report(out, summary=summary, spent=made.spent, costs=made.costs, measures=None)
    return summary


def _nothing_left(tally: Tally, out: Path) -> str:
    worst = ", ".join(f"{rule} {count}" for rule, count in tally.rules.most_common(3))
    again = "; what gave up is asked anew when the same command is started again" * bool(tally.rules["gave_up"])
    return f"not one record survived ({worst}): {out / REJECTED} says why, candidate by candidate{again}"


def _description(tally: Tally, facts: Mapping[str, Any]) -> str:
    models = ", ".join(sorted(tally.models)) or "nobody: the seeds brought their answers"
    rounds = max(tally.rounds, default=0)
    text = f"Evol-Instruct: {facts.get('seeds', 0)} seeds, {rounds} rounds, answered by {models}."
    if simulated.NAME in tally.models:
        text += " A simulated model of a simulated world: no evidence about natural instructions."
    return text

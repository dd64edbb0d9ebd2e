"""From the lineages in a journal to all that comes out: shards, what was dropped, measures, a card and a page.

Lineages are read from the journal as often as they are needed, so memory holds one, and what is known of all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import replacing, write_atomically
from configs.interrupt import StopFlag
from data_gen import shards
from data_gen.card import data_card
from data_gen.config import AnswerConfig, EvolveConfig
from data_gen.evolve import Lineage, judge_of
from data_gen.llm import journal_file, simulated
from data_gen.llm.chat import BudgetSpent, Spent
from data_gen.llm.journal import Journal
from data_gen.llm.pacing import Pacing
from data_gen.llm.pricing import prices_version
from data_gen.measure.asking import Judge
from data_gen.measure.measure import Check, Found, asks_judge, per_round
from data_gen.records import Record, Rejected
from data_gen.report import write_report
from data_gen.run import Run
from data_gen.shards import Manifest
from data_gen.side_by_side import BudgetReached
from data_gen.tally import Tally

DATASET = "dataset"
REJECTED = "rejected.jsonl"
MEASURES = "measures.json"
CARD = "README.md"


class FinishError(UserError):
    """Nothing came out that could be written."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was made, wherever it lies: in one journal, or in those of several shards."""

    lineages: Callable[[], Iterator[Lineage]]
    """In the order of the seeds, as often as it is called."""
    spent: Callable[[], Mapping[tuple[int, str], Spent]]
    """By round and purpose; asked for at the end, for a judge is paid too."""
    costs: Callable[[str], Mapping[int, Spent]]
    """Of one lineage, by round."""
    facts: Callable[[], Mapping[str, Any]]
    """What else was counted; asked for at the end."""


async def write_run(
    run: Run, config: EvolveConfig | AnswerConfig, out: Path, *, made: Made, elsewhere: Elsewhere | None = None
) -> dict[str, Any]:
    """Writes what was made, with the judge of a run that asks one; see `write`.

    Raises:
      FinishError: not one record survived.
      BudgetReached: not one was made before the budget was spent.
      RunError, Interrupted: the judge can not be used; a signal came while it was asked.
    """
    judge = None
    if isinstance(config, EvolveConfig) and run.budget_spent is None:  # what is left of it is for seeds
        judge = judge_of(config, run.answering())

    async def measured_and_written() -> dict[str, Any]:
        measures = await _measured(config, made, judge=judge, elsewhere=elsewhere)
        await run.journal.drain()  # what the judge was being asked when the budget was spent is paid for: it counts
        return _write(config, out, made=made, measures=measures, elsewhere=elsewhere)

    try:
        return await run.one(measured_and_written())
    except FinishError as nothing:
        if run.budget_spent:
            raise BudgetReached(f"{run.budget_spent}. No record was made yet; what was answered is saved") from nothing
        raise


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What is done by other processes, for more records than one should handle."""

    found: Found
    write: Callable[[Path, Mapping[str, Sequence[Check]], str], Manifest]
    """Writes the data set in a folder, of all records by what was found of them, with a description."""


def made_by(run: Run, *, facts: Mapping[str, Any]) -> Made:
    """What the journal of a run holds."""
    journal = run.journal
    return Made(
        lineages=partial(saved_lineages, journal, stop=run.stop),
        spent=lambda: journal.read(journal_file.spent_by_purpose),
        costs=lambda lineage: journal.read(partial(journal_file.spent_by_round, lineage=lineage)),
        facts=lambda: {**facts, "unfinished": run.total - run.done, **counted(journal, run.stack.pacings)},
    )


def counted(journal: Journal, pacings: Sequence[Pacing]) -> dict[str, Any]:
    """What was sent, lost and paid."""
    return {
        "asked": journal.asked,
        "from_journal": journal.cached,
        "rate_limited": sum(pacing.rate_limited for pacing in pacings),
        "not_sent": sum(pacing.not_sent for pacing in pacings),
        "lost_after_sending": sum(pacing.ambiguous for pacing in pacings),
        "possibly_paid_twice": journal.possibly_paid_twice,
        **journal.spent._asdict(),
    }


def saved_lineages(journal: Journal, *, stop: StopFlag) -> Iterator[Lineage]:
    for saved in journal.lineages():
        stop.raise_if_set()
        yield Lineage.from_json(saved.payload)


async def write(
    config: EvolveConfig | AnswerConfig,
    out: Path,
    *,
    made: Made,
    elsewhere: Elsewhere | None = None,
) -> dict[str, Any]:
    """Writes everything but the completion mark into `out`, with no judge, and returns the summary.

    Raises:
      FinishError: not one record survived.
    """
    measures = await _measured(config, made, judge=None, elsewhere=elsewhere)
    return _write(config, out, made=made, measures=measures, elsewhere=elsewhere)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was found of single records, by id, and what is told of all of them."""

    checks: Mapping[str, Sequence[Check]]
    told: Mapping[str, Any]
    not_measured: str = ""


def _write(
    config: EvolveConfig | AnswerConfig, out: Path, *, made: Made, measures: _Measured, elsewhere: Elsewhere | None
) -> dict[str, Any]:
    lineages = partial(checked_lineages, made.lineages, measures.checks)
    tally = Tally()
    with replacing(out / REJECTED) as lines:
        for lineage in lineages():
            tally.add(lineage)
            for rejected in lineage.rejected:
                lines.write(json.dumps(vars(rejected), ensure_ascii=False) + "\n")
    if not tally.records:
        raise FinishError(_nothing_left(tally, out))
    facts = made.facts()
    description = _description(tally, facts)
    if elsewhere:
        manifest = elsewhere.write(out / DATASET, measures.checks, description)
    else:
        manifest = shards.write_dataset(
            (record for lineage in lineages() for record in lineage.records),
            out / DATASET,
            name=config.name,
            count=tally.records,
            records_per_shard=config.records_per_shard,
            description=description,
            file_format=config.file_format,
        )
    summary = {
        **facts,
        **tally.summary(),
        "dataset_sha256": manifest.sha256,
        "prices": prices_version(),
        "not_measured": measures.not_measured,
    }
    write_atomically(out / MEASURES, json.dumps(measures.told, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / CARD, data_card(summary=summary, config=config, measures=measures.told))
    write_report(out, summary=summary, spent=made.spent(), costs=made.costs, measures=measures.told)
    return summary


async def _measured(
    config: EvolveConfig | AnswerConfig, made: Made, *, judge: Judge | None, elsewhere: Elsewhere | None
) -> _Measured:
    """The measures of the whole; of a shard none, for they are about all records together."""
    if isinstance(config, EvolveConfig) and config.shard.count > 1:
        return _Measured(checks={}, told={}, not_measured="a shard is measured when it is merged with the others")

    def records() -> Iterator[Record]:
        return (record for lineage in made.lineages() for record in lineage.records)

    if not any(True for _ in records()):
        return _Measured(checks={}, told={})
    found = elsewhere.found if elsewhere else None
    unasked = replace(config.measure, difficulty_lineages=0, contamination_verdict="retrieval")
    not_measured = "what a judge says: the budget was spent before" if asks_judge(config.measure) else ""
    measures = None
    if judge is not None:
        with contextlib.suppress(BudgetSpent):
            measures = await per_round(records, config=config.measure, seed=config.seed, judge=judge, found=found)
            not_measured = ""
    if measures is None:
        measures = await per_round(records, config=unasked, seed=config.seed, found=found)
    return _Measured(checks=measures.checks, told=measures.to_json(), not_measured=not_measured)


def checked_lineages(
    lineages: Callable[[], Iterator[Lineage]], checks: Mapping[str, Sequence[Check]]
) -> Iterator[Lineage]:
    """The lineages with what was found of their records: flagged, or among the rejected."""
    for lineage in lineages():
        found = any(record.id in checks for record in lineage.records)
        yield checked(lineage, checks) if found else lineage


def checked(lineage: Lineage, checks: Mapping[str, Sequence[Check]]) -> Lineage:
    """A lineage whose records are flagged with what was found of them, or dropped for it."""
    outcomes: list[Record | Rejected] = list(lineage.rejected)
    for record in lineage.records:
        found = checks.get(record.id, ())
        dropped = next((check for check in found if check.action == "drop"), None)
        if dropped is None:
            outcomes.append(replace(record, flags=tuple(check.rule for check in found)))
            continue
        outcomes.append(
            Rejected(
                record.lineage,
                record.round,
                record.operation,
                dropped.rule,
                dropped.evidence,
                instruction=record.instruction,
                answer=record.answer,
                source=record.source,
            )
        )
    return Lineage.of(sorted(outcomes, key=lambda outcome: outcome.round))


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

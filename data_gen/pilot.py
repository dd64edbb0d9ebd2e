"""What a pilot settles for all lineages after it: which operations pay where, and after which round to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from data_gen.choice import PilotStep, Plan, learn, stop_round
from data_gen.config import EvolveConfig
from data_gen.evolve import Lineage, judge_of
from data_gen.llm import journal_file
from data_gen.measure.difficulty import rank
from data_gen.run import Run, Work

PLAN = "plan"
"""The decision in the journal that holds what was settled."""


async def settled(run: Run, work: Work, *, config: EvolveConfig) -> Plan:
    """The plan for the lineages after the pilot: committed, so settled once and for all. `work` is by uniform choice.

    The pilot's own lineages evolve by uniform choice through all rounds; where the budget ends before they do,
    nothing is settled.
    """
    known = run.journal.read(partial(journal_file.decision, name=PLAN))
    if known is not None:
        return Plan.from_json(known)
    plan = Plan.uniform(config.operations, config.rounds)
    first = work.first(config.pilot.lineages)
    await run.through(first)
    if run.budget_spent:
        return plan
    steps = await _steps(run, first, config=config)
    if config.choice == "bandit":
        plan = learn(steps, operations=config.operations, rounds=config.rounds, floor=config.pilot.floor)
    if config.stop == "run":
        plan = plan.ending_after(stop_round(steps, margin=config.pilot.margin))
    await run.journal.commit(partial(journal_file.save_decision, name=PLAN, payload=plan.to_json()))
    return plan


async def _steps(run: Run, pilot: Work, *, config: EvolveConfig) -> list[PilotStep]:
    """What each rewrite of the pilot gained in difficulty, by a ranking of all versions of its lineage."""
    judge = judge_of(config, run.answering())
    indices = {index for index, _ in pilot.pieces()}

    async def of(lineage: Lineage) -> list[PilotStep]:
        with run.stack.standstill.lineage():
            ranked, _ = await rank(lineage.records, judge=judge) if len(lineage.records) > 1 else (None, "")
        return steps_of(lineage, dict(zip((record.id for record in lineage.records), ranked or (), strict=False)))

    saved = (saved for saved in run.journal.lineages() if saved.index in indices)
    tasks = [asyncio.create_task(of(Lineage.from_json(one.payload))) for one in saved]
    await run.all(tasks)
    return [step for task in tasks for step in task.result()]


def steps_of(lineage: Lineage, difficulty: Mapping[str, float]) -> list[PilotStep]:
    """Every candidate of a lineage, with its gain where both it and its parent have a difficulty, by record id."""
    kept = [
        PilotStep(
            source=record.source,
            round=record.round,
            operation=record.operation,
            survived=True,
            gain=difficulty[record.id] - difficulty[record.parent]
            if {record.id, record.parent} <= difficulty.keys()
            else None,
        )
        for record in lineage.records
        if record.round
    ]
    dropped = [
        PilotStep(source=one.source, round=one.round, operation=one.operation, survived=False, gain=None)
        for one in lineage.rejected
        if one.round
    ]
    return kept + dropped

"""What a pilot settles for all lineages after it: which operations pay where, and after which round to stop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import takewhile

from configs.errors import UserError
from data_gen.choice import PilotStep, Plan, learn, stop_round
from data_gen.config import EvolveConfig
from data_gen.evolve import Lineage, judge_of, rounds_of
from data_gen.llm import journal_file
from data_gen.llm.chat import BudgetSpent, ChatModel
from data_gen.llm.journal_file import SavedLineage
from data_gen.measure.difficulty import rank
from data_gen.records import Record, Rejected
from data_gen.run import Run, Work

PLAN = "plan"
"""The decision in the journal that holds what was settled."""


class PilotError(UserError):
    """What a pilot has not settled yet can not be shown."""


async def settled(run: Run, work: Work, *, config: EvolveConfig) -> Work:
    """The whole run's work by what its pilot settled; `work` is the same by uniform choice.

    The pilot's own lineages, the first so many, evolve by uniform choice through all rounds. What they say is
    committed, so it is settled once and for all. Where the budget ends before that, nothing is settled.
    """
    plan = known_plan(run)
    if plan is None:
        pilot = work.first(config.pilot.lineages)
        await run.through(pilot)
        steps = [] if run.budget_spent else await _steps(run, pilot, config=config)
        if run.budget_spent:
            return work
        plan = _learnt(steps, config=config)
        await run.journal.commit(partial(journal_file.save_decision, name=PLAN, payload=plan.to_json()))
    paid = run.journal.read(journal_file.spent_by_purpose)
    run.beside_usd = sum(spent.usd for (_, purpose), spent in paid.items() if purpose == "rank")
    if plan.rounds < config.rounds:
        run.forecast_anew()
    return by_plan(work, plan, config=config)


def as_settled(run: Run, work: Work, *, config: EvolveConfig) -> Work:
    """A part of the work as it will come out: by what is settled, or within the pilot, which is by uniform choice.

    Raises:
      PilotError: it goes beyond the pilot, and nothing is settled.
    """
    plan = known_plan(run)
    if plan is not None:
        return by_plan(work, plan, config=config)
    if work.total > config.pilot.lineages:
        raise PilotError(
            f"the first {config.pilot.lineages} seeds are the pilot (pilot.lineages), and what comes after them "
            f"follows from it: look at no more than {config.pilot.lineages}, or run the whole first"
        )
    return work


def known_plan(run: Run) -> Plan | None:
    """What was settled; None while nothing is."""
    known = run.journal.read(partial(journal_file.decision, name=PLAN))
    return None if known is None else Plan.from_json(known)


def by_plan(work: Work, plan: Plan, *, config: EvolveConfig) -> Work:
    """The same work with every lineage after the pilot by the plan.

    The pilot's stay as they are: one that gave up and is tried again later asks what it asked before.
    """

    def outcomes(seed: Record, model: ChatModel) -> AsyncGenerator[Record | Rejected, None]:
        if int(seed.lineage) < config.pilot.lineages:
            return work.outcomes(seed, model)
        return rounds_of(seed, model=model, config=config, plan=plan)

    return replace(work, outcomes=outcomes)


def _learnt(steps: list[PilotStep], *, config: EvolveConfig) -> Plan:
    plan = Plan.uniform(config.operations, config.rounds)
    if config.choice == "bandit":
        plan = learn(steps, operations=config.operations, rounds=config.rounds, floor=config.pilot.floor)
    if config.stop == "run":
        plan = plan.ending_after(stop_round(steps, margin=config.pilot.margin))
    return plan


async def _steps(run: Run, pilot: Work, *, config: EvolveConfig) -> list[PilotStep]:
    """What each rewrite of the pilot gained in difficulty, by a ranking of all versions of its lineage."""
    judge = judge_of(config, run.answering())
    steps: list[PilotStep] = []

    async def worker(lineages: Iterator[SavedLineage]) -> None:
        for saved in lineages:
            lineage = Lineage.from_json(saved.payload)
            with run.stack.standstill.lineage():
                try:
                    ranked, _ = await rank(lineage.records, judge=judge) if len(lineage.records) > 1 else (None, "")
                except BudgetSpent as error:
                    run.budget_spent = run.budget_spent or error
                    return
            steps.extend(steps_of(lineage, dict(zip((one.id for one in lineage.records), ranked or (), strict=False))))

    # Without shards, a seed's number is its place among all.
    lineages = takewhile(lambda saved: saved.index < pilot.total, run.journal.lineages())
    await run.all(worker(lineages) for _ in range(min(pilot.open_at_once, pilot.total)))
    return steps


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

"""What a pilot settles for all lineages after it: which operations pay where, and after which round to stop."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Self

from configs.errors import UserError
from data_gen.choice import PilotStep, Plan, RoundGain, gains, learn, stop_round
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


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a pilot settled, on what grounds, and what it took to rank its lineages."""

    plan: Plan
    gains: tuple[RoundGain, ...] = ()
    usd: float = 0.0

    def to_json(self) -> str:
        return json.dumps({**json.loads(self.plan.to_json()), "gains": self.gains, "usd": self.usd}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        found = tuple(RoundGain(*gain) for gain in data.get("gains", ()))
        return cls(plan=Plan.from_json(text), gains=found, usd=data.get("usd", 0.0))

    def summary(self, config: EvolveConfig) -> dict[str, Any]:
        """What is told of it: gains in points of 10 by round, the round of the stop, and probabilities by round."""
        told: dict[str, Any] = {"lineages": config.pilot.lineages, "gains": [_finite(gain) for gain in self.gains]}
        if config.stop == "run":
            told |= {"stop_after": self.plan.rounds, "margin": config.pilot.margin}
        if config.choice == "bandit":
            rows = {"": self.plan.pooled, **self.plan.by_source} if self.plan.pooled else {}
            told["probabilities"] = [
                {"source": source, "round": round_, **dict(zip(self.plan.operations, weights, strict=True))}
                for source, weights_by_round in rows.items()
                for round_, weights in enumerate(weights_by_round, start=1)
            ]
        return told

    def told(self, config: EvolveConfig) -> str:
        """The same in a line."""
        parts = []
        if config.stop == "run":
            parts.append(f"lineages end after round {self.plan.rounds} of {config.rounds}")
        if config.choice == "bandit":
            mean = [statistics.fmean(column) for column in zip(*self.plan.pooled, strict=True)]
            drawn = sorted(zip(mean, self.plan.operations, strict=False), reverse=True)
            shares = ", ".join(f"{name} {weight:.0%}" for weight, name in drawn)
            parts.append(f"operations are drawn as {shares}" if drawn else "operations are drawn evenly")
        brought = ", ".join(
            f"{gain.mean:+.2f} ± {gain.standard_error:.2f} in round {gain.round}" for gain in self.gains
        )
        return (
            f"the pilot of {config.pilot.lineages:,} lineages settled it: after them {'; '.join(parts)}. Its rewrites "
            f"gained, in points of 10 with standard errors, {brought or 'nothing that could be measured'}"
        )


def _finite(gain: RoundGain) -> dict[str, float | None]:
    """As strict JSON has it: of one rewrite there is no standard error."""
    return {name: value if math.isfinite(value) else None for name, value in gain._asdict().items()}


async def settled(run: Run, work: Work, *, config: EvolveConfig, say: Callable[[str], None]) -> Work:
    """The whole run's work by what its pilot settled, which `say` is told; `work` is the same by uniform choice.

    The pilot's own lineages, the first so many, evolve by uniform choice through all rounds. What they say is
    committed, so it is settled once and for all. Where the budget ends before that, nothing is settled.
    """
    known = known_settled(run)
    if known is None:
        pilot = work.first(config.pilot.lineages)
        await run.through(pilot)
        steps = [] if run.budget_spent else await _steps(run, pilot, config=config)
        if run.budget_spent:
            return work
        paid = run.journal.read(journal_file.spent_by_purpose)
        ranked = sum(spent.usd for (_, purpose), spent in paid.items() if purpose == "rank")
        known = Settled(plan=_learnt(steps, config=config), gains=gains(steps), usd=ranked)
        await run.journal.commit(partial(journal_file.save_decision, name=PLAN, payload=known.to_json()))
        say(known.told(config))
    run.beside_usd = known.usd
    if known.plan.rounds < config.rounds:
        run.forecast_anew()
    return by_plan(work, known.plan, config=config)


def as_settled(run: Run, work: Work, *, config: EvolveConfig) -> Work:
    """A part of the work as it will come out: by what is settled, or within the pilot, which is by uniform choice.

    Raises:
      PilotError: it goes beyond the pilot, and nothing is settled.
    """
    known = known_settled(run)
    if known is not None:
        run.beside_usd = known.usd
        return by_plan(work, known.plan, config=config)
    if work.total > config.pilot.lineages:
        raise PilotError(
            f"the first {config.pilot.lineages} seeds are the pilot (pilot.lineages), and what comes after them "
            f"follows from it: look at no more than {config.pilot.lineages}, or run the whole first"
        )
    return work


def known_settled(run: Run) -> Settled | None:
    """What was settled; None while nothing is."""
    known = run.journal.read(partial(journal_file.decision, name=PLAN))
    return None if known is None else Settled.from_json(known)


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

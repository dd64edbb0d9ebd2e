"""Which operation rewrites an instruction: by equal chances, as published, or by what a pilot has learnt.

    plan = Plan.uniform(("deepening", "in_breadth"), rounds=4)
    draw(plan, source="alpaca.json", round_=1, rng=rng)   -> ("in_breadth", 0.5)

A plan is learnt once, from a pilot of fixed size, and is then fixed: what is drawn afterwards depends on its key
alone. The probability of every draw is kept, so that what another plan would have brought can be estimated from the
same records without bias (`replayed`; Horvitz and Thompson 1952).
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from configs.errors import UserError

PRIOR_STEPS = 30
"""A cell counts as much as the wider one that it is drawn towards when it holds so many steps."""

SHARPNESS = 3.0
"""An operation whose reward is 1/3 of a standard deviation above another's is chosen e times as often, floor apart."""


class ChoiceError(UserError):
    """Settings by which no operation can be chosen."""


Weights = tuple[float, ...]
"""Probabilities of the operations of a plan, in their order; they sum to 1."""


@dataclass(frozen=True)
class Plan:
    """How operations are drawn, and how many rounds there are.

    Weights are looked up by source, then in the row for any source; where there is none, chances are equal. A round
    beyond the last row is drawn like the last.
    """

    operations: tuple[str, ...]
    rounds: int
    pooled: tuple[Weights, ...] = ()
    """One row per round, for sources that the pilot did not see."""
    by_source: Mapping[str, tuple[Weights, ...]] = field(default_factory=dict)

    @classmethod
    def uniform(cls, operations: Sequence[str], rounds: int) -> Self:
        """Every operation with equal probability: the published choice."""
        return cls(tuple(operations), rounds)

    def weights(self, *, source: str, round_: int) -> Weights:
        """The probabilities of the operations for an instruction of a source in a round, from 1."""
        rows = self.by_source.get(source) or self.pooled
        if rows:
            return rows[min(round_, len(rows)) - 1]
        return (1 / len(self.operations),) * len(self.operations)

    def ending_after(self, round_: int) -> Self:
        """The same plan with no round after this one."""
        return replace(self, rounds=min(self.rounds, round_))

    def to_json(self) -> str:
        return json.dumps(
            {
                "operations": self.operations,
                "rounds": self.rounds,
                "pooled": self.pooled,
                "by_source": dict(self.by_source),
            },
            ensure_ascii=False,
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        return cls(
            operations=tuple(data["operations"]),
            rounds=data["rounds"],
            pooled=tuple(map(tuple, data["pooled"])),
            by_source={source: tuple(map(tuple, rows)) for source, rows in data["by_source"].items()},
        )


def draw(plan: Plan, *, source: str, round_: int, rng: random.Random) -> tuple[str, float]:
    """An operation of the plan, and the probability with which it was drawn."""
    if not plan.pooled and not plan.by_source:
        # The very draw of a run without plans, so that published settings bring the same records as ever.
        return rng.choice(plan.operations), 1 / len(plan.operations)
    weights = plan.weights(source=source, round_=round_)
    index = rng.choices(range(len(weights)), weights)[0]
    return plan.operations[index], weights[index]


# --- learning


class PilotStep(NamedTuple):
    """One candidate of the pilot: whether it survived, and how much harder it was than its parent."""

    source: str
    round: int
    operation: str
    survived: bool
    gain: float | None
    """Difference in difficulty; None where it was not measured or could not be read."""


def learn(
    pilot: Iterable[PilotStep],
    *,
    operations: Sequence[str],
    rounds: int,
    floor: float = 0.05,
    sharpness: float = SHARPNESS,
) -> Plan:
    """The plan that prefers, per source and round, the operations whose rewrites survive and are harder.

    The reward of a step is its gain if it survived, else 0; a survivor that was not measured counts as the mean of
    those of its operation that were. The mean reward of a cell (source, round, operation) is drawn towards that of
    (round, operation) over all sources, that one towards the operation's, and that one towards the mean of all, each
    time as if `PRIOR_STEPS` steps of the wider cell were among its own. Probabilities are a floor for each and, for
    the rest, proportional to exp(sharpness * reward / standard deviation of all rewards).

    Raises:
      ChoiceError: a floor below 0, or one that leaves less than 1 for all operations together.
    """
    if not 0 <= floor * len(operations) <= 1:
        raise ChoiceError(
            f"floor = {floor}: it must be at least 0, and at most {1 / len(operations):.3g} "
            f"with {len(operations)} operations"
        )
    steps = [step for step in pilot if step.operation in operations]
    rewards = _rewards(steps)
    deviation = statistics.pstdev(rewards) if rewards else 0.0
    if not deviation:
        return Plan.uniform(operations, rounds)
    cells: defaultdict[tuple[str | int, ...], list[float]] = defaultdict(list)
    for step, reward in zip(steps, rewards, strict=True):
        for cell in ((), (step.operation,), (step.operation, step.round), (step.operation, step.round, step.source)):
            cells[cell].append(reward)

    def expected(*cell: str | int) -> float:
        wider = expected(*cell[:-1]) if cell else 0.0
        prior = PRIOR_STEPS if cell else 0
        seen = cells.get(cell, [])
        return (math.fsum(seen) + prior * wider) / (len(seen) + prior)

    def rows(*source: str) -> tuple[Weights, ...]:
        return tuple(
            _soft_greedy([sharpness * expected(name, round_, *source) / deviation for name in operations], floor=floor)
            for round_ in range(1, rounds + 1)
        )

    sources = sorted({step.source for step in steps})
    return Plan(tuple(operations), rounds, pooled=rows(), by_source={source: rows(source) for source in sources})


def _rewards(steps: Sequence[PilotStep]) -> list[float]:
    measured: defaultdict[str, list[float]] = defaultdict(list)
    for step in steps:
        if step.survived and step.gain is not None:
            measured[step.operation].append(step.gain)
    usual = {operation: statistics.fmean(gains) for operation, gains in measured.items()}
    return [
        (usual.get(step.operation, 0.0) if step.gain is None else step.gain) if step.survived else 0.0 for step in steps
    ]


def _soft_greedy(scores: Sequence[float], *, floor: float) -> Weights:
    best = max(scores)
    powers = [math.exp(score - best) for score in scores]
    left = 1 - floor * len(scores)
    return tuple(floor + left * power / math.fsum(powers) for power in powers)


# --- stopping


class RoundGain(NamedTuple):
    """What a round of the pilot brought, over the survivors whose gain was measured."""

    round: int
    measured: int
    mean: float
    standard_error: float


def gains(pilot: Iterable[PilotStep]) -> tuple[RoundGain, ...]:
    """The measured gain of every round in which there was one, in the order of rounds."""
    measured: defaultdict[int, list[float]] = defaultdict(list)
    for step in pilot:
        if step.survived and step.gain is not None:
            measured[step.round].append(step.gain)
    return tuple(RoundGain(round_, len(seen), *_mean_and_error(seen)) for round_, seen in sorted(measured.items()))


def stop_round(pilot: Iterable[PilotStep], *, margin: float) -> int:
    """The last round before the first one whose mean measured gain is below the margin; 0 where that is the first.

    The plain mean decides, so an error to either side is as likely as to the other; how large it can be is the
    standard error that `gains` gives. A round in which nothing was measured has shown no gain, and ends it too.
    """
    by_round = {gain.round: gain.mean for gain in gains(pilot)}
    return next(round_ - 1 for round_ in itertools.count(1) if round_ not in by_round or not by_round[round_] >= margin)


def lineage_stops(gain: float | None, *, margin: float) -> bool:
    """Whether a lineage ends after a rewrite with this measured gain; one that was not measured ends nothing."""
    return gain is not None and gain < margin


# --- replay


class Logged(NamedTuple):
    """A step that was taken under some plan: with which probability, and what it brought."""

    source: str
    round: int
    operation: str
    propensity: float
    reward: float


class Replay(NamedTuple):
    """An estimated mean reward."""

    mean: float
    standard_error: float
    steps: int


def replayed(logged: Iterable[Logged], plan: Plan) -> Replay:
    """The mean reward per step that `plan` would have had, by inverse propensities: unbiased.

    Steps whose candidate was dropped belong to it, with reward 0 (and need no propensity), and so does every operation
    of the plan: one that was never drawn counts as if it earned nothing. It holds for choices in each state as it was
    met: a plan that changes what later rounds start from is judged by the instructions that the logged one reached.

    Raises:
      ChoiceError: no steps, or one without a propensity.
    """
    values = []
    for step in logged:
        if step.reward == 0 or step.operation not in plan.operations:  # the plan's own weight for it is 0
            values.append(0.0)
            continue
        if not 0 < step.propensity <= 1:
            raise ChoiceError(
                f"a step by {step.operation} with propensity {step.propensity}: a replay needs the probability with "
                "which each was drawn"
            )
        weights = plan.weights(source=step.source, round_=step.round)
        values.append(step.reward * weights[plan.operations.index(step.operation)] / step.propensity)
    if not values:
        raise ChoiceError("there are no steps to replay")
    return Replay(*_mean_and_error(values), len(values))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return statistics.fmean(values), error

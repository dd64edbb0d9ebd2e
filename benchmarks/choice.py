"""Uniform choice of operations against the bandit, on the simulated world, at the same number of requests.

    python benchmarks/choice.py [--requests 6000] [--runs 5]

Both arms spend the same budget of requests on the same seeds; the bandit's holds its pilot's rankings too. The gain is
that of this world, where difficulty is the number of steps and the judge says exactly that: three of the six
operations add a step by construction and three add none, so what is learnt is that table, and the third arm, which
draws from those three alone, is as far as it could get. It shows that the machinery finds what pays and what that
costs in variety, not what pays with a hosted model and natural instructions.

What the bandit's plan brings is also estimated before it is tried: by a replay of what the uniform run drew after the
first seeds, by the probabilities of both, beside what the bandit then brought.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data_gen import shards
from data_gen.choice import Logged, Plan, Replay, replayed
from data_gen.config import Budget, EvolveConfig, Faults, Measure, Pilot, Simulated, SimulatedSeeds
from data_gen.generate import generate
from data_gen.llm import journal_file
from data_gen.llm.journal import JOURNAL
from data_gen.llm.simulated import EFFECTS
from data_gen.operations import PUBLISHED
from data_gen.pilot import PLAN
from data_gen.records import Record
from data_gen.side_by_side import BudgetReached
from wizard_jax.progress import show_table

FAULTS = Faults(unchanged=0.03, refusal=0.02, copied_prompt=0.02, empty=0.02, truncated=0.01, filtered=0.005)
"""As in configs/evolve/quickstart.gin."""
ADDING = tuple(name for name in PUBLISHED if EFFECTS[name].adds == "a step")
PILOT = 100

Figures = Mapping[str, float]


class Outcome(NamedTuple):
    """What a run came to, its candidates after the pilot's seeds, and the plan that it settled, if it did."""

    figures: Figures
    logged: tuple[Logged, ...]
    plan: Plan | None


def arms(requests: int, *, run: int) -> dict[str, EvolveConfig]:
    """The settings that are compared; more seeds than the budget is enough for."""
    uniform = EvolveConfig(
        seeds=SimulatedSeeds(count=max(200, requests // 8), seed=run),
        llm=Simulated(faults=FAULTS),
        seed=run,
        measure=Measure(diversity_sample=0, duplicates="off"),
        budget=Budget(calls=requests),
        concurrency=32,
    )
    return {
        "uniform": uniform,
        "bandit": replace(uniform, choice="bandit", pilot=Pilot(lineages=PILOT)),
        "only what adds a step": replace(uniform, operations=ADDING),
    }


def outcome(config: EvolveConfig, *, requests: int) -> Outcome:
    """Runs it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "evolved"
        with contextlib.suppress(BudgetReached):
            generate(config, out, progress=lambda *_: None, say=lambda _: None)
        records = list(shards.read_dataset(out))
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
        with contextlib.closing(journal_file.read_only(out / JOURNAL)) as journal:
            settled = journal_file.decision(journal, name=PLAN)
    dropped = len(rejected)
    by_id = {record.id: record for record in records}
    rewrites = [record for record in records if record.round]
    pairs = [(record, by_id[record.parent]) for record in rewrites if record.parent in by_id]
    gains = [record.steps - parent.steps for record, parent in pairs]
    later = [record.steps - parent.steps for record, parent in pairs if int(record.lineage) >= PILOT]
    logged = [
        Logged(record.source, record.round, record.operation, record.propensity, float(record.steps - parent.steps))
        for record, parent in pairs
        if int(record.lineage) >= PILOT
    ]
    logged += [
        Logged(one["source"], one["round"], one["operation"], 0.0, 0.0)
        for one in rejected
        if one["round"] and int(one["lineage"]) >= PILOT
    ]
    told = {
        "accepted rewrites": len(rewrites),
        "eliminated, of all candidates": dropped / (dropped + len(records)),
        "steps of an accepted rewrite": statistics.fmean(record.steps for record in rewrites),
        "steps added by one": statistics.fmean(gains),
        f"steps added by one, from seed {PILOT} on": statistics.fmean(later),
        "steps added per 1,000 requests": 1000 * sum(gains) / requests,
        "rewrites of 4 steps or more": sum(record.steps >= 4 for record in rewrites),
        "depth of the last of a lineage": statistics.fmean(_last_depths(records)),
        "operations in use (perplexity)": _perplexity(Counter(record.operation for record in rewrites)),
    }
    return Outcome(told, tuple(logged), None if settled is None else Plan.from_json(settled))


def _last_depths(records: Sequence[Record]) -> list[int]:
    last = {record.lineage: record.depth for record in records}
    return list(last.values())


def _perplexity(counts: Counter[str]) -> float:
    shares = [count / counts.total() for count in counts.values()]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))


_T95 = MappingProxyType({2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262})
"""Student's t for 95 % by number of runs."""


def shown(values: Sequence[float]) -> str:
    """A mean with its 95 % interval over the runs."""
    mean = statistics.fmean(values)
    either_way = _T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    digits = 0 if abs(mean) >= 100 else 3
    return f"{mean:,.{digits}f} ± {either_way:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--runs", type=int, default=5, choices=sorted(_T95))
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    replays: list[Replay] = []
    brought: list[float] = []
    for run in range(arguments.runs):
        ran = {
            name: outcome(arm, requests=arguments.requests) for name, arm in arms(arguments.requests, run=run).items()
        }
        for name, one in ran.items():
            found.setdefault(name, []).append(one.figures)
        plan = ran["bandit"].plan
        assert plan is not None, "--requests is too few for the pilot"
        replays.append(replayed(ran["uniform"].logged, plan))
        brought.append(statistics.fmean(step.reward for step in ran["bandit"].logged))
    print(f"{arguments.requests:,} requests in each of {arguments.runs} runs; mean and 95 % interval over runs")
    rows = []
    for name in found["uniform"][0]:
        by_arm = [[one[name] for one in ones] for ones in found.values()]
        difference = [bandit - uniform for uniform, bandit in zip(*by_arm[:2], strict=True)]
        rows.append((name, *map(shown, by_arm), shown(difference)))
    show_table(("", *found, "bandit - uniform"), rows)
    print(f"steps added by a candidate, from seed {PILOT} on:")
    show_table(
        ("run", "bandit's plan, replayed on the uniform run", "standard error", "what the bandit brought"),
        [
            (run, f"{one.mean:.3f}", f"{one.standard_error:.3f}", f"{mean:.3f}")
            for run, (one, mean) in enumerate(zip(replays, brought, strict=True))
        ],
    )


if __name__ == "__main__":
    main()

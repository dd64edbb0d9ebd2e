"""How long the statistics of a report take, and how often the plain hierarchical bootstrap holds the truth.

    python benchmarks/evaluation_statistics.py [--items 1000] [--draws 10000]
    python benchmarks/evaluation_statistics.py --plain-hierarchical

The first is everything that a report prints of three models, each pair of them judged in both orders on every item,
from simulated verdicts. The second resamples three or five seeds, and items of each anew, and takes the percentiles
of what comes out, beside `sweeps.hierarchical` on the same 1,000 simulated sweeps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wizard_jax.evaluate.statistics.agreement import agreement
from wizard_jax.evaluate.statistics.bias import always_longest, concordance, longer_preferred, order_consistency
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap
from wizard_jax.evaluate.statistics.capacity import capacity
from wizard_jax.evaluate.statistics.models import bradley_terry, length_controlled
from wizard_jax.evaluate.statistics.multiple import by_group
from wizard_jax.evaluate.statistics.rank import spearman
from wizard_jax.evaluate.statistics.sweeps import hierarchical
from wizard_jax.evaluate.statistics.wins import item_scores, paired_difference, win_rate
from wizard_jax.progress import show_table

STRENGTH = {"small": -0.4, "middle": 0.0, "large": 0.4}
PAIRS = tuple(combinations(STRENGTH, 2))


@dataclass(frozen=True)
class Judged:
    """Simulated items, what the models answered, and what two judges and a scale said of it."""

    skills: list[str]
    bands: list[str]
    difficulty: np.ndarray
    lengths: dict[str, np.ndarray]
    grades: dict[str, np.ndarray]
    verdicts: dict[tuple[str, str], np.ndarray]
    """[N, 2 judges, 2 orders] of each pair."""
    truth: np.ndarray

    def scores(self, pair: tuple[str, str]) -> np.ndarray:
        return item_scores(self.verdicts[pair].reshape(len(self.skills), -1))


def judged(items: int) -> Judged:
    random = np.random.default_rng(0)
    difficulty = random.integers(1, 11, size=items)
    lengths = {model: random.lognormal(6.5 + gain / 4, 0.5, items).round() for model, gain in STRENGTH.items()}
    verdicts = {}
    for one, other in PAIRS:
        gap = STRENGTH[one] - STRENGTH[other] + random.normal(0, 1, size=(items, 1, 1))
        seen = gap + random.normal(0, 0.7, size=(items, 2, 2))
        verdicts[one, other] = np.where(np.abs(seen) < 0.3, 0, np.sign(seen))
    return Judged(
        skills=[f"skill {number}" for number in random.integers(0, 29, size=items)],
        bands=["easy" if level <= 4 else "hard" if level >= 8 else "medium" for level in difficulty],
        difficulty=difficulty,
        lengths=lengths,
        grades={model: np.clip(random.normal(6 + gain, 2, items), 1, 10) for model, gain in STRENGTH.items()},
        verdicts=verdicts,
        truth=random.choice([-1, 0, 1], size=items),
    )


def figures(data: Judged, bootstrap: Bootstrap) -> Iterator[tuple[str, float]]:
    """Each kind of figure and the seconds that it took."""
    began = time.perf_counter()

    def took(name: str) -> tuple[str, float]:
        nonlocal began
        before, began = began, time.perf_counter()
        return name, began - before

    scores = {pair: data.scores(pair) for pair in PAIRS}
    for pair in PAIRS:
        win_rate(scores[pair], bootstrap=bootstrap)
    yield took("3 win rates")
    for pair in PAIRS:
        by_group(scores[pair], data.skills, bootstrap=bootstrap)
        by_group(scores[pair], data.bands, bootstrap=bootstrap)
    yield took("3 x 29 skills and 3 bands")
    paired_difference(scores[PAIRS[0]], scores[PAIRS[1]], bootstrap=bootstrap)
    yield took("paired difference")
    rows = [(*pair, v, n) for pair in PAIRS for n, cell in enumerate(data.verdicts[pair]) for v in cell.ravel()]
    first, second, verdicts, prompts = zip(*rows, strict=True)
    bradley_terry(first, second, verdicts, prompts=prompts, bootstrap=bootstrap)
    yield took("Bradley-Terry with ties")
    for one, other in PAIRS:
        length_controlled(scores[one, other], data.lengths[one], data.lengths[other], bootstrap=bootstrap)
    yield took("3 length-controlled win rates")
    for model in ("middle", "large"):
        capacity(data.grades[model], data.grades["small"], data.skills, bootstrap=bootstrap)
    yield took("2 capacities with 29 skills")
    everything = {pair: data.verdicts[pair] for pair in PAIRS}
    prompts = np.tile(np.arange(len(data.skills)), 3)
    lengths, others = (np.concatenate([data.lengths[pair[side]] for pair in PAIRS]) for side in (0, 1))
    for judge in range(2):
        said = np.concatenate([verdict[:, judge] for verdict in everything.values()])
        order_consistency(said[:, 0], said[:, 1], prompts=prompts, bootstrap=bootstrap)
        longer_preferred(item_scores(said), lengths, others, prompts=prompts, bootstrap=bootstrap)
        right = concordance(np.sign(data.verdicts[PAIRS[0]][:, judge].sum(axis=1)), data.truth)
        longest = concordance(always_longest(lengths[: len(right)], others[: len(right)]), data.truth)
        paired_difference(right, longest, bootstrap=bootstrap)
    yield took("2 judges' order, length and the longest answer")
    for pair in PAIRS:
        agreement(np.sign(data.verdicts[pair].sum(axis=2)), bootstrap=bootstrap)
    yield took("agreement of the judges on 3 pairs")
    gaps = data.lengths["large"] - data.lengths["small"]
    spearman(data.difficulty, data.grades["large"], bootstrap=bootstrap)
    spearman(data.difficulty, data.grades["large"], within=data.skills, without=gaps, bootstrap=bootstrap)
    yield took("2 rank correlations")


def plain(values: np.ndarray, bootstrap: Bootstrap) -> tuple[float, float]:
    """Seeds with replacement, and items with replacement in each of them; percentiles."""
    random = np.random.default_rng(bootstrap.seed)
    seeds, items = values.shape
    sums = np.zeros((bootstrap.draws, seeds))
    for place in range(seeds):
        chosen = values[random.integers(seeds, size=bootstrap.draws)]
        drawn = random.integers(items, size=(bootstrap.draws, items))
        sums[:, place] = np.take_along_axis(chosen, drawn, axis=1).mean(axis=1)
    low, high = np.quantile(sums.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def covered(seeds: int, seed_sd: float, item_sd: float, noise: float, *, sweeps: int = 1_000) -> tuple[object, ...]:
    random = np.random.default_rng(0)
    held = np.zeros(2)
    for number in range(sweeps):
        values = seed_sd * random.standard_normal((seeds, 1)) + item_sd * random.standard_normal(200)
        values = values + noise * random.standard_normal((seeds, 200))
        bootstrap = Bootstrap(seed=number, draws=2_000)
        found = hierarchical(values, bootstrap=bootstrap)
        low, high = plain(values, bootstrap)
        held += low <= 0 <= high, found.low <= 0 <= found.high
    return seeds, seed_sd, item_sd, noise, *(f"{share:.3f}" for share in held / sweeps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--plain-hierarchical", action="store_true")
    arguments = parser.parse_args()
    if arguments.plain_hierarchical:
        kinds = ((3, 0.02, 0.2, 0.3), (3, 0.05, 0.2, 0.3), (3, 0.2, 0.1, 0.1), (5, 0.05, 0.2, 0.3), (5, 0.0, 0.3, 0.3))
        rows = [covered(*kind) for kind in kinds]
        show_table(("seeds", "between seeds", "between items", "noise", "plain", "hierarchical"), rows)
        return
    timed = list(figures(judged(arguments.items), Bootstrap(seed=0, draws=arguments.draws)))
    rows = [(name, f"{seconds:.2f}") for name, seconds in timed]
    show_table(("figures", "seconds"), [*rows, ("all", f"{sum(seconds for _, seconds in timed):.2f}")])


if __name__ == "__main__":
    main()

"""What a run will have cost when it is through: an estimate with an interval, before it begins and while it runs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_gen.config import EvolveConfig, Mixture, Provider
from data_gen.evolve import model_name
from data_gen.llm.pricing import Prices, dollars
from data_gen.measure.difficulty import rank_prompt, score_prompt
from data_gen.operations import OPERATIONS, equal_prompt
from data_gen.records import Record

_Z90 = 1.6449  # standard normal: 90 % lie within this many deviations
LEAST_LINEAGES = 5
"""From so few finished lineages on, their spread says something."""

BYTES_PER_TOKEN = 4
ADDED_TOKENS = 20
ANSWER_TOKENS = (100, 300, 800)
"""Short, middling and long answers: what the estimate before the run assumes, for nothing is known yet."""
SAMPLED_SEEDS = 200
"""So many tell the lengths of all."""
_VERDICT_TOKENS = 4


@dataclass(frozen=True)
class Interval:
    """An estimate in US dollars; nine times in ten, what it comes to lies between `low` and `high`."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{dollars(self.middle)} ({dollars(self.low)} to {dollars(self.high)})"


@dataclass
class Forecast:
    """The cost of lineages that are finished, and from it that of all.

    What differs between lineages is taken as drawn from one distribution, so that the interval holds for seeds in
    no particular order; the first rows of a file that is sorted by length tell little about its last. Those that are
    quick are cheap, so each counts only when all that were begun before it are finished too.
    """

    lineages: int = 0
    mean: float = 0.0
    _before: int = 0
    _before_usd: float = 0.0
    _squares: float = field(default=0.0, repr=False)
    _begun: OrderedDict[int, float | None] = field(default_factory=OrderedDict, repr=False)
    """What those cost that wait for one begun before; None while they are under way."""

    def begin(self, index: int) -> None:
        self._begun[index] = None

    def end(self, index: int, *, usd: float) -> None:
        """The lineage is finished, and cost so much."""
        self._begun[index] = usd
        self._count()

    def leave(self, index: int) -> None:
        """The lineage is put off; it is begun once more."""
        del self._begun[index]
        self._count()

    def _count(self) -> None:
        while self._begun and (first := next(iter(self._begun.values()))) is not None:
            self._begun.popitem(last=False)
            self.add(first)

    def begin_anew(self) -> None:
        """Lineages cost something else from here on: those finished so far stay in the sum, and say no more."""
        self._before += self.lineages
        self._before_usd += self.lineages * self.mean
        self.lineages, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, usd: float) -> None:
        """One more finished lineage (Welford's update)."""
        self.lineages += 1
        before = usd - self.mean
        self.mean += before / self.lineages
        self._squares += before * (usd - self.mean)

    def total(self, lineages: int, *, spent: float = 0.0, beside: float = 0.0) -> Interval | None:
        """What `lineages` will have cost in all, and `beside` with them; None while too few are finished.

        It is no less than `spent`. The interval is one of a mean with few observations (Student's t), on a log scale,
        for costs are skewed: of 1,000 runs with log-normal costs, judged by 20 of 2,000 lineages, it holds for about
        890 where their log has a standard deviation of 0.5, 830 where it has 1.0, and 730 where it has 1.5. A
        lineage's cost is a sum of some dozen requests, whose own spread it evens out.
        """
        if self.lineages < LEAST_LINEAGES:
            return None
        remaining = max(lineages - self._before - self.lineages, 0)
        variance = self._squares / (self.lineages - 1)
        middle = beside + self._before_usd + (self.lineages + remaining) * self.mean
        # What the remaining ones come to, and how well their mean is known.
        deviation = math.sqrt(remaining * variance + remaining**2 * variance / self.lineages)
        spread = math.sqrt(math.log1p((deviation / middle) ** 2)) if middle else 0.0
        factor = math.exp(_t90(self.lineages - 1) * spread)
        return Interval(max(spent, middle / factor), max(spent, middle), max(spent, middle * factor))


def _t90(freedom: int) -> float:
    """Student's t: 90 % lie within so many deviations (Fisher's expansion; 0.002 off with 4 degrees of freedom)."""
    z = _Z90
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


# --- before anything was paid


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run takes if nothing is dropped, as far as texts tell.

    Where there are three figures, they are for answers of `ANSWER_TOKENS`.
    """

    requests: int
    input_tokens: int
    output_tokens: tuple[int, ...]
    usd: tuple[float, ...]

    def told(self) -> list[str]:
        """One line on requests and tokens, and one on money where there is any to pay."""
        if not self.requests:
            return ["no request is needed: nothing is rewritten, and the seeds bring their answers"]
        low, *_, high = self.output_tokens
        lines = [
            f"about {self.requests:,} requests if nothing is dropped early, {_millions(self.input_tokens)} tokens in "
            f"and {_millions(low)} to {_millions(high)} out"
        ]
        if self.usd[-1]:
            first, *others = zip(self.usd, ANSWER_TOKENS, strict=True)
            cases = [f"about {dollars(first[0])} with answers of {first[1]} tokens"]
            cases += [f"{dollars(usd)} with {tokens}" for usd, tokens in others]
            lines.append(f"{', '.join(cases)}; what the model thinks is not counted")
        return lines


class _Asked(NamedTuple):
    """Requests that are alike."""

    number: float
    provider: Provider
    model: str
    input_tokens: float
    output_tokens: float
    answers: int = 0
    """1 where the reply is an answer, whose length nobody knows."""


def expected(
    config: EvolveConfig, *, seeds: Iterable[Record], total: int, prices: Mapping[Provider, Prices]
) -> Expected:
    """What `total` seeds like those of a sample take: requests, tokens and money.

    Tokens are taken as 4 bytes each, which is right for English prose; every rewrite adds 20 of them, the middle of
    the 10 to 20 words that the prompts ask for; and no reply thinks.

    Raises:
      PriceError: nobody knows what a model costs.
    """
    seeds = list(seeds)
    mean = _Mean(
        instruction=statistics.fmean(_tokens(seed.instruction) for seed in seeds),
        context=statistics.fmean(sum(_tokens(turn.content) for turn in seed.context) for seed in seeds),
        unanswered=statistics.fmean(not (config.answer_seeds == "keep" and seed.answer) for seed in seeds),
    )
    requests = list(_requests(config, mean, total=total))

    def usd(asked: _Asked, answer: int) -> float:
        output_tokens = round(asked.output_tokens + asked.answers * answer)
        return asked.number * prices[asked.provider].usd(
            model=asked.model, input_tokens=round(asked.input_tokens), output_tokens=output_tokens
        )

    return Expected(
        requests=round(sum(asked.number for asked in requests)),
        input_tokens=round(sum(asked.number * asked.input_tokens for asked in requests)),
        output_tokens=tuple(
            round(sum(asked.number * (asked.output_tokens + asked.answers * answer) for asked in requests))
            for answer in ANSWER_TOKENS
        ),
        usd=tuple(sum(usd(asked, answer) for asked in requests) for answer in ANSWER_TOKENS),
    )


class _Mean(NamedTuple):
    """Of the seeds: tokens of the instruction and of the turns before it, and how many are to be answered."""

    instruction: float
    context: float
    unanswered: float


def _requests(config: EvolveConfig, mean: _Mean, *, total: int) -> Iterator[_Asked]:
    """All requests of a run, by kind."""
    answerer, judge = config.answerer or config.llm, config.judge or config.llm
    mixture = config.mixture or Mixture(models=(model_name(config.llm),), weights=(1.0,))
    rewriting = statistics.fmean(_tokens(OPERATIONS[name].prompt("")) for name in config.operations)
    lengths = [mean.instruction + ADDED_TOKENS * round_ for round_ in range(config.rounds + 1)]
    for round_, length in enumerate(lengths):
        answered = total if round_ else total * mean.unanswered
        yield _Asked(answered, answerer, model_name(answerer), mean.context + length, 0, answers=1)
    for before, after in itertools.pairwise(lengths):
        for model, weight in zip(mixture.models, mixture.weights, strict=True):
            share = weight / sum(mixture.weights)
            yield _Asked(total * share, config.llm, model, rewriting + mean.context + before, after)
        judged = statistics.fmean(OPERATIONS[name].judged_by in config.eliminate for name in config.operations)
        asked = _tokens(equal_prompt("", "")) + before + after
        yield _Asked(total * judged, judge, model_name(judge), asked, _VERDICT_TOKENS)
    ranked = config.pilot.lineages if config.choice == "bandit" or config.stop == "run" else 0
    scored = total if config.stop == "lineage" and config.rounds > 1 else 0
    measured = min(config.measure.difficulty_lineages, total)
    scoring = _tokens(score_prompt(""))
    for length in lengths[:-1]:
        yield _Asked(scored, judge, model_name(judge), scoring + length, _VERDICT_TOKENS)
    for length in lengths:
        yield _Asked(measured, judge, model_name(judge), scoring + length, _VERDICT_TOKENS)
    ranking = _tokens(rank_prompt(["", ""])) + sum(lengths)
    yield _Asked(ranked + measured, judge, model_name(judge), ranking, _VERDICT_TOKENS * len(lengths))


def _tokens(text: str) -> float:
    return len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} million" if tokens >= 1e6 else f"{tokens:,}"

"""What a run will have cost when it is through: an estimate with an interval, before it begins and while it runs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from data_gen.config import AnswerConfig, EvolveConfig, Mixture, Provider
from data_gen.evolve import Lineage, model_name
from data_gen.llm.chat import Spent
from data_gen.llm.pricing import Prices, dollars
from data_gen.measure.difficulty import rank_prompt, score_prompt
from data_gen.operations import OPERATIONS, answer_prompt, equal_prompt
from data_gen.records import Record
from data_gen.settings import needs_pilot

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
    ranking_usd: float = 0.0
    """What a pilot's ranking takes of it."""

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


class Asked(NamedTuple):
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
        instruction=statistics.fmean(tokens_of(seed.instruction) for seed in seeds),
        context=statistics.fmean(sum(tokens_of(turn.content) for turn in seed.context) for seed in seeds),
        unanswered=statistics.fmean(not (config.answer_seeds == "keep" and seed.answer) for seed in seeds),
    )
    lengths = {round_: mean.instruction + ADDED_TOKENS * round_ for round_ in range(config.rounds + 1)}
    ranking = _ranking(lengths.values(), config=config, number=_piloted(config))
    requests = [*_of_lineages(config, mean, lengths=list(lengths.values()), total=total), ranking]
    measuring = _measuring(lengths, config=config, total=total)
    requests += [asked._replace(number=total * asked.number) for asked in measuring]
    said = summed(requests, prices=prices)
    return replace(said, ranking_usd=_usd(ranking, prices=prices))


def expected_answers(
    config: AnswerConfig, *, records: Iterable[Record], total: int, prices: Mapping[Provider, Prices]
) -> Expected:
    """What answering `total` records like those of a sample takes; tokens as in `expected`."""
    lengths = (
        tokens_of(answer_prompt(config.style, record.instruction, words=config.words))
        + sum(tokens_of(turn.content) for turn in record.context)
        for record in records
    )
    asked = Asked(total, config.llm, model_name(config.llm), statistics.fmean(lengths), 0, answers=1)
    return summed([asked], prices=prices)


def expected_measuring(
    config: EvolveConfig, *, lineages: Sequence[Lineage], total: int, prices: Mapping[Provider, Prices]
) -> Expected:
    """What the judge of the finished records takes of `total` lineages like those of a sample; see `measuring_usd`."""
    requests = [
        asked._replace(number=total / len(lineages) * asked.number)
        for lineage in lineages
        for asked in _measuring(_lengths(lineage), config=config, total=total)
    ]
    return summed(requests, prices=prices)


def _lengths(lineage: Lineage) -> dict[int, float]:
    """Tokens of the instructions, by round."""
    return {record.round: tokens_of(record.instruction) for record in lineage.records}


def measuring_usd(
    lineage: Lineage,
    verdicts: Mapping[int, Spent],
    *,
    config: EvolveConfig,
    total: int,
    prices: Mapping[Provider, Prices],
) -> float:
    """What the judge of the finished records takes for this lineage, times how likely it is that he is asked of it.

    That of all `total` together is what he takes, but for what he says of suspected test items. `verdicts` is what his
    verdicts on its rewrites took, by round: they tell how he counts tokens, and how many he thinks.
    """
    by_id = {record.id: record.instruction for record in lineage.records}
    judged = [record for record in lineage.records if record.round in verdicts and record.parent in by_id]
    scale, thought = 1.0, 0.0
    if judged:
        heard = [verdicts[record.round] for record in judged]
        prompts = (tokens_of(equal_prompt(by_id[record.parent], record.instruction)) for record in judged)
        scale = sum(one.input_tokens for one in heard) / math.fsum(prompts)
        thought = max(0.0, sum(one.output_tokens for one in heard) / len(judged) - _VERDICT_TOKENS)
    return math.fsum(
        _usd(
            asked._replace(input_tokens=scale * asked.input_tokens, output_tokens=asked.output_tokens + thought),
            prices=prices,
        )
        for asked in _measuring(_lengths(lineage), config=config, total=total)
    )


def _usd(asked: Asked, *, prices: Mapping[Provider, Prices], answer: int = 0) -> float:
    """USD of such requests, with answers of so many tokens."""
    output_tokens = round(asked.output_tokens + asked.answers * answer)
    return asked.number * prices[asked.provider].usd(
        model=asked.model, input_tokens=round(asked.input_tokens), output_tokens=output_tokens
    )


def summed(requests: Sequence[Asked], *, prices: Mapping[Provider, Prices]) -> Expected:
    return Expected(
        requests=round(sum(asked.number for asked in requests)),
        input_tokens=round(sum(asked.number * asked.input_tokens for asked in requests)),
        output_tokens=tuple(
            round(sum(asked.number * (asked.output_tokens + asked.answers * answer) for asked in requests))
            for answer in ANSWER_TOKENS
        ),
        usd=tuple(sum(_usd(asked, prices=prices, answer=answer) for asked in requests) for answer in ANSWER_TOKENS),
    )


class _Mean(NamedTuple):
    """Of the seeds: tokens of the instruction and of the turns before it, and how many are to be answered."""

    instruction: float
    context: float
    unanswered: float


def _of_lineages(config: EvolveConfig, mean: _Mean, *, lengths: Sequence[float], total: int) -> Iterator[Asked]:
    """The requests of lineages as they evolve, by kind; `lengths` are those of their instructions, by round."""
    answerer, judge = config.answerer or config.llm, config.judge or config.llm
    mixture = config.mixture or Mixture(models=(model_name(config.llm),), weights=(1.0,))
    rewriting = statistics.fmean(tokens_of(OPERATIONS[name].prompt("")) for name in config.operations)
    for round_, length in enumerate(lengths):
        answered = total if round_ else total * mean.unanswered
        yield Asked(answered, answerer, model_name(answerer), mean.context + length, 0, answers=1)
    for before, after in itertools.pairwise(lengths):
        for model, weight in zip(mixture.models, mixture.weights, strict=True):
            share = weight / sum(mixture.weights)
            yield Asked(total * share, config.llm, model, rewriting + mean.context + before, after)
        judged = statistics.fmean(OPERATIONS[name].judged_by in config.eliminate for name in config.operations)
        asked = tokens_of(equal_prompt("", "")) + before + after
        yield Asked(total * judged, judge, model_name(judge), asked, _VERDICT_TOKENS)
    scored = total if _scores_as_it_goes(config) else 0
    for length in lengths[:-1]:
        yield _score(length, config=config, number=scored)


def _measuring(lengths: Mapping[int, float], *, config: EvolveConfig, total: int) -> Iterator[Asked]:
    """What the judge of the finished records is asked of a lineage, and how likely; `lengths` are tokens by round.

    He is asked of a sample, and not again what he said in a pilot or when a lineage was to end. A shard has none.
    """
    if config.shard.count > 1 or not total:
        return
    share = min(config.measure.difficulty_lineages, total) / total
    for round_, length in lengths.items():
        if round_ == config.rounds or not _scores_as_it_goes(config):
            yield _score(length, config=config, number=share)
    if len(lengths) > 1:
        yield _ranking(lengths.values(), config=config, number=share * max(0.0, 1 - _piloted(config) / total))


def _scores_as_it_goes(config: EvolveConfig) -> bool:
    """Whether every version but the last is scored to see if its lineage ends."""
    return config.stop == "lineage" and config.rounds > 1


def _piloted(config: EvolveConfig) -> int:
    """Lineages that are ranked before the others begin."""
    return config.pilot.lineages if needs_pilot(config) else 0


def _score(length: float, *, config: EvolveConfig, number: float) -> Asked:
    judge = config.judge or config.llm
    return Asked(number, judge, model_name(judge), tokens_of(score_prompt("")) + length, _VERDICT_TOKENS)


def _ranking(lengths: Collection[float], *, config: EvolveConfig, number: float) -> Asked:
    judge = config.judge or config.llm
    asked = tokens_of(rank_prompt(["", ""])) + sum(lengths)
    return Asked(number, judge, model_name(judge), asked, _VERDICT_TOKENS * len(lengths))


def tokens_of(text: str) -> float:
    return len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} million" if tokens >= 1e6 else f"{tokens:,}"

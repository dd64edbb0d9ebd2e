"""What a run will have cost when it is through: an estimate with an interval, before it begins and while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_Z90 = 1.6449  # standard normal: 90 % lie within this many deviations
LEAST_LINEAGES = 5
"""From so few finished lineages on, their spread says something."""

TOKENS_PER_WORD = 1.35
"""Of English prose, for the estimate before anything was paid."""
ANSWER_TOKENS = (100, 300, 800)
"""Short, middling and long answers: what the estimate before the run assumes, for nothing is known yet."""


@dataclass(frozen=True)
class Interval:
    """An estimate in US dollars; nine times in ten, what it comes to lies between `low` and `high`."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"${self.middle:,.2f} (${self.low:,.2f} to ${self.high:,.2f})"


@dataclass
class Forecast:
    """The cost of lineages that are finished, and from it that of all.

    What differs between lineages is taken as drawn from one distribution, so that the interval holds for seeds in
    no particular order; the first rows of a file that is sorted by length tell little about its last.
    """

    lineages: int = 0
    mean: float = 0.0
    _squares: float = field(default=0.0, repr=False)

    def add(self, usd: float) -> None:
        """One more finished lineage (Welford's update)."""
        self.lineages += 1
        before = usd - self.mean
        self.mean += before / self.lineages
        self._squares += before * (usd - self.mean)

    def total(self, remaining: int, *, spent: float) -> Interval | None:
        """What the run will have cost with `remaining` lineages to come; None while too few are finished."""
        if self.lineages < LEAST_LINEAGES:
            return None
        variance = self._squares / (self.lineages - 1)
        # What the remaining ones come to, and how well their mean is known.
        deviation = math.sqrt(remaining * variance + remaining**2 * variance / self.lineages)
        middle = spent + remaining * self.mean
        return Interval(max(spent, middle - _Z90 * deviation), middle, middle + _Z90 * deviation)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run takes if nothing is eliminated early."""

    requests: int
    input_tokens: int
    output_tokens: tuple[int, int, int]
    """With short, middling and long answers."""


def expected(
    *, lineages: int, rounds: int, words_of_seeds: Sequence[int], prompt_words: int, judge_words: int
) -> Expected:
    """Before anything was paid: from the lengths of some seeds, the wordings, and an assumed length of answers.

    Each round adds 15 words to an instruction, the middle of what the prompts ask for; each rewrite, verdict and
    answer is one request.
    """
    mean_words = sum(words_of_seeds) / max(len(words_of_seeds), 1)
    asked = heard = 0.0  # tokens of one lineage but for its answers
    for round_ in range(1, rounds + 1):
        before, after = mean_words + 15 * (round_ - 1), mean_words + 15 * round_
        asked += TOKENS_PER_WORD * (prompt_words + before + judge_words + before + after + after)
        heard += TOKENS_PER_WORD * after + 2
    asked += TOKENS_PER_WORD * mean_words
    short, middling, long = (heard + (rounds + 1) * tokens for tokens in ANSWER_TOKENS)
    outputs = (round(lineages * short), round(lineages * middling), round(lineages * long))
    return Expected(requests=lineages * (3 * rounds + 1), input_tokens=round(lineages * asked), output_tokens=outputs)

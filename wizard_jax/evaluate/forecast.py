"""What an evaluation will ask and cost, told before anything is paid."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from data_gen.config import Provider
from data_gen.evolve import model_name
from data_gen.forecast import ANSWER_TOKENS, Asked, Expected, summed, tokens_of
from data_gen.judging import wording
from data_gen.llm.pricing import Prices
from wizard_jax.evaluate.config import EvalConfig, Local
from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.judging.calibration import KnownTruth
from wizard_jax.evaluate.judging.panel import pairings

_ANSWER = ANSWER_TOKENS[1]  # of the answers that a judge is shown


def pieces_in_all(config: EvalConfig, items: int, known: KnownTruth) -> int:
    """Answers, and what judges are asked about."""
    answers = items * config.samples * len(config.models)
    return answers + sum(len(known.pairs) + _judged(config, name, items) for name in config.judges)


def _judged(config: EvalConfig, judge: str, items: int) -> int:
    asks = config.judges[judge].asks
    pairs = len(pairings(config)) if asks != "graded" else 0
    singles = len(config.models) if asks != "pairwise" else 0
    return items * config.samples * (pairs + singles)


def expected(
    config: EvalConfig, items: Sequence[Item], known: KnownTruth, *, prices: Mapping[Provider, Prices]
) -> Expected:
    """Requests, tokens and money of the hosted models and judges; a model of this project costs nothing here."""
    return summed(list(_requests(config, items, known)), prices=prices)


def _requests(config: EvalConfig, items: Sequence[Item], known: KnownTruth) -> Iterator[Asked]:
    asked = statistics.fmean(sum(map(tokens_of, item.turns)) for item in items)
    turns = statistics.fmean(len(item.turns) for item in items)
    for model in config.models.values():
        if not isinstance(model, Local):
            number = len(items) * config.samples * turns
            yield Asked(number, model, model_name(model), asked + (turns - 1) / 2 * _ANSWER, 0, answers=1)
    framed = tokens_of(wording.prompt(wording.Comparison(turns=("",), first=("",), second=("",))))
    for judge in config.judges.values():
        if isinstance(judge.llm, Local):
            continue
        orders = 2 if judge.asks != "graded" else 0
        pairs = len(items) * config.samples * len(pairings(config)) * orders
        singles = len(items) * config.samples * turns * len(config.models) * (judge.asks != "pairwise")
        calls = len(known.pairs) * (orders + 2 * (judge.asks != "pairwise"))
        for number, shown in ((pairs, 2 * turns * _ANSWER), (singles, turns * _ANSWER), (calls, _ANSWER)):
            if number:
                yield Asked(number, judge.llm, model_name(judge.llm), framed + asked + shown, 0, answers=1)

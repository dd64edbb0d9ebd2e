"""What no run could do: combinations of settings that are refused before anything is sent."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from configs.errors import UserError
from data_gen import shards
from data_gen.config import WIRE_FAULTS, AnswerConfig, EvolveConfig, Pilot, Provider, Shard, Simulated
from data_gen.measure.measure import asks_judge, check_measure
from data_gen.operations import OPERATIONS
from data_gen.sources import in_shard


class SettingsError(UserError):
    """Settings that no run could use; says which, and what to set instead."""


def check(config: EvolveConfig) -> None:
    """Raises SettingsError (ShardError of the data set's name, MeasureError of measures) for what no run could use."""
    _check_operations(config.operations)
    shards.check_layout(name=config.name, records_per_shard=config.records_per_shard)
    _check_numbers(config)
    if config.rounds < 0 or config.open_lineages < 0:
        raise SettingsError(f"rounds = {config.rounds}, open_lineages = {config.open_lineages}: at least 0")
    _check_pilot(config)
    check_measure(config.measure)
    for path in ("llm", "answerer", "judge"):
        if provider := getattr(config, path):
            _check_provider(provider, path=path)
    _check_rates(config, (config.llm, config.answerer or config.llm, config.judge or config.llm))
    if config.mixture and isinstance(config.llm, Simulated):
        raise SettingsError("mixture has no effect on the simulated model in this process: it is a single one")


def check_answer(config: AnswerConfig) -> None:
    """Raises SettingsError (or as `check`) for settings by which nothing can be answered."""
    shards.check_layout(name=config.name, records_per_shard=config.records_per_shard)
    _check_numbers(config)
    check_measure(config.measure)
    if asks_judge(config.measure):
        raise SettingsError(
            "measure.difficulty_lineages and contamination_verdict = 'model' need a judge, and nothing is judged where "
            "only answers are new: leave them out"
        )
    _check_provider(config.llm, path="llm")
    _check_rates(config, (config.llm,))
    if min(config.rounds, default=0) < 0:
        raise SettingsError(f"rounds = {config.rounds}: rounds count from 0, and () takes all")
    if (config.style == "length") != (config.words > 0):
        raise SettingsError(
            f"style = {config.style!r}, words = {config.words}: 'length' needs words, and no other has any"
        )


def check_count(config: EvolveConfig, *, seeds: int) -> None:
    """Raises SettingsError for settings that need more seeds than there are."""
    if needs_pilot(config) and seeds <= config.pilot.lineages:
        raise SettingsError(
            f"pilot.lineages = {config.pilot.lineages}, and there are {seeds} seeds: none is left that could use what "
            "the pilot settles; set pilot.lineages lower, or choice = 'uniform' and stop = 'never'"
        )
    lineages = [f"{index:06d}" for index in range(seeds if config.shard.count > 1 else 0)]
    for index in range(config.shard.count if lineages else 0):
        if not any(in_shard(lineage, Shard(index=index, count=config.shard.count)) for lineage in lineages):
            raise SettingsError(
                f"shard.count = {config.shard.count}: of {seeds} seeds none falls to part {index}, and without a data "
                "set of every part they could not be merged; make fewer parts"
            )


def _check_numbers(config: EvolveConfig | AnswerConfig) -> None:
    for name, least in {"max_tokens": 1, "concurrency": 1, "max_attempts": 1, "temperature": 0}.items():
        if not getattr(config, name) >= least:
            raise SettingsError(f"{name} = {getattr(config, name)}: it must be at least {least}")
    if math.isinf(config.temperature):
        raise SettingsError(f"temperature = {config.temperature}: it must be finite")
    if not 0 < config.top_p <= 1:
        raise SettingsError(f"top_p = {config.top_p}: it must be above 0 and at most 1")
    for name in ("requests_per_minute", "tokens_per_minute"):
        rate = getattr(config, name)
        if rate is not None and not 0 < rate < math.inf:
            raise SettingsError(f"{name} = {rate}: it must be above 0; None sets no limit")


def _check_operations(operations: tuple[str, ...]) -> None:
    if not operations:
        raise SettingsError(f"operations is empty: name at least one of {', '.join(OPERATIONS)}")
    for name in operations:
        if name not in OPERATIONS:
            near = difflib.get_close_matches(name, OPERATIONS, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(OPERATIONS)}"
            raise SettingsError(f"operations: there is no operation {name!r}; {meant}")
    if len(set(operations)) < len(operations):
        raise SettingsError("operations: one is named twice; they are chosen from with equal probability")


def _check_pilot(config: EvolveConfig) -> None:
    pilot = config.pilot
    if not 0 < pilot.floor * len(config.operations) <= 1:
        raise SettingsError(
            f"pilot.floor = {pilot.floor}: above 0, and at most {1 / len(config.operations):.4g} with "
            f"{len(config.operations)} operations"
        )
    if pilot.lineages < 1:
        raise SettingsError(f"pilot.lineages = {pilot.lineages}: it must be at least 1")
    if not math.isfinite(pilot.margin):
        raise SettingsError(f"pilot.margin = {pilot.margin}: points of difficulty, so a finite number")
    for name, has_effect, needed in (
        ("lineages", needs_pilot(config), "choice = 'bandit' or stop = 'run'"),
        ("floor", config.choice == "bandit", "choice = 'bandit'"),
        ("margin", config.stop != "never", "stop = 'lineage' or stop = 'run'"),
    ):
        if not has_effect and getattr(pilot, name) != getattr(Pilot(), name):
            raise SettingsError(f"pilot.{name} has no effect: set {needed} as well, or leave it out")
    if config.shard.count > 1 and needs_pilot(config):
        raise SettingsError(
            "shard: each part would learn from a pilot of its own, and the parts would not make one data set; "
            "set choice = 'uniform' and stop = 'never' or 'lineage', or run all in one process"
        )


def needs_pilot(config: EvolveConfig) -> bool:
    """Whether the run settles something for all lineages from what the first ones came to."""
    return config.choice == "bandit" or config.stop == "run"


def _check_provider(provider: Provider, *, path: str) -> None:
    if isinstance(provider, Simulated):
        _check_faults(provider, path=path)
        _check_judging(provider, path=path)
        return
    if not provider.timeout_seconds > 0:
        raise SettingsError(f"{path}.timeout_seconds = {provider.timeout_seconds}: it must be above 0")
    if provider.batch is None:
        return
    for name in ("max_requests", "max_bytes", "max_wait_seconds", "poll_seconds"):
        if not getattr(provider.batch, name) > 0:
            raise SettingsError(f"{path}.batch.{name} = {getattr(provider.batch, name)}: it must be above 0")


def _check_faults(provider: Simulated, *, path: str) -> None:
    for name in WIRE_FAULTS:
        if getattr(provider.faults, name):
            raise SettingsError(
                f"{path}.faults.{name} has no effect on the simulated model in this process: serve it with "
                f"wizard simulate-llm {name}=..., and set {path} = @OpenAICompatible"
            )


def _check_judging(provider: Simulated, *, path: str) -> None:
    for name, told in (("judges", provider.judges != "well"), ("faults.misjudged", provider.faults.misjudged)):
        if told:
            raise SettingsError(f"{path}.{name} is for the judges of wizard eval: leave it out here")


def _check_rates(config: EvolveConfig | AnswerConfig, providers: Iterable[Provider]) -> None:
    """A rate that the user knows is one of single requests; jobs have none."""
    if any(isinstance(provider, Simulated) or provider.batch is None for provider in providers):
        return
    for name in ("requests_per_minute", "tokens_per_minute"):
        if getattr(config, name) is not None:
            raise SettingsError(f"{name} has no effect: every request goes out in a batch job; leave it out")

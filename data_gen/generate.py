"""A whole run: seeds -> lineages -> journal -> shards, with progress, and going on where it stopped.

    out/config.gin  journal.sqlite  seeds.sha256  dataset/  rejected.jsonl  measures.json  README.md  report.html
        complete.json (last)

What a lineage came to is committed to the journal; all that comes out is then written from the journal in the order
of the seeds, so the same journal gives the same bytes. Memory holds the open lineages, never all seeds or records.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from configs.folder import open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen import finish, pilot, sources
from data_gen.config import EvolveConfig
from data_gen.evolve import Lineage, rounds_of
from data_gen.forecast import SAMPLED_SEEDS, Expected, Interval, expected, measuring_usd
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import Spent
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.journal_file import spent_by_round
from data_gen.llm.stack import Prepared, Sending, Stack, cast, open_stack, prepare
from data_gen.measure.measure import asks_judge
from data_gen.records import Record
from data_gen.run import Progress, Run, Work, places
from data_gen.settings import check, check_count, needs_pilot
from data_gen.side_by_side import BudgetReached, RunError
from data_gen.sources import SeedsFound

SEEDS = "seeds.sha256"


def generate(
    config: EvolveConfig,
    out: Path,
    *,
    progress: Progress,
    say: Callable[[str], None] = print,
    stop: StopFlag | None = None,
) -> dict[str, Any]:
    """Evolves all seeds into `out`/dataset and returns the summary, which `out`/complete.json holds too.

    Started again on the same folder it goes on; on a finished one it only returns the summary, for which the seeds
    need not be there any more. `say` is told what a user should know before money is spent. Without a `stop` of the
    caller's it must be called in the main thread, which gets the signals.

    Raises:
      UserError: bad settings or seeds, no key, no price, a folder of another run or of other seeds, a model that
        will not answer, or not one record that survived.
      BudgetReached: with a data set of what the budget was enough for.
      Interrupted: SIGTERM or Ctrl-C came. Requests in flight were given time to come home.
    """
    check(config)
    if (out / "complete.json").exists():
        with open_stage(out, config, stage="evolve"):
            _check_finished(config, out)
            return read_complete(out)
    begun = _begun(config, out, progress=progress, say=say)
    with open_stage(out, config, stage="evolve") as folder:
        with stop_flag() if stop is None else contextlib.nullcontext(stop) as flag:
            summary, unfinished = asyncio.run(_generate(begun, stop=flag))
        if unfinished:
            raise BudgetReached(unfinished)
        folder.complete(summary)
    return summary


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Some lineages, evolved and paid for, and what they say about all of them."""

    lineages: tuple[Lineage, ...]
    costs: tuple[Mapping[int, Spent], ...]
    """By round, for each of the lineages."""
    total: int
    """Seeds in all."""
    forecast: Interval | None
    """Of the whole run; None while too few lineages are finished."""
    stopped: str = ""
    """Why it ended before the last of them, if it did."""


def preview(
    config: EvolveConfig, out: Path, count: int, *, progress: Progress, say: Callable[[str], None] = print
) -> Preview:
    """Evolves the first `count` seeds in full and spends nothing more; a later run in `out` goes on from there.

    Raises: as `generate`.
    """
    check(config)
    if count < 1:
        raise RunError(f"a preview of {count} seeds shows nothing: ask for at least 1")
    begun = _begun(config, out, progress=progress, say=say)
    with open_stage(out, config, stage="evolve"), stop_flag() as stop:
        return asyncio.run(_preview(begun, count, stop=stop))


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A run whose seeds were read and whose models have keys and prices."""

    config: EvolveConfig
    out: Path
    found: SeedsFound
    prepared: Prepared
    likely: Expected
    progress: Progress
    say: Callable[[str], None]


def _begun(config: EvolveConfig, out: Path, *, progress: Progress, say: Callable[[str], None]) -> _Begun:
    found = sources.check_seeds(config.seeds)
    for line in found.told():
        say(line)
    check_count(config, seeds=found.count)
    prepared = prepare(cast(config), models=config.mixture.models if config.mixture else ())
    sample = list(islice(sources.iter_seeds(config.seeds, shard=config.shard), SAMPLED_SEEDS))
    total = _total(config, found)
    likely = expected(config, seeds=sample, total=total, prices=prepared.prices)
    for line in likely.told():
        say(line)
    return _Begun(config=config, out=out, found=found, prepared=prepared, likely=likely, progress=progress, say=say)


def _total(config: EvolveConfig, found: SeedsFound) -> int:
    """Seeds of this run; with a shard, those of the shard."""
    return sum(sources.in_shard(f"{index:06d}", config.shard) for index in range(found.count))


async def _generate(begun: _Begun, *, stop: StopFlag) -> tuple[dict[str, Any], str]:
    """The summary, and why the run is not finished, if it is not."""
    config, found = begun.config, begun.found
    async with _opened(begun, stop=stop) as run:
        work = _work(config, total=run.total, stack=run.stack)
        async with run.going_on():
            if needs_pilot(config):
                work = await pilot.settled(run, work, config=config, say=begun.say)
            if run.budget_spent is None:
                await run.through(work)
        facts: dict[str, Any] = {"seeds": run.total, "seeds_sha256": found.sha256}
        if (known := pilot.known_settled(run)) is not None:
            facts["settled"] = known.summary(config)
        made = finish.made_by(run, facts=facts)
        return await finish.write_run(run, config, begun.out, made=made), run.unfinished


async def _preview(begun: _Begun, count: int, *, stop: StopFlag) -> Preview:
    async with _opened(begun, stop=stop) as run:
        work = _work(begun.config, total=run.total, stack=run.stack).first(count)
        if needs_pilot(begun.config):
            work = pilot.as_settled(run, work, config=begun.config)
        async with run.going_on():
            await run.through(work)
        names = {index: seed.lineage for index, seed in work.pieces()}
        saved = [one for one in run.journal.lineages() if one.index in names]
        return Preview(
            lineages=tuple(Lineage.from_json(one.payload) for one in saved),
            costs=tuple(run.journal.read(partial(spent_by_round, lineage=names[one.index])) for one in saved),
            total=run.total,
            forecast=run.in_all,
            stopped=str(run.budget_spent or ""),
        )


@contextlib.asynccontextmanager
async def _opened(begun: _Begun, *, stop: StopFlag) -> AsyncIterator[Run]:
    """The journal, found to be of these seeds, and the models."""
    config, out, found = begun.config, begun.out, begun.found
    total = _total(config, found)
    async with Journal.open(out / JOURNAL) as journal:
        _check_seeds(config, out, found, journal)
        write_atomically(out / SEEDS, f"{found.sha256}\n")
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(begun.prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:
            yield Run(
                journal=journal,
                stack=stack,
                progress=begun.progress,
                stop=stop,
                total=total,
                beside_usd=begun.likely.ranking_usd,
                measuring_usd=partial(measuring_usd, config=config, total=total, prices=begun.prepared.prices)
                if asks_judge(config.measure)
                else None,
            )


def _work(config: EvolveConfig, *, total: int, stack: Stack) -> Work:
    """Every seed through all rounds by uniform choice; with batch jobs all are open, so that a round of all is one."""

    def pieces() -> Iterator[tuple[int, Record]]:
        return ((int(seed.lineage), seed) for seed in sources.iter_seeds(config.seeds, shard=config.shard))

    return Work(
        total=total,
        pieces=pieces,
        outcomes=lambda seed, model: rounds_of(seed, model=model, config=config),
        open_at_once=config.open_lineages or places(config.concurrency, stack=stack, total=total),
    )


# --- the seeds


def _check_seeds(config: EvolveConfig, out: Path, found: SeedsFound, journal: Journal) -> None:
    """Raises RunError, naming a row, when the seeds are not those that the run was begun with."""
    file = out / SEEDS
    if not file.exists() or file.read_text().strip() == found.sha256:
        return
    raise RunError(
        f"the seeds are not those that {out} was begun with: {_first_change(config, journal)}; "
        "restore them, or evolve the new ones into another --out"
    )


def _first_change(config: EvolveConfig, journal: Journal) -> str:
    """Which row of the seeds is another, as far as what was finished tells."""
    seeds = ((int(seed.lineage), seed) for seed in sources.iter_seeds(config.seeds, shard=config.shard))
    index, seed = next(seeds, (-1, None))
    for saved in journal.lineages():
        while seed is not None and index < saved.index:
            index, seed = next(seeds, (index, None))
        if seed is None or sources.seed_id(seed) != saved.seed_id:
            return f"seed {saved.index + 1} has changed or is gone"
    return "seeds were changed, added or removed"


def _check_finished(config: EvolveConfig, out: Path) -> None:
    """Raises RunError where a finished run has other seeds than are there now."""
    if sources.are_there(config.seeds):
        found = sources.check_seeds(config.seeds)
        if (out / SEEDS).read_text().strip() != found.sha256:
            raise RunError(
                f"the seeds are not those that {out} was made of: seeds were changed, added or removed; "
                "restore them, or evolve the new ones into another --out"
            )

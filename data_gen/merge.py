"""One data set from the folders of `wizard evolve --shard 0/N ... N-1/N`: the same as one process would have made.

The shards' journals are read side by side, lineage by lineage; nothing is asked again. A judge, who is only now asked
about the whole, has a journal here, and may spend what the shards have left of their budgets together.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import load_config, open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from configs.loader import identity
from data_gen import finish
from data_gen.config import Budget, EvolveConfig, Shard
from data_gen.evolve import Lineage
from data_gen.forecast import SAMPLED_SEEDS, expected_measuring
from data_gen.generate import SEEDS
from data_gen.llm import journal_file
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import NOTHING, ChatModel, ChatReply, ChatRequest, Spent
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.journal_file import SavedLineage
from data_gen.llm.pricing import dollars
from data_gen.llm.stack import JUDGED, Prepared, Sending, cast, open_stack, prepare
from data_gen.measure.measure import asks_judge
from data_gen.run import Run

_SAME_IN_ALL = "seeds_sha256"
_SUMMED = (
    *("seeds", "unfinished", "asked", "from_journal"),
    *("rate_limited", "not_sent", "lost_after_sending", "possibly_paid_twice"),
    *Spent._fields,
)


class MergeError(UserError):
    """Folders that are not the shards of one run, or not all of them."""


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    whole: EvolveConfig | None = None,
    say: Callable[[str], None] = print,
    stop: StopFlag | None = None,
    elsewhere: finish.Elsewhere | None = None,
) -> dict[str, Any]:
    """Joins finished shards into `out`, a folder as of one `wizard evolve` without shards; returns the summary.

    `whole` is the settings of them all, where the caller has them; else they are those of the first folder, with the
    budgets of all folders together. `say` is told what a judge is expected to take before he is asked. Without a `stop`
    of the caller's it must be called in the main thread, which gets the signals. Killed, it is only to be started
    again. `elsewhere` is what other processes do of it.

    Raises:
      MergeError: a shard is missing, doubled, of other settings or of other seeds.
      FolderError: a folder is not finished, or `out` is another's.
      JournalError: a shard's journal is gone or damaged.
      RunError: the judge can not be used.
      Interrupted: SIGTERM or Ctrl-C came; what the judge was being asked was given time to come home.
    """
    summaries = [read_complete(folder, stage="evolve") for folder in folders]
    config = _whole([load_config(EvolveConfig, folder) for folder in folders], folders, whole=whole)
    seeds = _same_seeds(summaries, folders)
    with contextlib.ExitStack() as held:
        journals = [held.enter_context(contextlib.closing(journal_file.read_only(one / JOURNAL))) for one in folders]
        told = stop_flag() if stop is None else contextlib.nullcontext(stop)
        with open_stage(out, config, stage="evolve") as folder, told as flag:
            if folder.is_complete:
                return read_complete(out)
            write_atomically(out / SEEDS, f"{seeds}\n")
            facts = {name: sum(summary[name] for summary in summaries) for name in _SUMMED}
            made = finish.Made(
                lineages=partial(_lineages, journals, stop=flag),
                spent=lambda: _sum(journals),
                costs=partial(_costs, journals),
                facts=lambda: {**facts, _SAME_IN_ALL: seeds, "shards": len(folders)},
            )
            if asks_judge(config.measure):
                paid = reduce(Spent.plus, (journal_file.totals(db).spent for db in journals), NOTHING)
                known = partial(_answered, journals)
                prepared = prepare({purpose: by for purpose, by in cast(config).items() if purpose in JUDGED})
                _tell(config, made, prepared, seeds=facts["seeds"], say=say)
                writing = _judged(config, out, made, prepared, known=known, paid=paid, stop=flag, elsewhere=elsewhere)
            else:
                writing = finish.write(config, out, made=made, elsewhere=elsewhere)
            summary = asyncio.run(writing)
            folder.complete(summary)
    return summary


def _tell(
    config: EvolveConfig, made: finish.Made, prepared: Prepared, *, seeds: int, say: Callable[[str], None]
) -> None:
    sample = list(islice(made.lineages(), SAMPLED_SEEDS))
    likely = expected_measuring(config, lineages=sample, total=seeds, prices=prepared.prices)
    paid = f", about {dollars(likely.usd[0])} and what he thinks" if likely.usd[0] else ""
    say(f"about {likely.requests:,} requests to the judge of the finished records{paid}")


async def _judged(
    config: EvolveConfig,
    out: Path,
    made: finish.Made,
    prepared: Prepared,
    *,
    known: Callable[[ChatRequest], ChatReply | None],
    paid: Spent,
    stop: StopFlag,
    elsewhere: finish.Elsewhere | None,
) -> dict[str, Any]:
    """Writes what the shards made, with a run in which only the judge is asked, and nothing that is `known`.

    `paid` is what the shards spent.
    """
    async with Journal.open(out / JOURNAL) as journal:
        ledger = Ledger(config.budget, spent=paid.plus(journal.spent))
        async with open_stack(prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:

            def facts() -> dict[str, Any]:
                """The shards' counts, and the judge's beside them."""
                told, judged = dict(made.facts()), finish.counted(journal, stack.pacings)
                return told | {name: told[name] + count for name, count in judged.items()}

            def spent() -> dict[tuple[int, str], Spent]:
                return _added(made.spent(), journal.read(journal_file.spent_by_purpose))

            seeds = made.facts()["seeds"]
            unknown = replace(stack, model=_Unknown(stack.model, known))
            run = Run(journal=journal, stack=unknown, progress=_unseen, stop=stop, total=seeds, done=seeds)
            both = replace(made, facts=facts, spent=spent)
            return await finish.write_run(run, config, out, made=both, elsewhere=elsewhere)


@dataclass(frozen=True)
class _Unknown:
    """A `ChatModel` that is asked only what no shard was: with stop = 'lineage' they ask for scores too."""

    inner: ChatModel
    known: Callable[[ChatRequest], ChatReply | None]

    async def complete(self, request: ChatRequest) -> ChatReply:
        return self.known(request) or await self.inner.complete(request)


def _answered(journals: Sequence[sqlite3.Connection], request: ChatRequest) -> ChatReply | None:
    digest = request.digest
    found = (journal_file.outcome(db, digest=digest) for db in journals)
    return next((outcome.reply() for outcome in found if outcome), None)


def _unseen(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    """Every seed is through; what is left to do has no number."""


def _whole(configs: Sequence[EvolveConfig], folders: Sequence[Path], *, whole: EvolveConfig | None) -> EvolveConfig:
    """The settings of the run that the shards are parts of."""
    if whole is None:
        whole = replace(configs[0], shard=Shard(), budget=_together([config.budget for config in configs]))
    count = configs[0].shard.count
    by_index: dict[int, Path] = {}
    for folder, config in zip(folders, configs, strict=True):
        if identity(replace(config, shard=Shard())) != identity(whole):
            raise MergeError(f"{folder} was made with other settings than {folders[0]}: compare their config.gin")
        if config.shard.count != count:
            raise MergeError(
                f"{folder} is one of {config.shard.count} shards, and {folders[0]} one of {count}: "
                "name the folders of one run"
            )
        other = by_index.setdefault(config.shard.index, folder)
        if other is not folder:
            raise MergeError(f"{other} and {folder} are both shard {config.shard.index}/{count}: name one of them")
    if missing := [f"{index}/{count}" for index in range(count) if index not in by_index]:
        raise MergeError(f"shard {', '.join(missing)} is missing: name the folders of all {count}")
    return whole


def _together(budgets: Sequence[Budget]) -> Budget:
    """What several may spend together: no limit where one of them has none."""
    limits = {name: [vars(one)[name] for one in budgets] for name in vars(budgets[0])}
    return Budget(**{name: None if None in each else sum(each) for name, each in limits.items()})


def _same_seeds(summaries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> str:
    """The digest of the seeds, all of them, that every shard was made from."""
    for folder, summary in zip(folders, summaries, strict=True):
        if summary[_SAME_IN_ALL] != summaries[0][_SAME_IN_ALL]:
            raise MergeError(
                f"{folder} was made from other seeds than {folders[0]}: evolve every shard from the same file"
            )
    return str(summaries[0][_SAME_IN_ALL])


def _lineages(journals: Sequence[sqlite3.Connection], *, stop: StopFlag) -> Iterator[Lineage]:
    """The lineages of all shards in the order of the seeds."""
    several = [_in_order(db) for db in journals]
    for saved in heapq.merge(*several, key=lambda saved: saved.index):
        stop.raise_if_set()
        yield Lineage.from_json(saved.payload)


def _in_order(db: sqlite3.Connection) -> Iterator[SavedLineage]:
    last = -1
    while rows := journal_file.lineages_after(db, index=last):
        yield from rows
        last = rows[-1].index


def _costs(journals: Sequence[sqlite3.Connection], lineage: str) -> Mapping[int, Spent]:
    return next((found for db in journals if (found := journal_file.spent_by_round(db, lineage=lineage))), {})


def _sum(journals: Sequence[sqlite3.Connection]) -> dict[tuple[int, str], Spent]:
    return _added(*map(journal_file.spent_by_purpose, journals))


def _added(*several: Mapping[tuple[int, str], Spent]) -> dict[tuple[int, str], Spent]:
    """By round and purpose, what stands under the same of each."""
    total: defaultdict[tuple[int, str], Spent] = defaultdict(Spent)
    for one in several:
        for key, spent in one.items():
            total[key] = total[key].plus(spent)
    return dict(total)

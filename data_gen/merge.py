"""One data set from the folders of `wizard evolve --shard 0/N ... N-1/N`: the same as one process would have made.

The shards' journals are read side by side, lineage by lineage; nothing is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import load_config, open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from configs.loader import identity
from data_gen import finish
from data_gen.config import EvolveConfig, Shard
from data_gen.evolve import Lineage, judge_of
from data_gen.generate import SEEDS
from data_gen.llm import journal_file
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import Spent
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.journal_file import SavedLineage
from data_gen.llm.stack import JUDGED, Sending, cast, open_stack, prepare
from data_gen.measure.measure import asks_judge

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
    stop: StopFlag | None = None,
    elsewhere: finish.Elsewhere | None = None,
) -> dict[str, Any]:
    """Joins finished shards into `out`, a folder as of one `wizard evolve` without shards; returns the summary.

    Without a `stop` of the caller's it must be called in the main thread, which gets the signals. Killed, it is only
    to be started again. `elsewhere` is what other processes do of it.

    Raises:
      MergeError: a shard is missing, doubled, of other settings or of other seeds.
      FolderError: a folder is not finished, or `out` is another's.
      JournalError: a shard's journal is gone or damaged.
      Interrupted: SIGTERM or Ctrl-C came.
    """
    summaries = [read_complete(folder, stage="evolve") for folder in folders]
    config = _whole([load_config(EvolveConfig, folder) for folder in folders], folders)
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
            summary = asyncio.run(_written(config, out, made, elsewhere=elsewhere))
            folder.complete(summary)
    return summary


async def _written(
    config: EvolveConfig, out: Path, made: finish.Made, *, elsewhere: finish.Elsewhere | None
) -> dict[str, Any]:
    """Writes what the shards made; a judge, who is only now asked about the whole, has a journal and a budget here."""
    if not asks_judge(config.measure):
        return await finish.write(config, out, made=made, elsewhere=elsewhere)
    prepared = prepare({purpose: provider for purpose, provider in cast(config).items() if purpose in JUDGED})
    async with Journal.open(out / JOURNAL) as journal:
        ledger = Ledger(config.budget, spent=journal.spent)
        async with open_stack(prepared, journal=journal, ledger=ledger, sending=Sending.of(config)) as stack:

            def facts() -> dict[str, Any]:
                """The shards' counts, and the judge's beside them."""
                told, judged = dict(made.facts()), finish.counted(journal, stack.pacings)
                return told | {name: told[name] + count for name, count in judged.items()}

            def spent() -> dict[tuple[int, str], Spent]:
                return {**made.spent(), **journal.read(journal_file.spent_by_purpose)}

            both = replace(made, facts=facts, spent=spent)
            judge = judge_of(config, stack.model)
            return await finish.write(config, out, made=both, judge=judge, elsewhere=elsewhere)


def _whole(configs: Sequence[EvolveConfig], folders: Sequence[Path]) -> EvolveConfig:
    """The settings of the run that the shards are parts of."""
    whole = replace(configs[0], shard=Shard())
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
    total: defaultdict[tuple[int, str], Spent] = defaultdict(Spent)
    for db in journals:
        for key, spent in journal_file.spent_by_purpose(db).items():
            total[key] = total[key].plus(spent)
    return dict(total)

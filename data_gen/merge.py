"""One data set from the folders of `wizard evolve --shard 0/N ... N-1/N`: the same as one process would have made.

The shards' journals are read side by side, lineage by lineage; nothing is asked again.
"""

from __future__ import annotations

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
from configs.folder import load_config, open_stage, read_complete
from configs.interrupt import StopFlag, stop_flag
from configs.loader import identity
from data_gen import finish
from data_gen.config import EvolveConfig, Shard
from data_gen.evolve import Lineage
from data_gen.llm import journal_file
from data_gen.llm.journal import JOURNAL
from data_gen.llm.journal_file import SavedLineage, Spent

_SAME_IN_ALL = "seeds_sha256"
_SUMMED = (
    *("seeds", "asked", "from_journal", "rate_limited", "not_sent", "lost_after_sending", "possibly_paid_twice"),
    *Spent._fields,
)


class MergeError(UserError):
    """Folders that are not the shards of one run, or not all of them."""


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Joins finished shards into `out`, a folder as of one `wizard evolve` without shards; returns the summary.

    Raises:
      MergeError: a shard is missing, doubled, of other settings or of other seeds.
      FolderError: a folder is not finished, or `out` is another's.
      Interrupted: SIGTERM or Ctrl-C came.
    """
    summaries = [read_complete(folder, stage="evolve") for folder in folders]
    config = _whole([load_config(EvolveConfig, folder) for folder in folders], folders)
    seeds = {summary[_SAME_IN_ALL] for summary in summaries}
    if len(seeds) > 1:
        raise MergeError("the shards were made of different seeds: evolve them all from the same file")
    with open_stage(out, config, stage="evolve") as folder:
        if folder.is_complete:
            return read_complete(out)
        with stop_flag() as stop, contextlib.ExitStack() as held:
            journals = [
                held.enter_context(contextlib.closing(journal_file.read_only(one / JOURNAL))) for one in folders
            ]
            facts = {name: sum(summary[name] for summary in summaries) for name in _SUMMED}
            made = finish.Made(
                lineages=partial(_lineages, journals, stop=stop),
                spent=_sum(journals),
                costs=partial(_costs, journals),
                facts={**facts, _SAME_IN_ALL: seeds.pop(), "shards": len(folders)},
            )
            summary = finish.write(config, out, made=made)
        folder.complete(summary)
    return summary


def _whole(configs: Sequence[EvolveConfig], folders: Sequence[Path]) -> EvolveConfig:
    """The settings of the run that the shards are parts of."""
    parts = {config.shard.index: folder for config, folder in zip(configs, folders, strict=True)}
    count = configs[0].shard.count
    missing = sorted(set(range(count)) - parts.keys())
    if missing:
        told = ", ".join(f"{index}/{count}" for index in missing)
        raise MergeError(f"shard {told} is missing: name the folders of all {count}")
    if len(folders) > count:
        raise MergeError(f"{len(folders)} folders were named, and the run has {count} shards: name each once")
    whole = [identity(replace(config, shard=Shard())) for config in configs]
    for folder, found in zip(folders, whole, strict=True):
        if found != whole[0]:
            raise MergeError(f"{folder} was made with other settings than {folders[0]}: compare their config.gin")
    return replace(configs[0], shard=Shard())


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

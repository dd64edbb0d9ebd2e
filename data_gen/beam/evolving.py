"""Parts of the seeds, each evolved by `generate` into a folder of its own on a disk that every worker sees.

    work/config.gin                  the settings of the whole
    work/shares.json                 what each shard may spend
    work/shard-00001-of-00004/       as of `wizard evolve --shard 1/4`, with its journal
    work/shard-00001-of-00004.json   why the shard was not finished, while it is not
    work/shard-00001-of-00004.spent.json   what it has spent, every few seconds
    work/stop                        the exit code with which all are told to stop

A bundle that is tried again finds the journal of its shard and asks nothing that is answered there. Where two bundles
have the same shard at once, the second gets a FolderError, for the first holds the lock, and is tried again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from configs.errors import UserError
from configs.folder import COMPLETE, CONFIG, FolderError, write_atomically
from configs.interrupt import Interrupted, StopFlag
from configs.loader import load
from data_gen.config import Budget, EvolveConfig, Shard
from data_gen.evolve import Lineage
from data_gen.generate import generate
from data_gen.llm import journal_file
from data_gen.llm.journal import JOURNAL
from data_gen.llm.journal_file import JournalError
from data_gen.run import Paid, Progress
from data_gen.side_by_side import BudgetReached

SHARES = "shares.json"
STOP = "stop"
_POLL_SECONDS = 0.2
_NOTED_SECONDS = 2.0
_SPENT = ".spent.json"

_log = logging.getLogger(__name__)


class Spending(NamedTuple):
    """Of a shard over all starts, but for the 429s, which are those of its last one."""

    requests: int
    usd: float
    rate_limited: int


NO_SPENDING = Spending(0, 0.0, 0)


class BeamError(UserError):
    """A pipeline that can not be run as it was asked for, or shards that could not be finished."""


@dataclass(frozen=True)
class Unfinished:
    """Why a shard is not finished."""

    kind: Literal["budget", "stopped", "mistake"]
    why: str


def shard_folder(work: Path, *, index: int, count: int) -> Path:
    return work / f"shard-{index:05d}-of-{count:05d}"


def divide(budget: Budget, *, work: Path, count: int) -> None:
    """Says how much each unfinished shard may have spent when it stops: what it has, and an equal part of what is left.

    Raises:
      BudgetReached: nothing is left for some of them.
      JournalError: a worker of another pipeline has a journal open, or it is damaged.
    """
    folders = [shard_folder(work, index=index, count=count) for index in range(count)]
    left = unfinished(work, count=count)
    shares: dict[int, dict[str, float | None]] = {index: {} for index in left}
    limits = vars(budget)
    spent = [_spent(folder) if any(limits.values()) else {} for folder in folders]
    for name, limit in limits.items():
        part = None if limit is None else (limit - sum(one.get(name, 0) for one in spent)) / max(len(left), 1)
        if part is not None and name != "usd":
            part = math.floor(part)
        if part is not None and part <= 0 and left:
            raise BudgetReached(f"budget.{name} = {limit} leaves nothing for each of {len(left)} unfinished shards")
        for index in left:
            shares[index][name] = None if part is None else spent[index].get(name, 0) + part
    write_atomically(work / SHARES, json.dumps(shares) + "\n")


def _spent(folder: Path) -> dict[str, float]:
    """What a shard has spent so far, by the names of `Budget`."""
    if not (folder / JOURNAL).exists():
        return {}
    with contextlib.closing(journal_file.read_only(folder / JOURNAL)) as db:
        spent = journal_file.totals(db).spent
    return {"usd": spent.usd, "tokens": spent.input_tokens + spent.output_tokens, "calls": spent.calls}


def evolve_shard(index: int, *, work: str, count: int) -> Iterator[int]:
    """Evolves one shard in the folder `work`; brings its index if it is finished.

    What a second try could not mend (the budget is spent, no key, no model) is written beside the shard's folder and
    ends nothing else.

    Raises:
      FolderError, JournalError: another process works on this shard, or its disk fails.
    """
    folder = shard_folder(Path(work), index=index, count=count)
    mark = folder.with_suffix(".json")
    if not (Path(work) / CONFIG).exists():
        raise BeamError(f"{work} is not to be seen from here: it must lie on a disk that every worker mounts")
    whole = load(EvolveConfig, [Path(work) / CONFIG])
    budget = Budget(**json.loads((Path(work) / SHARES).read_text())[str(index)])
    config = replace(whole, shard=Shard(index=index, count=count), budget=budget)
    try:
        with told_to_stop(Path(work)) as stop, _noted(folder) as progress:
            generate(config, folder, progress=progress, say=_log.info, stop=stop)
    except BudgetReached as spent:
        _write_mark(mark, Unfinished("budget", str(spent)))
    except Interrupted as stopped:
        _write_mark(mark, Unfinished("stopped", str(stopped)))
    except (FolderError, JournalError) as error:
        _write_mark(mark, Unfinished("mistake", str(error)))
        raise
    except UserError as error:
        _write_mark(mark, Unfinished("mistake", str(error)))
    else:
        mark.unlink(missing_ok=True)
        yield index


def unfinished(work: Path, *, count: int) -> Mapping[int, Unfinished | None]:
    """The shards that are not finished, and why, of those that could say."""
    found: dict[int, Unfinished | None] = {}
    for index in range(count):
        folder = shard_folder(work, index=index, count=count)
        if not (folder / COMPLETE).exists():
            mark = folder.with_suffix(".json")
            found[index] = Unfinished(**json.loads(mark.read_text())) if mark.exists() else None
    return found


def forget_stops(work: Path, *, count: int) -> None:
    """Clears what an earlier pipeline left: that it was told to stop, and why shards were not finished."""
    (work / STOP).unlink(missing_ok=True)
    for index in range(count):
        shard_folder(work, index=index, count=count).with_suffix(".json").unlink(missing_ok=True)


def read_lineages(index: int, *, work: str, count: int) -> Iterator[tuple[int, Lineage]]:
    """(number of its seed, lineage) for all that a finished shard's journal holds, in order.

    Raises:
      Interrupted: all were told to stop.
    """
    folder = shard_folder(Path(work), index=index, count=count)
    with told_to_stop(Path(work)) as stop, contextlib.closing(journal_file.read_only(folder / JOURNAL)) as db:
        last = -1
        while rows := journal_file.lineages_after(db, index=last):
            stop.raise_if_set()
            yield from ((row.index, Lineage.from_json(row.payload)) for row in rows)
            last = rows[-1].index


@contextlib.contextmanager
def told_to_stop(work: Path) -> Iterator[StopFlag]:
    """A flag that is set when the file `work`/stop is there: signals reach neither other machines nor other threads."""
    flag = StopFlag()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            with contextlib.suppress(FileNotFoundError):
                flag.exit_code = int((work / STOP).read_text())

    watcher = threading.Thread(target=watch, name="stop", daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        ended.set()
        watcher.join()


def _write_mark(mark: Path, told: Unfinished) -> None:
    write_atomically(mark, json.dumps(vars(told)) + "\n")


@contextlib.contextmanager
def _noted(folder: Path) -> Iterator[Progress]:
    """Writes beside a shard's folder what it has spent: what a worker prints nobody watches."""
    noted, when = NO_SPENDING, -math.inf
    file = folder.with_suffix(_SPENT)

    def note(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        nonlocal noted, when
        del done, total  # finished shards are what is counted
        paid, limited = facts["spent"], facts["429s"]
        assert isinstance(paid, Paid)
        assert isinstance(limited, int)
        noted = Spending(paid.spent.calls, paid.spent.usd, limited)
        if time.monotonic() >= when + _NOTED_SECONDS:
            when = time.monotonic()
            write_atomically(file, json.dumps(noted) + "\n")

    try:
        yield note
    finally:
        if noted is not NO_SPENDING:
            write_atomically(file, json.dumps(noted) + "\n")


def spending(work: Path, *, count: int) -> Spending:
    """What all shards have spent together, as far as it was noted."""
    total = NO_SPENDING
    for index in range(count):
        with contextlib.suppress(FileNotFoundError):
            file = shard_folder(work, index=index, count=count).with_suffix(_SPENT)
            requests, usd, limited = json.loads(file.read_text())
            total = Spending(total.requests + requests, total.usd + usd, total.rate_limited + limited)
    return total

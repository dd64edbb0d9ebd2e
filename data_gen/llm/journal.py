"""Replies that were paid for are on disk before they are used, and are never asked for again.

    async with Journal.open(folder / "journal.sqlite") as journal:
        sending = Charged(journal.marked(OpenAIChat(config)), prices=prices, ledger=ledger)
        model = Pacing(journal.wrap(sending), concurrency=32, max_attempts=8)
        reply = await model.complete(request)

`wrap` answers from the file and saves there; `marked`, inside all that may hold a request back, notes that it is on
the wire. So only requests that were really sent count as possibly paid twice.

The file is SQLite (WAL, synchronous=FULL) under an exclusive lock. One thread writes it; what piles up while one commit
reaches the disk is the next transaction (group commit), so many requests share one fsync.

A hard kill can cost at most the requests then in flight: each was marked before it was sent, and a mark without an
outcome is counted, and forgotten, when the file is next opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

from data_gen.llm import journal_file
from data_gen.llm.chat import (
    NOTHING,
    Ambiguous,
    ChatModel,
    ChatReply,
    ChatRequest,
    NotSent,
    Permanent,
    RequestKey,
    Spent,
)
from data_gen.llm.journal_check import Commits, transaction
from data_gen.llm.journal_file import JournalError, Outcome, SavedLineage

JOURNAL = "journal.sqlite"
"""The journal's name in the folder of a run."""

T = TypeVar("T")

Saves = Literal["every reply", "none"]

_BATCH = 4096


@dataclass
class _Asking:
    """A request under way, and how many callers wait for it."""

    task: asyncio.Task[ChatReply]
    waiting: int = 0
    is_sent: bool = False


@dataclass(frozen=True)
class _Change:
    """Work for the writer: what to do in the transaction, and whom to tell once it is committed."""

    run: Callable[[sqlite3.Connection], object]
    committed: asyncio.Future[object] | None


class Journal:
    """An open journal file.

    Of this process: `asked` requests were passed on and `answered` of them with a reply, `cached` calls were answered
    without asking. Of the whole file, over all restarts: `possibly_paid_twice` sends ended without a known outcome
    (the process died, or the provider's answer was lost), and `spent` is what was paid.
    """

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, drain_seconds: float | None = None) -> Self:
        """An `async with` over it opens or creates the file; on leaving, requests that are on the wire get
        `drain_seconds` to come home, because they may be billed: by default as long as their client gives them.

        Raises:
          JournalError: on entering, if the file is damaged, locked by another process, or of another program.
        """
        return cls(Path(path), drain_seconds=drain_seconds)

    def __init__(self, path: Path, *, drain_seconds: float | None) -> None:
        self.path = path
        self.asked = 0
        self.answered = 0
        self.cached = 0
        self.possibly_paid_twice = 0
        self.spent = NOTHING
        self._drain_seconds = drain_seconds
        self._asking: dict[str, _Asking] = {}
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # the connection is used by the writer, and by readers between its commits
        self._failure: JournalError | None = JournalError(f"{path}: the journal is not open")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._db, self._commits = await asyncio.to_thread(_opened, self.path)
        self.possibly_paid_twice, self.spent = journal_file.totals(self._db)
        self._goes_on = journal_file.has_outcomes(self._db)
        self._failure = None
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self.drain()
        finally:
            self._changes.put(None)
            self._writer.join()
            is_whole = self._failure is None
            self._failure = self._failure or JournalError(f"{self.path}: the journal is closed")
            with contextlib.suppress(sqlite3.Error, OSError):  # the last commit stands; closing only tidies up
                if is_whole:
                    self._commits.end(self._db)
            with contextlib.suppress(sqlite3.Error, OSError):
                self._commits.close()
                self._db.close()

    def wrap(self, inner: ChatModel, *, saves: Saves = "every reply") -> ChatModel:
        """`inner`, answered from this journal where it can be.

        Where `saves` is "none", `inner` has each reply in the journal (see `take`) before it returns it.
        """
        return _Journalled(self, inner, saves)

    def marked(self, inner: ChatModel) -> ChatModel:
        """`inner`, each of whose requests is on the disk as sent before it is; to stand inside what `wrap` wraps."""
        return _Marked(self, inner)

    async def take(self, found: Sequence[tuple[RequestKey, str, Outcome]]) -> set[str]:
        """Commits outcomes by the keys and digests of their requests; returns the digests that had none before."""

        def save(db: sqlite3.Connection) -> list[tuple[str, Spent]]:
            new = []
            for key, digest, outcome in found:
                if journal_file.outcome(db, digest=digest) is None:
                    journal_file.save_outcome(db, digest=digest, key=key, outcome=outcome)
                    new.append((digest, outcome.spent))
            return new

        new = await self.commit(save)
        self.spent = functools.reduce(Spent.plus, (spent for _, spent in new), self.spent)
        return {digest for digest, _ in new}

    async def lose(
        self, assumed: Mapping[str, Spent], *, also: Callable[[sqlite3.Connection], object] | None = None
    ) -> None:
        """Counts requests, by digest, that may have been paid for in vain, and what each is assumed to have cost, in
        one transaction with what `also` does."""

        def count(db: sqlite3.Connection) -> None:
            for digest, spent in assumed.items():
                journal_file.count_lost(db, digest=digest, assumed=spent)
            if also is not None:
                also(db)

        await self.commit(count)
        self.possibly_paid_twice += len(assumed)
        self.spent = functools.reduce(Spent.plus, assumed.values(), self.spent)

    async def save_lineage(
        self, index: int, *, seed_id: str, payload: str, finished: bool = True, usd: float = 0.0
    ) -> None:
        """Commits what came of lineage `index`, so far or for good, and its cost; a second save replaces the first."""
        save = partial(journal_file.save_lineage, index=index, seed_id=seed_id, payload=payload)
        await self.commit(partial(save, finished=finished, usd=usd))

    def lineages(self) -> Iterator[SavedLineage]:
        """The saved lineages, by index; some hundred in memory at a time."""
        last = -1
        while rows := self.read(partial(journal_file.lineages_after, index=last)):
            yield from rows
            last = rows[-1].index

    async def known(self, request: ChatRequest) -> ChatReply | None:
        """The reply that an earlier process left to this request, if one did."""
        if not self._goes_on:
            return None
        outcome = await self.commit(partial(journal_file.outcome, digest=request.digest))
        if outcome is None or outcome.kind == "refused":
            return None
        self.cached += 1
        return outcome.reply()

    async def complete(self, request: ChatRequest, *, inner: ChatModel, saves: Saves = "every reply") -> ChatReply:
        """The committed reply to this request, else `inner`'s, committed; equal requests at once share one send.

        Raises:
          JournalError: the reply could not be committed.
          NotSent, Ambiguous, Permanent: as `inner` raised it; a request that was refused for good stays refused.
        """
        digest = request.digest
        asking = self._asking.get(digest)
        if asking is None:
            asking = _Asking(asyncio.create_task(self._ask(digest, request, inner, saves)))
            self._asking[digest] = asking
            asking.task.add_done_callback(partial(self._asked, digest))
        else:
            self.cached += 1
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)  # a caller that goes away leaves the paid reply to be saved
        finally:
            asking.waiting -= 1

    def _asked(self, digest: str, task: asyncio.Task[ChatReply]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # seen, even if every caller has gone

    async def _ask(self, digest: str, request: ChatRequest, inner: ChatModel, saves: Saves) -> ChatReply:
        known = await self.commit(partial(journal_file.outcome, digest=digest))
        if known is not None:
            self.cached += 1
            return known.reply()
        save = partial(journal_file.save_outcome, digest=digest, key=request.key)
        self.asked += 1
        try:
            reply = await inner.complete(request)
        except NotSent:
            self._change(partial(journal_file.unmark, digest=digest))
            raise
        except Ambiguous as lost:
            await self.lose({digest: lost.assumed})
            raise
        except Permanent as refusal:
            if refusal.scope == "request" and saves == "every reply":
                await self.commit(partial(save, outcome=journal_file.refusal(refusal)))
            else:
                self._change(partial(journal_file.unmark, digest=digest))
            raise
        if saves == "every reply":
            outcome = journal_file.outcome_of(reply)
            await self.commit(partial(save, outcome=outcome))
            self.spent = self.spent.plus(outcome.spent)
        self.answered += 1
        return reply

    async def send(self, request: ChatRequest, *, inner: ChatModel) -> ChatReply:
        """`inner`'s reply to a request that is marked as sent; nothing is sent once nobody waits for it."""
        digest = request.digest
        asking = self._asking[digest]
        try:
            await self.commit(partial(journal_file.mark, digest=digest, key=request.key))
            if not asking.waiting:
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            self._change(partial(journal_file.unmark, digest=digest))
            raise
        asking.is_sent = True
        return await inner.complete(request)

    async def drain(self) -> None:
        """Gives requests that are on the wire their time to come home; to be done before a client is closed.

        Those that wait to be sent, as for room in a budget, are not sent any more.
        """
        for asking in self._asking.values():
            if not asking.is_sent:
                asking.task.cancel()
        on_the_wire = [asking.task for asking in self._asking.values()]
        if not on_the_wire:
            return
        _, late = await asyncio.wait(on_the_wire, timeout=self._drain_seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def commit(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """What `run` returned, once the transaction that it ran in is on the disk."""
        committed: asyncio.Future[object] = self._loop.create_future()
        self._change(run, committed=committed)
        return cast(T, await committed)

    def _change(
        self, run: Callable[[sqlite3.Connection], object], *, committed: asyncio.Future[object] | None = None
    ) -> None:
        if self._failure is not None:
            raise self._failure
        self._changes.put(_Change(run, committed))

    def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """What `run` finds in the file, between two commits."""
        if self._failure is not None:
            raise self._failure
        try:
            with self._lock:
                return run(self._db)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise journal_file.explained(self.path, error) from error

    def _write(self) -> None:
        """The writer thread: one transaction after another until a None comes.

        After a failed write nothing more is tried; every later change is answered with the same error.
        """
        open_ended = True
        while open_ended:
            batch = [self._changes.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH:
                    batch.append(self._changes.get_nowait())
            open_ended = None not in batch
            changes = [change for change in batch if change is not None]
            results: list[object] = []
            if self._failure is None and changes:
                try:
                    with self._lock:
                        with transaction(self._db):
                            results = [change.run(self._db) for change in changes]
                        self._commits.note(self._db)
                except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
                    self._failure = journal_file.explained(self.path, error)
            told = [change.committed for change in changes if change.committed]
            if told:
                kept = [r for change, r in zip(changes, results, strict=False) if change.committed]
                with contextlib.suppress(RuntimeError):  # the loop is gone, and with it everyone who waited
                    self._loop.call_soon_threadsafe(_tell, told, kept, self._failure)


def _opened(path: Path) -> tuple[sqlite3.Connection, Commits]:
    db = journal_file.connect(path)
    try:
        return db, Commits(db, path)
    except (sqlite3.Error, OSError) as error:
        db.close()
        raise journal_file.explained(path, error) from error


@dataclass(frozen=True)
class _Journalled:
    journal: Journal
    inner: ChatModel
    saves: Saves

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self.journal.complete(request, inner=self.inner, saves=self.saves)


@dataclass(frozen=True)
class _Marked:
    journal: Journal
    inner: ChatModel

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self.journal.send(request, inner=self.inner)


def _tell(futures: list[asyncio.Future[object]], results: list[object], failure: JournalError | None) -> None:
    for position, future in enumerate(futures):
        if future.done():
            continue
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(results[position])

"""A provider's batch jobs as one more `ChatModel`: half the price, an answer within a day.

    standstill = Standstill()                                  # shared by all batch models of a run
    async with Journal.open(path) as journal, BatchChat(service, journal=journal, ...) as batch:
        model = journal.wrap(batch)
        with standstill.lineage():                             # around all that one lineage asks
            reply = await model.complete(request)

A request waits in a collection until its job goes out: when no lineage can move without an answer, or the collection
is as large or as old as it may become. A job is written to the journal's file before it is created and its name
before it is first looked at, so a process that dies finds it again instead of paying for a second one. Results are on
disk before they are used; what a job did not answer goes into the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Self

from data_gen.llm import jobs_file, journal_file
from data_gen.llm.batch_calls import PatientCalls, pause
from data_gen.llm.batch_join import Counts, Join
from data_gen.llm.batch_service import BatchService, Gone, JobState, Limits, LostJobs
from data_gen.llm.chat import ChatReply, ChatRequest, NotSent, Permanent
from data_gen.llm.jobs_file import Job
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import Outcome
from data_gen.llm.standstill import Standstill as Standstill

MOST_JOBS = 5
"""In so many jobs a request is sent before it is given up."""

_POLLS_BETWEEN_JOBS = 20  # where a job failed because too much was in the provider's queue
_ROWS = 500  # replies that are kept in one transaction
_FEW = 20  # a job of fewer requests may lose most of them by chance


@dataclass
class _Waiting:
    """A request that somebody waits for."""

    request: ChatRequest
    line_bytes: int
    echo: str
    callers: list[asyncio.Future[None]] = field(default_factory=list)
    jobs: int = 0


@dataclass
class _Collection:
    """Requests of one model that go out together."""

    timer: asyncio.TimerHandle
    requests: dict[str, _Waiting] = field(default_factory=dict)
    size: int = 0


class BatchChat:
    """A `ChatModel` whose replies come from batch jobs. One per service and journal; open it in the open journal.

    Leaving it stops waiting: jobs go on at the provider, and the next process on the same journal attaches to them.
    `counts` says what happened, `trouble` what the last look at the provider failed of, if it did.
    """

    def __init__(
        self,
        service: BatchService,
        *,
        journal: Journal,
        standstill: Standstill,
        limits: Limits,
        lost_jobs: LostJobs = "stop",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.counts = Counts()
        self._service = service
        self._journal = journal
        self._standstill = standstill
        self._limits = limits
        self._lost_jobs = lost_jobs
        self._sleep = sleep
        self._calls = PatientCalls(service, poll_seconds=limits.poll_seconds, sleep=sleep)
        self._waiting: dict[str, _Waiting] = {}
        self._collections: dict[str, _Collection] = {}
        self._job_of: dict[str, Job] = {}
        self._stuck: dict[str, Exception] = {}  # label -> why nobody follows that job any more
        self._kept: set[str] = set()
        self._followers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def trouble(self) -> str:
        return self._calls.trouble

    async def __aenter__(self) -> Self:
        await self._journal.commit(jobs_file.create)
        await self._journal.commit(jobs_file.tidy)
        self._kept = self._journal.read(jobs_file.kept)
        for job in self._journal.read(partial(jobs_file.open_jobs, service=self._service.address)):
            self._job_of.update(dict.fromkeys(job.echoes, job))
            self._follow(job, partial(self._attach, job))
        self._standstill.join(self._send_all)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_closed = True
        self._standstill.leave(self._send_all)
        for collection in self._collections.values():
            collection.timer.cancel()
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        for digest in list(self._waiting):
            self._answer(digest, _closed())

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The reply that a job brought.

        Raises:
          NotSent: `MOST_JOBS` jobs brought none (what may have been paid for is counted), or this is closed.
          Permanent: with scope "request", refused for good; else no job can be created, or reached any more.
        """
        digest = request.digest
        while True:
            if digest not in self._kept:
                await self._wait_for(digest, request)
            outcome = await self._journal.commit(partial(jobs_file.outcome, digest=digest))
            if outcome is not None:
                return outcome.reply()
            self._kept.discard(digest)  # the journal took it over, and yet it is asked for

    # --- waiting and collecting

    async def _wait_for(self, digest: str, request: ChatRequest) -> None:
        if self._is_closed:
            raise _closed()
        waiting = self._waiting.get(digest)
        if waiting is None:
            job = self._job_of.get(digest)
            if job is not None and job.label in self._stuck:
                raise self._stuck[job.label]
            line = self._service.line(request, key=digest)
            if len(line.text) > self._limits.max_bytes:
                raise Permanent(f"the request alone fills a job: {len(line.text)} bytes", scope="request")
            waiting = self._waiting[digest] = _Waiting(request, len(line.text), line.echo)
            if job is None:
                self._collect(digest, waiting)
        caller: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.callers.append(caller)
        self._standstill.stands()
        try:
            await caller
        finally:
            if caller in waiting.callers:  # it went away before there was an answer
                waiting.callers.remove(caller)
                self._standstill.moves()
                if not waiting.callers:
                    self._withdraw(digest, waiting)

    def _withdraw(self, digest: str, waiting: _Waiting) -> None:
        del self._waiting[digest]
        collection = self._collections.get(waiting.request.model)
        if collection is not None and collection.requests.pop(digest, None) is not None:
            collection.size -= waiting.line_bytes

    def _collect(self, digest: str, waiting: _Waiting) -> None:
        model = waiting.request.model
        collection = self._collections.get(model)
        if collection is not None and collection.size + waiting.line_bytes > self._limits.max_bytes:
            self._send(model)
            collection = None
        if collection is None:
            timer = asyncio.get_running_loop().call_later(self._limits.max_wait_seconds, self._send, model)
            collection = self._collections[model] = _Collection(timer)
        collection.requests[digest] = waiting
        collection.size += waiting.line_bytes
        if len(collection.requests) >= self._limits.max_requests:
            self._send(model)

    def _send_all(self) -> None:
        for model in list(self._collections):
            self._send(model)

    def _send(self, model: str) -> None:
        collection = self._collections.pop(model)
        collection.timer.cancel()
        if not collection.requests:
            return
        echoes = {digest: waiting.echo for digest, waiting in collection.requests.items()}
        job = Job(secrets.token_hex(16), model, echoes)  # not made from the requests: the same may be sent again
        self._job_of.update(dict.fromkeys(echoes, job))
        requests = [(digest, waiting.request) for digest, waiting in collection.requests.items()]
        self._follow(job, partial(self._create, job, requests))

    def _answer(self, digest: str, error: Exception | None = None) -> None:
        """Lets the callers of a request go on: its reply is kept, or there is none and this is why."""
        callers = self._waiting.pop(digest).callers
        self._standstill.moves(len(callers))
        for caller in callers:
            if caller.done():
                continue
            if error is None:
                caller.set_result(None)
            else:
                caller.set_exception(error)
        callers.clear()

    # --- one job, from its first mention to its last line

    def _follow(self, job: Job, begin: Callable[[], Awaitable[bool]]) -> None:
        follower = asyncio.create_task(self._through(job, begin))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _through(self, job: Job, begin: Callable[[], Awaitable[bool]]) -> None:
        try:
            if await begin():
                try:
                    await self._finish(job, await self._ended(job))
                except Gone as gone:
                    await self._ask_again(job, gone)
        except Exception as error:  # whatever it is, those who wait for the job must hear of it
            self._stuck[job.label] = error
            for digest in job.echoes:
                if digest in self._waiting:
                    self._answer(digest, error)

    async def _create(self, job: Job, requests: Sequence[tuple[str, ChatRequest]]) -> bool:
        await self._journal.commit(partial(jobs_file.intend, job=job, service=self._service.address))
        with tempfile.TemporaryFile() as lines:
            await asyncio.to_thread(self._write, requests, lines)
            forget = partial(self._journal.commit, partial(jobs_file.forget, label=job.label))
            name = await self._calls.submitted(job.label, model=job.model, lines=lines, forget=forget)
        await self._named(job, name)
        self.counts.jobs += 1
        return True

    def _write(self, requests: Sequence[tuple[str, ChatRequest]], lines: BinaryIO) -> None:
        for digest, request in requests:
            lines.write(self._service.line(request, key=digest).text)

    async def _attach(self, job: Job) -> bool:
        """Finds a job again that an earlier process began; False if it never came to be."""
        if job.name is not None:
            self.counts.found_again += 1
            return True
        if name := await self._calls.repeated(partial(self._calls.found, job.label)):
            await self._named(job, name)
            self.counts.found_again += 1
            return True
        await self._journal.commit(partial(jobs_file.forget, label=job.label))
        self._struck(job)
        return False

    def _struck(self, job: Job) -> None:
        """Collects anew what a job asked that is no more, but for what it answered while it was."""
        for digest in job.echoes:
            del self._job_of[digest]
            if digest in self._waiting and digest in self._kept:
                self._answer(digest)
            elif waiting := self._waiting.get(digest):
                self._collect(digest, waiting)
        self._standstill.look()

    async def _ask_again(self, job: Job, gone: Gone) -> None:
        """The job can not be found any more, and it may have been paid for."""
        lost = [digest for digest in job.echoes if digest not in self._kept]
        if self._lost_jobs == "stop":
            raise Permanent(
                f"{gone}. Batch job {job.name}, with {len(lost):,} requests of this run, is not there for these "
                "credentials: if they are of another account or project than it was created with, change them; if it "
                "is gone for good, lost_jobs=ask_again asks anew, and may pay again, for what it was to answer",
                scope="run",
            )
        await count_lost(self._journal, lost, also=partial(jobs_file.forget, label=job.label))
        self.counts.gone += 1
        self._struck(job)

    async def _named(self, job: Job, name: str) -> None:
        await self._journal.commit(partial(jobs_file.name, label=job.label, as_=name))
        job.name = name

    async def _ended(self, job: Job) -> JobState:
        assert job.name is not None
        while (state := await self._calls.repeated(partial(self._service.state, job.name))).phase == "running":
            await self._sleep(self._limits.poll_seconds)
        return state

    # --- results

    async def _finish(self, job: Job, state: JobState) -> None:
        """Keeps what a job answered, ends it, and lets everybody go on whom it has answered."""
        join = await self._calls.repeated(
            partial(self._read, job)
        )  # a job that failed half-way has answered the first half
        self.counts.expired += state.phase == "cut short"
        self.counts.add(join)
        unanswered = [digest for digest in job.echoes if not join.answered(digest)]
        if state.phase == "complete":
            lost = [digest for digest in unanswered if digest not in join.errors]
            self.counts.missing += len(lost)
            await count_lost(self._journal, lost)
        self._kept -= await self._journal.commit(partial(jobs_file.close, label=job.label))
        if isinstance(state.error, NotSent):
            await self._sleep(pause(state.error, otherwise=_POLLS_BETWEEN_JOBS * self._limits.poll_seconds))
        self._release(job, join, state)

    def _release(self, job: Job, join: Join, state: JobState) -> None:
        """All at once: a lineage that went on alone would be a wave, and so a job, of its own."""
        error = state.error
        if state.phase == "complete" and len(job.echoes) >= _FEW and 2 * join.joined < len(job.echoes):
            told = f"job {job.name} answered {join.joined} of {len(job.echoes)} requests in a way that can be read"
            error = Permanent(f"{told}; started again, the others are asked, and may be paid for, anew", scope="run")
        again = []
        for digest in job.echoes:
            del self._job_of[digest]
            if digest not in self._waiting:
                continue
            if join.answered(digest):
                self._answer(digest)
            elif isinstance(found := error or join.errors.get(digest), Permanent):
                self._answer(digest, found)
            else:
                again.append((digest, found or NotSent(f"{job.name} holds no result for it")))
        for digest, found in again:
            waiting = self._waiting[digest]
            waiting.jobs += 1
            if waiting.jobs < MOST_JOBS:
                self.counts.resent += 1
                self._collect(digest, waiting)
            else:
                self._answer(digest, found)
        self._standstill.look()

    async def _read(self, job: Job) -> Join:
        """Keeps every outcome in a job's results; read twice, the same are kept."""
        assert job.name is not None
        join = Join(job.echoes)
        rows: list[tuple[str, Outcome]] = []
        async with contextlib.aclosing(self._service.results(job.name)) as results:
            async for result in results:
                if found := join.take(result):
                    rows.append(found)
                if len(rows) >= _ROWS:
                    await self._keep(rows)
                    rows = []
        await self._keep(rows)
        return join

    async def _keep(self, rows: list[tuple[str, Outcome]]) -> None:
        await self._journal.commit(partial(jobs_file.keep, outcomes=rows))
        self._kept.update(digest for digest, _ in rows)


def _closed() -> NotSent:
    return NotSent("no batch job is waited for any more")


async def count_lost(
    journal: Journal, digests: Sequence[str], *, also: Callable[[sqlite3.Connection], object] | None = None
) -> None:
    """Counts requests of jobs that may have been paid for in vain, in one transaction with what `also` does."""

    def commit(db: sqlite3.Connection) -> None:
        for digest in digests:
            journal_file.count_lost(db, digest=digest)
        if also is not None:
            also(db)

    await journal.commit(commit)
    journal.possibly_paid_twice += len(digests)

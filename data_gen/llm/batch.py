"""A provider's batch jobs as one more `ChatModel`: half the price, an answer within a day.

    standstill = Standstill()                                  # shared by all batch models of a run
    async with Journal.open(path) as journal, BatchChat(service, journal=journal, ...) as batch:
        model = journal.wrap(batch, saves="none")
        with standstill.lineage():                             # around all that one lineage asks
            reply = await model.complete(request)

A request waits in a collection until its job goes out: when no lineage can move without an answer, or the collection
is as large or as old as it may become. A job is written to the journal's file before it is created and its name
before it is first looked at, so a process that dies finds it again instead of paying for a second one. Results are in
the journal, with what they cost, before they are used; what a job did not answer goes into the next one. What a request
was expected to cost is held in the ledger until its job is read, by whichever process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Self

from data_gen.llm import jobs_file, journal_file
from data_gen.llm.batch_calls import PatientCalls, pause
from data_gen.llm.batch_join import Counts as Counts
from data_gen.llm.batch_join import Join
from data_gen.llm.batch_service import BatchService, Gone, JobState, Limits, LostJobs
from data_gen.llm.budget import Account
from data_gen.llm.chat import NOTHING, ChatReply, ChatRequest, NotSent, Permanent, Spent
from data_gen.llm.jobs_file import Asked, Job
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import Outcome
from data_gen.llm.standstill import Standstill as Standstill

MOST_JOBS = 5
"""In so many jobs a request is sent before it is given up."""

_POLLS_BETWEEN_JOBS = 20  # where a job failed because too much was in the provider's queue
_ROWS = 500  # replies that are committed in one transaction
_FEW = 20  # a job of fewer requests may lose most of them by chance


@dataclass
class _Waiting:
    """A request that somebody waits for."""

    request: ChatRequest
    line_bytes: int
    echo: str
    callers: list[asyncio.Future[None]] = field(default_factory=list)


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
        account: Account,
        standstill: Standstill,
        limits: Limits,
        lost_jobs: LostJobs = "stop",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.counts = Counts()
        self._service = service
        self._journal = journal
        self._account = account
        self._standstill = standstill
        self._limits = limits
        self._lost_jobs = lost_jobs
        self._sleep = sleep
        self._calls = PatientCalls(service, poll_seconds=limits.poll_seconds, sleep=sleep)
        self._waiting: dict[str, _Waiting] = {}
        self._collections: dict[str, _Collection] = {}
        self._job_of: dict[str, Job] = {}
        self._stuck: dict[str, Exception] = {}  # label -> why nobody follows that job any more
        self._reserved: dict[str, Spent] = {}
        self._sent: Counter[str] = Counter()  # in how many jobs each request was that somebody waits for
        self._followers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def trouble(self) -> str:
        return self._calls.trouble

    async def __aenter__(self) -> Self:
        await self._journal.commit(jobs_file.create)
        for job in self._journal.read(partial(jobs_file.open_jobs, service=self._service.address)):
            self._job_of.update(dict.fromkeys(job.requests, job))
            for digest, reserved in self._journal.read(partial(jobs_file.unanswered, job=job)).items():
                self._account.ledger.hold(reserved)
                self._reserved[digest] = reserved
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
        """The reply that a job brought; it is in the journal, and priced.

        Raises:
          BudgetSpent: the request is in no job, and the budget would not hold it.
          NotSent: `MOST_JOBS` jobs brought none (what may have been paid for is counted), or this is closed.
          Permanent: with scope "request", refused for good; else no job can be created, or reached any more.
        """
        digest = request.digest
        try:
            while True:
                if digest not in self._job_of and digest not in self._reserved:
                    self._reserved[digest] = await self._account.reserve(request)
                await self._wait_for(digest, request)
                outcome = await self._journal.commit(partial(journal_file.outcome, digest=digest))
                if outcome is not None:
                    return outcome.reply()
        finally:
            self._sent.pop(digest, None)

    # --- waiting and collecting

    async def _wait_for(self, digest: str, request: ChatRequest) -> None:
        if self._is_closed:
            self._give_back(digest)
            raise _closed()
        waiting = self._waiting.get(digest)
        if waiting is None:
            job = self._job_of.get(digest)
            if job is not None and job.label in self._stuck:
                raise self._stuck[job.label]
            line = self._service.line(request, key=digest)
            if len(line.text) > self._limits.max_bytes:
                self._give_back(digest)
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
            self._give_back(digest)

    def _give_back(self, digest: str) -> None:
        """The request was not sent, or cost nothing."""
        if reserved := self._reserved.pop(digest, None):
            self._account.ledger.release(reserved)

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
        asked = {
            digest: Asked(waiting.request.key, waiting.echo, self._reserved[digest])
            for digest, waiting in collection.requests.items()
        }
        job = Job(secrets.token_hex(16), model, asked)  # not made from the requests: the same may be sent again
        self._job_of.update(dict.fromkeys(asked, job))
        self._sent.update(asked.keys())
        requests = [(digest, waiting.request) for digest, waiting in collection.requests.items()]
        self._follow(job, partial(self._create, job, requests))

    def _answer(self, digest: str, error: Exception | None = None) -> None:
        """Lets the callers of a request go on: to its reply in the journal or into another job; or this is why not."""
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
            for digest in job.requests:
                self._give_back(digest)  # those who wait for room must not wait for this job
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
        """Those who wait for a job that is no more go on: to what it answered while it was, or into another one."""
        for digest in job.requests:
            self._give_back(digest)
            del self._job_of[digest]
            if digest in self._waiting:
                self._answer(digest)
        self._standstill.look()

    async def _ask_again(self, job: Job, gone: Gone) -> None:
        """The job can not be found any more, and it may have been paid for."""
        lost = await self._journal.commit(partial(jobs_file.unanswered, job=job))
        if self._lost_jobs == "stop":
            raise Permanent(
                f"{gone}. Batch job {job.name}, with {len(lost):,} requests of this run, is not there for these "
                "credentials: if they are of another account or project than it was created with, change them; if it "
                "is gone for good, lost_jobs=ask_again asks anew, and may pay again, for what it was to answer",
                scope="run",
            )
        await self._lose(lost, also=partial(jobs_file.forget, label=job.label))
        self.counts.gone += 1
        self._struck(job)

    async def _lose(self, lost: Mapping[str, Spent], *, also: Callable[[sqlite3.Connection], object]) -> None:
        """Counts requests as paid for in vain, in one transaction with what `also` does."""
        await self._journal.lose(lost, also=also)
        for digest in lost:
            if reserved := self._reserved.pop(digest, None):
                self._account.ledger.assume(reserved)

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
        # A job that failed half-way has answered the first half.
        join = await self._calls.repeated(partial(self._read, job))
        self.counts.expired += state.phase == "cut short"
        self.counts.add(join)
        lost = {}
        if state.phase == "complete":
            unanswered = await self._journal.commit(partial(jobs_file.unanswered, job=job))
            lost = {digest: reserved for digest, reserved in unanswered.items() if digest not in join.errors}
            self.counts.missing += len(lost)
        await self._lose(lost, also=partial(jobs_file.close, label=job.label))
        if isinstance(state.error, NotSent):
            await self._sleep(pause(state.error, otherwise=_POLLS_BETWEEN_JOBS * self._limits.poll_seconds))
        self._release(job, join, state)

    def _release(self, job: Job, join: Join, state: JobState) -> None:
        """All at once: a lineage that went on alone would be a wave, and so a job, of its own."""
        error = state.error
        if state.phase == "complete" and len(job.requests) >= _FEW and 2 * join.joined < len(job.requests):
            told = f"job {job.name} answered {join.joined} of {len(job.requests)} requests in a way that can be read"
            error = Permanent(f"{told}; started again, the others are asked, and may be paid for, anew", scope="run")
        for digest in job.requests:
            self._give_back(digest)
            del self._job_of[digest]
            if digest not in self._waiting:
                continue
            found = None if join.answered(digest) else error or join.errors.get(digest)
            if isinstance(found, Permanent):
                self._answer(digest, found)
            elif not join.answered(digest) and self._sent[digest] >= MOST_JOBS:
                self._answer(digest, found or NotSent(f"{job.name} holds no result for it"))
            else:
                self.counts.resent += not join.answered(digest)
                self._answer(digest)
        self._standstill.look()

    async def _read(self, job: Job) -> Join:
        """Commits every outcome in a job's results; read twice, the same are there."""
        assert job.name is not None
        join = Join({digest: asked.echo for digest, asked in job.requests.items()})
        rows: list[tuple[str, Outcome]] = []
        async with contextlib.aclosing(self._service.results(job.name)) as results:
            async for result in results:
                if found := join.take(result):
                    rows.append(found)
                if len(rows) >= _ROWS:
                    await self._keep(job, rows)
                    rows = []
        await self._keep(job, rows)
        return join

    async def _keep(self, job: Job, rows: list[tuple[str, Outcome]]) -> None:
        """Commits outcomes with their price, and charges those that are new."""
        found: dict[str, Outcome] = {}
        for digest, outcome in rows:
            if outcome.kind == "reply":
                reserved = self._reserved.get(digest, NOTHING)
                outcome = journal_file.outcome_of(
                    self._account.priced(outcome.reply(), model=job.model, reserved=reserved)
                )
            found[digest] = outcome
        new = await self._journal.take([(job.requests[digest].key, digest, one) for digest, one in found.items()])
        for digest in new:
            if found[digest].kind == "reply" and digest in self._reserved:
                reserved = self._reserved.pop(digest)
                kind = (job.requests[digest].key.purpose, job.model)
                waiting = self._waiting.get(digest)
                request = waiting.request if waiting else None
                self._account.settle(found[digest].reply(), kind=kind, reserved=reserved, request=request)


def _closed() -> NotSent:
    return NotSent("no batch job is waited for any more")

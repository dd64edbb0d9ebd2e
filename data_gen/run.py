"""Piece after piece of a run, many side by side, from where an earlier process stopped to the last or to the budget.

A piece is a seed that is evolved through all its rounds, or a record that is answered anew. Each is a task of its
own, so nothing waits for the end of a round, and a bounded number is open at once. Pieces are read as they are
needed; what one came to is committed to the journal and forgotten here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar

from configs.interrupt import StopFlag
from data_gen import sources
from data_gen.evolve import Lineage
from data_gen.forecast import Forecast, Interval
from data_gen.llm import journal_file
from data_gen.llm.chat import Ambiguous, BudgetSpent, ChatModel, ChatReply, ChatRequest, NotSent, Permanent, Spent
from data_gen.llm.journal import Journal
from data_gen.llm.pricing import dollars
from data_gen.llm.stack import Stack
from data_gen.records import Record, Rejected
from data_gen.side_by_side import LOST_IN_A_ROW, all_done

T = TypeVar("T")

_OPEN_PER_PLACE = 2  # open pieces per request in flight: while one waits for the disk, another is ready to send
_MOST_OPEN = 2048  # more than that keep no model busier, and each holds its texts
_TOLD_SECONDS = 0.5  # between two updates of what is shown
_RATE_SECONDS = 60.0  # over which rates are taken
_RULES_SHOWN = 4


class Paid(str):
    """What a run has spent, as it is shown, with the figures of it for who adds up several runs."""

    spent: Spent

    @classmethod
    def of(cls, spent: Spent) -> Self:
        paid = cls(dollars(spent.usd))
        paid.spent = spent
        return paid


class Progress(Protocol):
    def __call__(self, done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
        """`done` of `total` pieces are finished; `facts` are figures worth showing beside that."""
        ...


MeasuringUsd = Callable[[Lineage, Mapping[int, Spent]], float]
"""What measuring a finished lineage is expected to cost, from it and what the verdicts on its rewrites took."""

Outcomes = Callable[[Record, ChatModel], AsyncGenerator[Record | Rejected, None]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do: pieces by their number, in a fixed order, and what is done to each."""

    total: int
    pieces: Callable[[], Iterator[tuple[int, Record]]]
    outcomes: Outcomes
    open_at_once: int

    def first(self, count: int) -> Work:
        """The first so many pieces."""
        return replace(self, total=min(count, self.total), pieces=lambda: islice(self.pieces(), count))


def places(concurrency: int, *, stack: Stack, total: int) -> int:
    """How many pieces to have open at once; with batch jobs all of them, so that one request of each is one job."""
    return total if stack.batches else min(_OPEN_PER_PLACE * concurrency, _MOST_OPEN)


class _Lost(NamedTuple):
    """So many requests in a row gave up; `replies` had come when the last of them did."""

    in_a_row: int = 0
    replies: int = 0


@dataclass
class Run:
    """One process's part in a run.

    `budget_spent` says why it stopped before the last piece, if it did. Of what is paid for no piece, `beside_usd` is
    what a pilot's ranking costs, as far as it is known, and `measuring_usd` what is expected for this piece later on.
    """

    journal: Journal
    stack: Stack
    progress: Progress
    stop: StopFlag
    total: int
    done: int = 0
    budget_spent: BudgetSpent | None = None
    beside_usd: float = 0.0
    measuring_usd: MeasuringUsd | None = None
    _forecast: Forecast = field(default_factory=Forecast)
    _counts: Counter[str] = field(default_factory=Counter)
    _rules: Counter[str] = field(default_factory=Counter)
    _finished: set[int] = field(default_factory=set)
    _lost: _Lost = _Lost()
    _samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    @property
    def unfinished(self) -> str:
        """Why the run is not through, and what is left; empty where it is."""
        if self.budget_spent is None:
            return ""
        left = f"{self.total - self.done:,} of {self.total:,} are left"
        return f"{self.budget_spent}. What is there is a valid data set; {left}"

    @property
    def in_all(self) -> Interval | None:
        """What the whole run will have cost; None while too little is finished to say."""
        return self._forecast.total(self.total, beside=self.beside_usd, spent=self.journal.spent.usd)

    def forecast_anew(self) -> None:
        """To be called where pieces cost something else from here on."""
        self._forecast.begin_anew()

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncGenerator[None, None]:
        """Recalls what earlier processes finished, and shows how far the run is while it is entered."""
        self._recall()
        showing = asyncio.create_task(self._keep_showing())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            self._show()

    async def through(self, work: Work) -> None:
        """Finishes every piece; one in which a request gave up is tried once more when all others are done.

        What was answered is in the journal, and a provider that was down for a while may be back.

        Raises:
          RunError: a model can not be used at all.
          Interrupted: a signal came; requests in flight were given time to come home.
        """
        missing = (piece for piece in work.pieces() if piece[0] not in self._finished)
        put_off = await self._pass(missing, work=work, unanswered="put off")
        if put_off and self.budget_spent is None:
            again = (piece for piece in work.pieces() if piece[0] in put_off)
            await self._pass(again, work=work, unanswered="drop")

    def answering(self, unanswered: Literal["put off", "drop"] = "drop") -> Answering:
        """The models of this run, for one piece."""
        return Answering(self.stack.model, run=self, unanswered=unanswered)

    def _recall(self) -> None:
        """The pieces that earlier processes finished; one in which a request gave up is not.

        Nobody answered then, and somebody may now.
        """
        for saved in self.journal.lineages():
            self.stop.raise_if_set()
            if not saved.finished:
                continue
            lineage = Lineage.from_json(saved.payload)
            if any(rejected.rule == "gave_up" for rejected in lineage.rejected):
                continue
            self._finished.add(saved.index)
            self._count(lineage)
            name = lineage.records[0].lineage if lineage.records else ""
            verdicts = self.journal.read(partial(journal_file.spent_by_round, lineage=name, purpose="judge"))
            self._forecast.add(saved.usd + self._later_usd(lineage, verdicts))

    async def _pass(
        self, pieces: Iterator[tuple[int, Record]], *, work: Work, unanswered: Literal["put off", "drop"]
    ) -> set[int]:
        """Works on the pieces, so many at once; returns those that were put off."""
        put_off: set[int] = set()

        async def worker() -> None:
            for index, piece in pieces:
                self._forecast.begin(index)
                with self.stack.standstill.lineage():
                    try:
                        await self._finish(index, piece, work=work, unanswered=unanswered)
                    except _PutOff:
                        put_off.add(index)
                        self._forecast.leave(index)
                if self.budget_spent:
                    return

        await self.all(worker() for _ in range(min(work.open_at_once, work.total)))
        return put_off

    async def _finish(self, index: int, piece: Record, *, work: Work, unanswered: Literal["put off", "drop"]) -> None:
        """Works on one piece and saves all that it comes to, or as much as the budget allows."""
        model = self.answering(unanswered)
        outcomes: list[Record | Rejected] = []
        finished = True
        async with contextlib.aclosing(work.outcomes(piece, model)) as coming:
            try:
                async for outcome in coming:
                    outcomes.append(outcome)  # noqa: PERF401 - what came before the budget was spent stays
            except BudgetSpent as error:
                finished = False
                self.budget_spent = self.budget_spent or error
        lineage = Lineage.of(outcomes)
        await self.journal.save_lineage(
            index, seed_id=sources.seed_id(piece), payload=lineage.to_json(), finished=finished, usd=model.usd
        )
        if finished:
            self._finished.add(index)
            self._count(lineage)
            self._forecast.end(index, usd=model.usd + self._later_usd(lineage, model.verdicts))

    def _count(self, lineage: Lineage) -> None:
        self.done += 1
        self._counts.update(records=len(lineage.records), dropped=len(lineage.rejected))
        self._rules.update(rejected.rule for rejected in lineage.rejected)

    def _later_usd(self, lineage: Lineage, verdicts: Mapping[int, Spent]) -> float:
        return self.measuring_usd(lineage, verdicts) if self.measuring_usd else 0.0

    async def all(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Waits for all, or for the first failure or a signal; raises as `all_done` does."""
        await all_done(work, stop=self.stop)

    async def one(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work comes to; errors and signals as in `all`."""
        results: list[T] = []

        async def keep() -> None:
            results.append(await work)

        await self.all([keep()])
        return results[0]

    def gave_up(self) -> int:
        """One more request gave up; how many did so with no reply between. What the journal knew is no reply."""
        replies = self.journal.answered
        self._lost = _Lost(self._lost.in_a_row + 1 if replies == self._lost.replies else 1, replies)
        return self._lost.in_a_row

    # --- what is shown

    async def _keep_showing(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(_TOLD_SECONDS)

    def _show(self) -> None:
        journal, spent = self.journal, self.journal.spent
        now = monotonic()
        if not self._samples or now - self._samples[-1][0] >= _TOLD_SECONDS:
            self._samples.append((now, journal.asked, spent.input_tokens + spent.output_tokens))
        while now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        before, asked, tokens = self._samples[0]
        minutes = max(now - before, _TOLD_SECONDS) / 60
        facts: dict[str, int | str | float] = {
            "records": self._counts["records"],
            "dropped": self._counts["dropped"],
            **{rule.replace("_", " "): count for rule, count in self._rules.most_common(_RULES_SHOWN)},
            "asked": journal.asked,
            "from the journal": journal.cached,
            "requests/min": round((journal.asked - asked) / minutes),
            "tokens/min": round((spent.input_tokens + spent.output_tokens - tokens) / minutes),
            "429s": sum(pacing.rate_limited for pacing in self.stack.pacings),
            "in flight": sum(pacing.in_flight for pacing in self.stack.pacings),
            "spent": Paid.of(spent),
        }
        if self.stack.batches:
            facts["wait for jobs"] = self.stack.standstill.waiting
        troubles = [*(one.trouble for one in self.stack.pacings), *(one.trouble for one in self.stack.batches)]
        if trouble := next(filter(None, troubles), ""):
            facts["trouble"] = trouble
        if spent.usd and (in_all := self.in_all):
            facts["in all about"] = str(in_all)
        self.progress(self.done, self.total, facts)


class _PutOff(Exception):
    """A request gave up. Its piece stops here, for what would be paid for its later rounds depends on the answer."""


@dataclass
class Answering:
    """A `ChatModel` for one piece, which adds up what the piece costs.

    A request that gave up puts the piece off, or drops its candidate. When nobody answers at all the run ends,
    instead of dropping one candidate after another.
    """

    inner: ChatModel
    run: Run
    unanswered: Literal["put off", "drop"]
    usd: float = 0.0
    verdicts: dict[int, Spent] = field(default_factory=dict)
    """What the judge's verdicts on rewrites took, by round."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        try:
            reply = await self.inner.complete(request)
        except (NotSent, Ambiguous, Permanent) as error:
            if isinstance(error, Permanent) and error.scope != "unclear":
                raise
            if self.run.gave_up() >= LOST_IN_A_ROW:
                text = f"{LOST_IN_A_ROW} requests in a row were given up without an answer, the last one for: {error}"
                raise Permanent(text, scope="run") from error
            if self.unanswered == "put off":
                raise _PutOff from error
            raise
        self.usd += reply.usd
        if request.key.purpose == "judge":
            self.verdicts[request.key.round] = Spent(1, reply.input_tokens, reply.output_tokens, reply.usd)
        return reply

"""Piece after piece of a run: put off and tried again, recalled, stopped, and ended when nobody answers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs.interrupt import Interrupted, StopFlag
from data_gen.config import Budget
from data_gen.evolve import Lineage
from data_gen.llm.budget import Ledger
from data_gen.llm.chat import (
    Ambiguous,
    BudgetSpent,
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    RequestKey,
)
from data_gen.llm.journal import Journal
from data_gen.llm.stack import Stack
from data_gen.llm.standstill import Standstill
from data_gen.records import Record, Rejected, Turn
from data_gen.run import Run, Work
from data_gen.side_by_side import LOST_IN_A_ROW, RunError


def seed(index: int) -> Record:
    return Record(id=f"{index:06d}/0", lineage=f"{index:06d}", turns=(Turn("user", f"Question {index}?"),), source="s")


def asking(piece: Record, *, round_: int) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(piece.lineage, round_, "answer"),
        model="m",
        messages=(Message("user", piece.instruction),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=0,
    )


async def two_rounds(piece: Record, model: ChatModel) -> AsyncGenerator[Record | Rejected, None]:
    """Asks for an answer in two rounds; what gave up is dropped."""
    for round_ in range(2):
        try:
            reply = await model.complete(asking(piece, round_=round_))
        except (NotSent, Ambiguous) as error:
            yield Rejected(piece.lineage, round_, "", "gave_up", str(error), piece.instruction)
            continue
        turns = (*piece.turns, Turn("assistant", reply.text))
        yield Record(id=f"{piece.lineage}/{round_}", lineage=piece.lineage, turns=turns, round=round_, source="s")


@dataclass
class Provider:
    """Answers for a dollar, unless `fails` has an error for the request."""

    fails: Callable[[ChatRequest], ChatError | None] = lambda _: None
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append((request.key.lineage, request.key.round))
        await asyncio.sleep(0)
        if error := self.fails(request):
            raise error
        return ChatReply(text="So.", finish_reason="stop", model="m-1", input_tokens=3, output_tokens=1, usd=1.0)


def all_of(count: int, *, open_at_once: int = 4) -> Work:
    return Work(
        total=count,
        pieces=lambda: ((index, seed(index)) for index in range(count)),
        outcomes=two_rounds,
        open_at_once=open_at_once,
    )


def quiet(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    """Progress that nobody watches."""


@asynccontextmanager
async def running(path: Path, provider: ChatModel, *, total: int, stop: StopFlag | None = None) -> AsyncIterator[Run]:
    async with Journal.open(path / "journal.sqlite", drain_seconds=0.2) as journal:
        stack = Stack(
            model=journal.wrap(journal.marked(provider)),
            ledger=Ledger(Budget()),
            standstill=Standstill(),
            pacings=(),
            batches=(),
        )
        run = Run(journal=journal, stack=stack, progress=quiet, stop=stop or StopFlag(), total=total)
        async with run.going_on():
            yield run


async def finished(path: Path, provider: ChatModel, work: Work) -> list[Lineage]:
    async with running(path, provider, total=work.total) as run:
        await run.through(work)
        return [Lineage.from_json(saved.payload) for saved in run.journal.lineages()]


def dead(_: ChatRequest) -> ChatError:
    return NotSent("connection refused")


def test_a_piece_in_which_a_request_gave_up_waits_until_all_others_are_done(tmp_path: Path) -> None:
    failures = {("000001", 0): 1, ("000003", 1): 2}

    def fails(request: ChatRequest) -> ChatError | None:
        asked = (request.key.lineage, request.key.round)
        failures[asked] = failures.get(asked, 0) - 1
        return NotSent("503") if failures[asked] >= 0 else None

    provider = Provider(fails)
    lineages = asyncio.run(finished(tmp_path, provider, all_of(6, open_at_once=1)))
    assert [lineage for lineage, _ in provider.asked[-3:]] == ["000001", "000001", "000003"]
    assert provider.asked[-4] == ("000005", 1)
    assert [len(lineage.records) for lineage in lineages] == [2, 2, 2, 1, 2, 2], "the second failure is dropped"
    assert [one.rule for one in lineages[3].rejected] == ["gave_up"]
    assert len(provider.asked) == 6 * 2 + 2, "what was answered before is not asked for again"


def test_what_the_journal_knows_is_no_sign_that_somebody_answers(tmp_path: Path) -> None:
    """Each piece begins with a reply of an earlier process; with those in between the dead provider is found too."""
    count = LOST_IN_A_ROW + 5
    only_once = Provider(lambda request: BudgetSpent("no more") if request.key.round else None)
    asyncio.run(finished_one_by_one(tmp_path, only_once, count))
    with pytest.raises(RunError, match=f"{LOST_IN_A_ROW} requests in a row.*connection refused"):
        asyncio.run(finished(tmp_path, Provider(dead), all_of(count, open_at_once=1)))
    lineages = asyncio.run(finished(tmp_path, Provider(), all_of(count)))
    assert [len(lineage.records) for lineage in lineages] == [2] * count


async def finished_one_by_one(path: Path, provider: ChatModel, count: int) -> None:
    async with running(path, provider, total=count) as run:
        for index in range(count):
            one = Work(
                total=1, pieces=lambda index=index: iter([(index, seed(index))]), outcomes=two_rounds, open_at_once=1
            )
            await run.through(one)


def test_a_request_that_was_answered_in_between_ends_a_row_of_failures(tmp_path: Path) -> None:
    put_off: set[str] = set()

    def fails(request: ChatRequest) -> ChatError | None:
        lineage = request.key.lineage
        if int(lineage) % LOST_IN_A_ROW == 0 or lineage in put_off:
            return None
        put_off.add(lineage)
        return NotSent("503")

    lineages = asyncio.run(finished(tmp_path, Provider(fails), all_of(3 * LOST_IN_A_ROW, open_at_once=1)))
    assert len(put_off) == 3 * (LOST_IN_A_ROW - 1)
    assert [len(lineage.records) for lineage in lineages] == [2] * (3 * LOST_IN_A_ROW)


@pytest.mark.parametrize("error", [Permanent("no such key", scope="run"), Permanent("bad field", scope="unclear")])
def test_a_model_that_can_not_be_used_ends_the_run_with_one_message(
    error: Permanent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match=str(error)):
        asyncio.run(finished(tmp_path, Provider(lambda _: error), all_of(64, open_at_once=32)))
    gc.collect()
    assert not caplog.messages


def test_a_bug_is_not_taken_for_a_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(finished(tmp_path, Provider(lambda _: 1 // 0), all_of(3)))


def test_told_to_stop_nothing_more_is_sent_and_what_is_in_flight_is_saved(tmp_path: Path) -> None:
    stop = StopFlag()

    class Stopping(Provider):
        async def complete(self, request: ChatRequest) -> ChatReply:
            if len(self.asked) >= 5:
                stop.exit_code = 42
            await asyncio.sleep(0.01)
            return await super().complete(request)

    provider = Stopping()

    async def until_told() -> int:
        async with running(tmp_path, provider, total=500, stop=stop) as run:
            with pytest.raises(Interrupted):
                await run.through(all_of(500, open_at_once=4))
            assert run.done < 100
        return run.journal.spent.calls

    saved = asyncio.run(until_told())
    assert 5 < saved < 200
    assert saved == len(provider.asked), "all that was sent came home"


def test_when_the_budget_is_spent_what_each_piece_came_to_is_saved_unfinished(tmp_path: Path) -> None:
    async def spend() -> None:
        provider = Provider(lambda request: BudgetSpent("enough") if request.key.round else None)
        async with running(tmp_path, provider, total=9) as run:
            await run.through(all_of(9, open_at_once=3))
            saved = list(run.journal.lineages())
            assert [one.finished for one in saved] == [False] * 3
            assert [one.usd for one in saved] == [1.0] * 3
            assert [len(Lineage.from_json(one.payload).records) for one in saved] == [1] * 3
            assert run.unfinished == "enough. What is there is a valid data set; 9 of 9 are left"

    asyncio.run(spend())
    provider = Provider()
    lineages = asyncio.run(finished(tmp_path, provider, all_of(9)))
    assert [len(lineage.records) for lineage in lineages] == [2] * 9
    assert len(provider.asked) == 18 - 3


def test_finished_pieces_are_recalled_with_their_costs_also_where_some_share_a_lineage(tmp_path: Path) -> None:
    """As in `wizard answer`: the piece is a record, and its lineage has several."""
    pieces = [(index, seed(index // 4)) for index in range(8)]
    asked = iter(range(100))

    async def once(piece: Record, model: ChatModel) -> AsyncGenerator[Record | Rejected, None]:
        await model.complete(asking(piece, round_=next(asked)))
        yield piece

    work = Work(total=12, pieces=lambda: iter(pieces), outcomes=once, open_at_once=2)

    async def twice() -> None:
        async with running(tmp_path, Provider(), total=12) as run:
            await run.through(work)
        provider = Provider()
        async with running(tmp_path, provider, total=12) as run:
            assert run.done == 8
            interval = run.in_all
            assert interval is not None
            assert interval.low == interval.middle == interval.high == 12.0, "each piece was a dollar"
            await run.through(work)
        assert not provider.asked

    asyncio.run(twice())


def test_a_piece_that_gave_up_is_not_recalled_for_somebody_may_answer_now(tmp_path: Path) -> None:
    one_fails = Provider(lambda request: NotSent("503") if request.key.lineage == "000002" else None)
    before = asyncio.run(finished(tmp_path, one_fails, all_of(5)))
    assert [one.rule for one in before[2].rejected] == ["gave_up"] * 2
    provider = Provider()
    after = asyncio.run(finished(tmp_path, provider, all_of(5)))
    assert provider.asked == [("000002", 0), ("000002", 1)]
    assert [len(lineage.records) for lineage in after] == [2] * 5


def test_what_is_shown_tells_requests_money_and_rates(tmp_path: Path) -> None:
    seen: list[Mapping[str, int | str | float]] = []

    async def watched() -> None:
        async with Journal.open(tmp_path / "journal.sqlite") as journal:
            stack = Stack(
                model=journal.wrap(journal.marked(Provider())),
                ledger=Ledger(Budget()),
                standstill=Standstill(),
                pacings=(),
                batches=(),
            )
            run = Run(
                journal=journal,
                stack=stack,
                progress=lambda done, total, facts: seen.append({**facts, "done": done, "total": total}),
                stop=StopFlag(),
                total=20,
            )
            async with run.going_on():
                await run.through(all_of(20))

    asyncio.run(watched())
    last = seen[-1]
    assert (last["done"], last["total"], last["records"], last["dropped"]) == (20, 20, 40, 0)
    assert (last["asked"], last["from the journal"], last["spent"]) == (40, 0, "$40.00")
    assert last["in all about"] == "$40.00 ($40.00 to $40.00)"
    assert len(seen) < 10, "not at every piece"


def test_what_is_done_beside_the_pieces_ends_as_they_do(tmp_path: Path) -> None:
    async def after_all() -> None:
        stop = StopFlag()
        async with running(tmp_path, Provider(), total=1, stop=stop) as run:

            async def answer() -> str:
                return (await run.answering().complete(asking(seed(0), round_=7))).text

            async def fail() -> None:
                raise Permanent("no such key", scope="run")

            async def told_to_stop() -> None:
                stop.exit_code = 42
                await asyncio.sleep(60)

            assert await run.one(answer()) == "So."
            with pytest.raises(RunError, match="no such key"):
                await run.one(fail())
            with pytest.raises(Interrupted):
                await run.one(told_to_stop())

    asyncio.run(after_all())

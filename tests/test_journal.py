"""What was paid for is on disk before it is used, and is not asked for again."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from data_gen.llm import journal_file
from data_gen.llm.chat import (
    Ambiguous,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    RequestKey,
    Spent,
)
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import Outcome, SavedLineage


def asking(number: int = 0, *, text: str = "why?") -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model="m",
        messages=(Message("user", text),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


@dataclass
class Teller:
    """Answers with how often it was asked, after failing as it is told."""

    failures: list[Exception] = field(default_factory=list)
    asked: list[ChatRequest] = field(default_factory=list)
    text: str = ""

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        text = self.text or f"answer {len(self.asked)}"
        if self.failures:
            raise self.failures.pop(0)
        return ChatReply(text=text, finish_reason="stop", model="teller-1", input_tokens=3, output_tokens=5)


@dataclass
class SlowTeller(Teller):
    """Answers when it is allowed to."""

    began: asyncio.Event = field(default_factory=asyncio.Event)
    until: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = await super().complete(request)
        self.began.set()
        await self.until.wait()
        return reply


def copied(path: Path) -> Path:
    """What another process would find if this one were killed now: the file, its log and the count beside it."""
    copy = path.with_name("copy.sqlite")
    for suffix in ("", "-wal", "-commits"):
        Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    return copy


def rows(path: Path, select: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(select).fetchall()
    finally:
        db.close()


def test_a_reply_is_on_disk_before_the_caller_has_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    async def run() -> list[ChatReply]:
        async with Journal.open(path) as journal:
            await journal.wrap(journal.marked(Teller())).complete(asking())
            copy = copied(path)
        teller = Teller()
        async with Journal.open(copy) as journal:
            replies = [await journal.wrap(journal.marked(teller)).complete(asking())]
            assert (journal.asked, journal.cached, journal.possibly_paid_twice) == (0, 1, 0)
        assert teller.asked == []
        return replies

    (reply,) = asyncio.run(run())
    assert reply == ChatReply(text="answer 1", finish_reason="stop", model="teller-1", input_tokens=3, output_tokens=5)


def test_the_mark_is_on_disk_before_the_request_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    class Spy(Teller):
        async def complete(self, request: ChatRequest) -> ChatReply:
            copied(path)
            return await super().complete(request)

    async def run() -> tuple[int, int]:
        async with Journal.open(path) as journal:
            await journal.wrap(journal.marked(Spy())).complete(asking())
        async with Journal.open(tmp_path / "copy.sqlite") as journal:
            first = journal.possibly_paid_twice
        async with Journal.open(tmp_path / "copy.sqlite") as journal:
            return first, journal.possibly_paid_twice

    assert asyncio.run(run()) == (1, 1)  # counted once, and remembered


def test_equal_requests_at_once_share_one_send(tmp_path: Path) -> None:
    async def run() -> None:
        teller = SlowTeller()
        async with Journal.open(tmp_path / "j") as journal:
            model = journal.wrap(journal.marked(teller))
            callers = [asyncio.create_task(model.complete(asking(i % 2))) for i in range(40)]
            await asyncio.sleep(0.05)
            teller.until.set()
            replies = await asyncio.gather(*callers)
            assert len(teller.asked) == 2
            assert len({reply.text for reply in replies}) == 2
            assert (journal.asked, journal.cached) == (2, 38)
            assert journal.spent == (2, 6, 10, 0.0)

    asyncio.run(run())


def test_another_decision_is_another_request(tmp_path: Path) -> None:
    async def run() -> None:
        teller = Teller()
        async with Journal.open(tmp_path / "j") as journal:
            model = journal.wrap(journal.marked(teller))
            first = asking()
            again = replace(first, key=replace(first.key, purpose="judge"))
            assert (await model.complete(first)).text == "answer 1"
            assert (await model.complete(again)).text == "answer 2"
            assert (await model.complete(first)).text == "answer 1"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("failure", "asked_again", "possibly_paid_twice"),
    [
        (NotSent("busy"), True, 0),
        (Ambiguous("lost"), True, 1),
        (Permanent("this prompt is not allowed", scope="request"), False, 0),
        (Permanent("bad key", scope="run"), True, 0),
        (Permanent("no", scope="unclear"), True, 0),
    ],
    ids=["not sent", "ambiguous", "refused request", "refused run", "refused without a reason"],
)
def test_what_is_remembered_of_a_failure(
    tmp_path: Path, failure: Exception, asked_again: bool, possibly_paid_twice: int
) -> None:
    async def run() -> None:
        async with Journal.open(tmp_path / "j") as journal:
            with pytest.raises(type(failure), match=str(failure)):
                await journal.wrap(journal.marked(Teller([failure]))).complete(asking())
            assert journal.possibly_paid_twice == possibly_paid_twice
        async with Journal.open(tmp_path / "j") as journal:
            assert journal.possibly_paid_twice == possibly_paid_twice
            teller = Teller()
            if asked_again:
                assert (await journal.wrap(journal.marked(teller)).complete(asking())).text == "answer 1"
            else:
                with pytest.raises(Permanent, match=str(failure)) as raised:
                    await journal.wrap(journal.marked(teller)).complete(asking())
                assert raised.value.scope == "request"
                assert teller.asked == []

    asyncio.run(run())


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    strange = "NUL \0, half a pair \ud83d, both 😀, RTL \u202e, \r\n, '; DROP TABLE outcomes; --"

    async def run() -> None:
        async with Journal.open(tmp_path / "j") as journal:
            await journal.wrap(journal.marked(Teller(text=strange))).complete(asking(text=strange))
            await journal.save_lineage(7, seed_id=strange, payload=strange)
        async with Journal.open(tmp_path / "j") as journal:
            reply = await journal.wrap(journal.marked(Teller())).complete(asking(text=strange))
            assert reply.text == strange
            assert list(journal.lineages()) == [SavedLineage(7, strange, strange, finished=True)]

    asyncio.run(run())


def test_lineages_come_back_by_index_whatever_the_order_they_were_saved_in(tmp_path: Path) -> None:
    indices = list(range(1000))
    random.Random(1).shuffle(indices)

    async def run() -> None:
        async with Journal.open(tmp_path / "j") as journal:
            saves = (journal.save_lineage(i, seed_id=f"seed-{i}", payload=json.dumps({"i": i})) for i in indices)
            await asyncio.gather(*saves)
            await journal.save_lineage(500, seed_id="seed-500", payload="replaced")
            assert {saved.index for saved in journal.lineages()} == set(range(1000))
        async with Journal.open(tmp_path / "j") as journal:
            saved = list(journal.lineages())
            assert [lineage.index for lineage in saved] == list(range(1000))
            assert saved[3] == SavedLineage(3, "seed-3", '{"i": 3}', finished=True)
            assert saved[500].payload == "replaced"

    asyncio.run(run())


def test_a_caller_that_goes_away_leaves_the_paid_reply_to_be_saved(tmp_path: Path) -> None:
    async def run() -> None:
        teller = SlowTeller()
        async with Journal.open(tmp_path / "j") as journal:
            caller = asyncio.create_task(journal.wrap(journal.marked(teller)).complete(asking()))
            await teller.began.wait()
            caller.cancel()
            asyncio.get_running_loop().call_later(0.05, teller.until.set)
        async with Journal.open(tmp_path / "j") as journal:
            assert (await journal.wrap(journal.marked(teller)).complete(asking())).text == "answer 1"
            assert journal.possibly_paid_twice == 0
        assert len(teller.asked) == 1

    asyncio.run(run())


def test_a_caller_that_goes_away_before_the_send_costs_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        teller = Teller()
        async with Journal.open(tmp_path / "j") as journal:
            caller = asyncio.create_task(journal.wrap(journal.marked(teller)).complete(asking()))
            await asyncio.sleep(0)
            caller.cancel()
        assert teller.asked == []
        async with Journal.open(tmp_path / "j") as journal:
            assert journal.possibly_paid_twice == 0

    asyncio.run(run())


def test_what_does_not_come_home_in_time_is_counted_when_next_opened(tmp_path: Path) -> None:
    async def run() -> None:
        teller = SlowTeller()
        async with Journal.open(tmp_path / "j", drain_seconds=0.05) as journal:
            caller = asyncio.create_task(journal.wrap(journal.marked(teller)).complete(asking()))
            await teller.began.wait()
        with pytest.raises(asyncio.CancelledError):
            await caller
        async with Journal.open(tmp_path / "j") as journal:
            assert journal.possibly_paid_twice == 1

    asyncio.run(run())


def in_flight(journal: Journal) -> int:
    return int(journal.read(lambda db: db.execute("SELECT count(*) FROM in_flight").fetchone()[0]))


class OneAtATime:
    """Lets one request through, and keeps the others waiting."""

    def __init__(self, inner: ChatModel) -> None:
        self.inner, self.came = inner, 0
        self.place = asyncio.Semaphore(1)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.came += 1
        async with self.place:
            return await self.inner.complete(request)


def test_what_waits_to_be_sent_is_not_marked_and_is_not_sent_after_the_stop(tmp_path: Path) -> None:
    async def run() -> None:
        teller = SlowTeller()
        async with Journal.open(tmp_path / "j", drain_seconds=0.05) as journal:
            waiting = OneAtATime(journal.marked(teller))
            model = journal.wrap(waiting)
            callers = [asyncio.create_task(model.complete(asking(seed))) for seed in range(20)]
            await teller.began.wait()
            while waiting.came < 20:  # noqa: ASYNC110 -- what is waited for knows of no event
                await asyncio.sleep(0.001)
            assert in_flight(journal) == 1
        await asyncio.gather(*callers, return_exceptions=True)
        assert len(teller.asked) == 1
        async with Journal.open(tmp_path / "j") as journal:
            assert journal.possibly_paid_twice == 1

    asyncio.run(run())


def test_requests_that_a_hard_kill_cut_off_are_taken_to_have_cost_what_others_did(tmp_path: Path) -> None:
    async def run() -> None:
        async with Journal.open(tmp_path / "j") as journal:
            key = asking().key
            outcomes = [Outcome("reply", "x", "stop", "m", 10 * n, n, 0, 0.5 * n) for n in (1, 2, 4)]
            await journal.take([(key, f"digest {n}", outcome) for n, outcome in enumerate(outcomes)])
            refused = Outcome("refused", "no", "stop", "", 0, 0, 0, 0.0)
            await journal.take([(key, "digest refused", refused), (key, "digest 0", outcomes[2])])
            assert journal.spent == Spent(3, 70, 7, 3.5)
            for n in range(6):
                await journal.commit(partial(journal_file.mark, digest=f"lost {n}", key=key))
        async with Journal.open(tmp_path / "j") as journal:
            assert journal.possibly_paid_twice == 6
            assert journal.spent == Spent(9, 210, 21, 10.5)

    asyncio.run(run())


def test_what_is_on_the_wire_comes_home_however_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client ends it in time: here nothing else does."""

    async def run() -> None:
        teller = SlowTeller()
        async with Journal.open(tmp_path / "j") as journal:
            caller = asyncio.create_task(journal.wrap(journal.marked(teller)).complete(asking()))
            await teller.began.wait()
            loop = asyncio.get_running_loop()
            started = loop.time()
            monkeypatch.setattr(loop, "time", lambda: started + 3600.0)
            loop.call_soon(teller.until.set)
        assert (await caller).text == "answer 1"
        async with Journal.open(tmp_path / "j") as journal:
            assert (journal.possibly_paid_twice, journal.spent.calls) == (0, 1)

    asyncio.run(run())


def test_one_commit_serves_many_requests(tmp_path: Path) -> None:
    async def run() -> tuple[int, int]:
        commits = 0

        def trace(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        async with Journal.open(tmp_path / "j") as journal:
            journal._db.set_trace_callback(trace)
            model = journal.wrap(journal.marked(Teller()))
            await asyncio.gather(*(model.complete(asking(i)) for i in range(400)))
            return journal.asked, commits

    asked, commits = asyncio.run(run())
    assert asked == 400
    assert commits < 100  # 800 if each mark and each reply had its own


def test_the_journal_holds_no_prompt_and_no_key(tmp_path: Path) -> None:
    canary = "CANARY-7f3a"

    async def run() -> None:
        async with Journal.open(tmp_path / "j") as journal:
            await journal.wrap(journal.marked(Teller())).complete(asking(text=f"my key is {canary}"))

    asyncio.run(run())
    assert canary.encode() not in (tmp_path / "j").read_bytes()
    assert rows(tmp_path / "j", "SELECT lineage, round, purpose, outcome FROM outcomes") == [
        ("seed-0", 1, "answer", "reply")
    ]

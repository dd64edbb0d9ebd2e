"""A journal that was damaged is refused by its name; where damage hit nothing, all that it says is right."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from data_gen.llm import jobs_file, journal_file
from data_gen.llm.chat import ChatReply, ChatRequest, Message, Permanent, RequestKey, Spent
from data_gen.llm.jobs_file import Asked, Job
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import JournalError, Outcome

REQUESTS = 60
SENT = Spent(1, 10, 20, 0.5)
SUFFIXES = ("", "-wal", "-commits")

Files = dict[str, bytes]
"""A journal as it lies on the disk, by suffix."""


def asking(number: int) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"{number // 4:06d}", number % 4, "answer"),
        model="m",
        messages=(Message("user", f"question {number}"),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


class Teller:
    """Answers each request in its own words, and refuses every tenth."""

    def __init__(self) -> None:
        self.asked = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked += 1
        if request.seed % 10 == 9:
            raise Permanent(f"refused {request.seed}", scope="request")
        text = f"reply to {request.seed}: {random.Random(request.seed).randbytes(300).hex()} \ud83d"
        tokens = 100 + request.seed
        return ChatReply(text=text, finish_reason="stop", model="m-1", input_tokens=tokens, output_tokens=7, usd=0.5)


async def fill(journal: Journal) -> None:
    model = journal.wrap(journal.marked(Teller()))
    for start in range(0, REQUESTS, 6):  # ten transactions of replies
        asked = (model.complete(asking(number)) for number in range(start, start + 6))
        await asyncio.gather(*asked, return_exceptions=True)
    for index in range(REQUESTS // 4):
        await journal.save_lineage(index, seed_id=f"seed {index}", payload=f"lineage {index} " * 20)
    await journal.commit(partial(journal_file.save_decision, name="plan", payload="the plan " * 30))
    await journal.commit(jobs_file.create)
    job = Job("label-1", "m", {asking(n).digest: Asked(asking(n).key, f"echo {n}", SENT) for n in range(100, 120)})
    await journal.commit(partial(jobs_file.intend, job=job, service="service"))
    await journal.commit(partial(jobs_file.name, label="label-1", as_="jobs/77"))
    reply = Outcome("reply", "from a job", "stop", "m", 1, 2, 0, 0.25)
    await journal.take([(asking(number).key, asking(number).digest, reply) for number in range(100, 110)])


def read(path: Path) -> Files:
    files = {suffix: Path(f"{path}{suffix}") for suffix in SUFFIXES}
    return {suffix: file.read_bytes() for suffix, file in files.items() if file.exists()}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A journal that was closed."""
    path = tmp_path_factory.mktemp("closed") / "journal.sqlite"

    async def run() -> None:
        async with Journal.open(path) as journal:
            await fill(journal)

    asyncio.run(run())
    files = read(path)
    assert set(files) == {""}
    return files


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A journal as a killed process leaves it: most of it is still in its log."""
    path = tmp_path_factory.mktemp("killed") / "journal.sqlite"

    async def run() -> Files:
        async with Journal.open(path) as journal:
            await fill(journal)
            return read(path)

    files = asyncio.run(run())
    assert set(files) == set(SUFFIXES)
    assert len(files["-wal"]) > 50_000
    return files


def all_told(path: Path) -> dict[str, object]:
    """All that a journal says, to those who ask it again; raises JournalError."""

    async def run() -> dict[str, object]:
        teller = Teller()
        async with Journal.open(path) as journal:
            model = journal.wrap(journal.marked(teller))
            replies: list[object] = []
            for number in range(REQUESTS):
                try:
                    replies.append(await model.complete(asking(number)))
                except Permanent as refusal:
                    replies.append(str(refusal))
            told = {
                "replies": replies,
                "lineages": list(journal.lineages()),
                "plan": journal.read(partial(journal_file.decision, name="plan")),
                "spent": (journal.possibly_paid_twice, journal.spent),
                "by purpose": journal.read(journal_file.spent_by_purpose),
                "of a lineage": journal.read(partial(journal_file.spent_by_round, lineage="000003")),
                "jobs": journal.read(partial(jobs_file.open_jobs, service="service")),
                "taken": [
                    journal.read(partial(journal_file.outcome, digest=asking(number).digest))
                    for number in range(99, 111)
                ],
            }
            assert teller.asked == 0, "what was paid for was asked for again"
            return told

    return asyncio.run(run())


def laid(files: Files, folder: Path) -> Path:
    path = folder / "journal.sqlite"
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    for suffix, content in files.items():
        Path(f"{path}{suffix}").write_bytes(content)
    return path


def refused(files: Files, folder: Path, *, like: dict[str, object]) -> bool:
    """Whether a journal is refused; one that is not must say what the whole one says."""
    path = laid(files, folder)
    told: object = None
    try:
        told = all_told(path)
    except JournalError as error:
        told = str(error)
    assert told == like or (isinstance(told, str) and str(path) in told)
    return told != like


def flipped(content: bytes, draws: random.Random) -> bytes:
    at = draws.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]


def test_200_flipped_bits_are_refused_or_harmless(closed: Files, tmp_path: Path) -> None:
    like = all_told(laid(closed, tmp_path))
    draws = random.Random(200)
    damaged = [{"": flipped(closed[""], draws)} for _ in range(200)]
    named = sum(refused(files, tmp_path, like=like) for files in damaged)
    assert named > 100, "most bytes of the file mean something"


def test_100_truncated_files_are_refused(closed: Files, tmp_path: Path) -> None:
    like = all_told(laid(closed, tmp_path))
    draws = random.Random(100)
    for size in draws.sample(range(1, len(closed[""])), 100):
        assert refused({"": closed[""][:size]}, tmp_path, like=like), size


def test_100_flipped_bits_and_50_cuts_in_the_log_of_a_killed_process_lose_no_reply_unsaid(
    killed: Files, tmp_path: Path
) -> None:
    like = all_told(laid(killed, tmp_path))
    draws = random.Random(150)
    log = killed["-wal"]
    logs = [flipped(log, draws) for _ in range(100)] + [log[: draws.randrange(len(log))] for _ in range(50)]
    named = sum(refused({**killed, "-wal": one}, tmp_path, like=like) for one in logs)
    assert named > 75


def test_a_log_that_is_gone_is_missed_and_there_is_a_way_to_go_on_without_it(killed: Files, tmp_path: Path) -> None:
    without = {suffix: content for suffix, content in killed.items() if suffix != "-wal"}
    path = laid(without, tmp_path)
    with pytest.raises(JournalError, match=r"its last \d+ commits are missing, for .*journal.sqlite-wal") as raised:
        all_told(path)
    assert f"write 0 into {path}-commits" in str(raised.value)
    with pytest.raises(JournalError, match="commits are missing"), contextlib.closing(journal_file.read_only(path)):
        pass
    Path(f"{path}-commits").write_text("0\n")

    async def run() -> int:
        teller = Teller()
        async with Journal.open(path) as journal:
            await journal.wrap(journal.marked(teller)).complete(asking(0))
        return teller.asked

    assert asyncio.run(run()) == 1, "what is lost is paid for anew"
    assert set(read(path)) == {""}


def test_a_journal_copied_without_what_stands_beside_it_is_not_taken_for_whole(killed: Files, tmp_path: Path) -> None:
    for kept in ("",), ("", "-wal"):
        path = laid({suffix: killed[suffix] for suffix in kept}, tmp_path)
        with pytest.raises(JournalError, match=r"journal.sqlite-commits.* is gone or damaged: put the files back"):
            all_told(path)


def test_the_log_of_another_journal_is_not_taken_for_this_ones(killed: Files, closed: Files, tmp_path: Path) -> None:
    like = all_told(laid(killed, tmp_path))
    other = tmp_path / "other"
    other.mkdir()

    async def run() -> bytes:
        async with Journal.open(other / "journal.sqlite") as journal:
            await journal.wrap(journal.marked(Teller())).complete(asking(500))
            return (other / "journal.sqlite-wal").read_bytes()

    log = asyncio.run(run())
    assert refused({**killed, "-wal": log}, tmp_path, like=like)
    assert refused({**closed, "-wal": log}, tmp_path, like=like)


def test_a_killed_journal_that_was_copied_whole_is_opened_and_closed(killed: Files, tmp_path: Path) -> None:
    path = laid(killed, tmp_path)
    with contextlib.closing(journal_file.read_only(path)) as db:
        assert db.execute("SELECT count(*) FROM outcomes").fetchone() == (REQUESTS + 10,)
    all_told(path)
    assert set(read(path)) == {""}, "what is closed needs nothing beside it"


def test_a_process_that_dies_while_it_opens_what_another_left_leaves_it_whole(
    killed: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of writing down, once more, how much the journal holds."""
    like = all_told(laid(killed, tmp_path))
    for step in ("ftruncate", "pwrite", "fsync"):
        path = laid(killed, tmp_path)
        real = getattr(os, step)

        def die(*told: object, real: Callable[..., object] = real) -> None:
            real(*told)
            raise OSError(errno.EIO, "the process died")

        with monkeypatch.context() as patched:
            patched.setattr(f"data_gen.llm.journal_check.os.{step}", die)
            with pytest.raises(JournalError, match="the process died"):
                all_told(path)
        assert all_told(path) == like


@pytest.mark.parametrize("version", [1, 2, 3, 4, 6])
def test_another_format_is_named_and_left_as_it_is(version: int, closed: Files, tmp_path: Path) -> None:
    path = laid(closed, tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    before = read(path)
    with pytest.raises(JournalError, match=f"has format {version}, this program reads 5; use its version"):
        all_told(path)
    assert read(path) == before


FOREIGN: dict[str, Callable[[], bytes]] = {
    "text": lambda: b"years of work\n" * 1000,
    "JSON": lambda: b'{"replies": []}',
    "zeros": lambda: bytes(8192),
    "another log": lambda: b"\x37\x7f\x06\x82" + bytes(4096),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_program_is_named_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    path = laid({"": FOREIGN[kind]()}, tmp_path)
    before = read(path)
    with pytest.raises(JournalError, match=r"journal\.sqlite"):
        all_told(path)
    assert read(path) == before

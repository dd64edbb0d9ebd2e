"""The tables of batch jobs: what was begun is found again, and no reply is kept longer than it is needed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_gen.llm import jobs_file, journal_file
from data_gen.llm.chat import ChatRequest, Message, RequestKey
from data_gen.llm.jobs_file import Job
from data_gen.llm.journal_file import Outcome

REPLY = Outcome("reply", "because \ud800", "stop", "m-1", 7, 2, 1, 0.0)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(journal_file.connect(tmp_path / "journal.sqlite")) as db, journal_file.transaction(db):
        jobs_file.create(db)
        jobs_file.create(db)  # as each opening does
        yield db


def test_a_job_is_open_from_its_intent_to_its_close_for_the_service_that_began_it(db: sqlite3.Connection) -> None:
    job = Job("label-1", "m", {"digest-1": "echo-1", "digest-2": "echo-2"})
    jobs_file.intend(db, job=job, service="here")
    jobs_file.intend(db, job=Job("label-2", "m", {"digest-3": "echo-3"}), service="there")
    assert jobs_file.open_jobs(db, service="here") == [job]
    jobs_file.name(db, label="label-1", as_="batch_7")
    assert jobs_file.open_jobs(db, service="here") == [Job("label-1", "m", job.echoes, "batch_7")]
    jobs_file.close(db, label="label-1")
    assert jobs_file.open_jobs(db, service="here") == []
    jobs_file.forget(db, label="label-2")
    assert jobs_file.open_jobs(db, service="there") == []


def test_a_request_may_be_in_one_job_after_another(db: sqlite3.Connection) -> None:
    for label in ("first", "second"):
        jobs_file.intend(db, job=Job(label, "m", {"digest": "echo"}), service="here")
    assert [job.label for job in jobs_file.open_jobs(db, service="here")] == ["first", "second"]


def test_the_first_of_two_replies_is_kept_whole_with_half_a_surrogate_pair(db: sqlite3.Connection) -> None:
    refused = Outcome("refused", "flagged", "stop", "", 0, 0, 0, 0.0)
    jobs_file.keep(db, outcomes=[("a", REPLY), ("b", refused)])
    jobs_file.keep(db, outcomes=[("a", REPLY._replace(text="no"))])
    assert jobs_file.outcome(db, digest="a") == REPLY
    assert jobs_file.outcome(db, digest="b") == refused
    assert jobs_file.outcome(db, digest="c") is None
    assert jobs_file.kept(db) == {"a", "b"}


def test_what_the_journal_holds_is_kept_no_longer(db: sqlite3.Connection) -> None:
    request = ChatRequest(
        key=RequestKey("seed-1", 1, "answer"),
        model="m",
        messages=(Message("user", "why?"),),
        temperature=1.0,
        top_p=1.0,
        max_tokens=8,
        seed=0,
    )
    jobs_file.keep(db, outcomes=[(request.digest, REPLY), ("other", REPLY)])
    assert jobs_file.tidy(db) == set()
    journal_file.save_outcome(db, digest=request.digest, request=request, outcome=REPLY)
    assert jobs_file.close(db, label="any") == {request.digest}
    assert jobs_file.kept(db) == {"other"}

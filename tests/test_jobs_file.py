"""The tables of batch jobs: what was begun is found again, with what it was expected to cost."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_gen.llm import jobs_file, journal_file
from data_gen.llm.chat import RequestKey, Spent
from data_gen.llm.jobs_file import Asked, Job
from data_gen.llm.journal_file import Outcome


def asked(number: int) -> Asked:
    return Asked(RequestKey(f"seed \ud800 {number}", number, "answer"), f"echo-{number}", Spent(1, number, 64, 0.5))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(journal_file.connect(tmp_path / "journal.sqlite")) as db, journal_file.transaction(db):
        jobs_file.create(db)
        jobs_file.create(db)  # as each opening does
        yield db


def test_a_job_is_open_from_its_intent_to_its_close_for_the_service_that_began_it(db: sqlite3.Connection) -> None:
    job = Job("label-1", "m", {"digest-1": asked(1), "digest-2": asked(2)})
    jobs_file.intend(db, job=job, service="here")
    jobs_file.intend(db, job=Job("label-2", "m", {"digest-3": asked(3)}), service="there")
    assert jobs_file.open_jobs(db, service="here") == [job]
    assert jobs_file.elsewhere(db, services=["here"]) == {"there": 1}
    jobs_file.name(db, label="label-1", as_="batch_7")
    assert jobs_file.open_jobs(db, service="here") == [Job("label-1", "m", job.requests, "batch_7")]
    jobs_file.close(db, label="label-1")
    assert jobs_file.open_jobs(db, service="here") == []
    jobs_file.give_up(db, jobs=jobs_file.open_jobs(db, service="there"))
    assert jobs_file.open_jobs(db, service="there") == []


def test_a_request_may_be_in_one_job_after_another(db: sqlite3.Connection) -> None:
    for label in ("first", "second"):
        jobs_file.intend(db, job=Job(label, "m", {"digest": asked(1)}), service="here")
    assert [job.label for job in jobs_file.open_jobs(db, service="here")] == ["first", "second"]


def test_what_the_journal_holds_is_unanswered_no_longer(db: sqlite3.Connection) -> None:
    job = Job("label", "m", {"a": asked(1), "b": asked(2), "c": asked(3)})
    reply = Outcome("reply", "because \ud800", "stop", "m-1", 7, 2, 1, 0.25)
    journal_file.save_outcome(db, digest="a", key=job.requests["a"].key, outcome=reply)
    refused = Outcome("refused", "flagged", "stop", "", 0, 0, 0, 0.0)
    journal_file.save_outcome(db, digest="c", key=job.requests["c"].key, outcome=refused)
    assert jobs_file.unanswered(db, job=job) == {"b": Spent(1, 2, 64, 0.5)}


def test_a_job_request_that_was_changed_is_named(db: sqlite3.Connection) -> None:
    jobs_file.intend(db, job=Job("label", "m", {"digest": asked(1)}), service="here")
    db.execute("UPDATE job_requests SET usd = 0.0")
    with pytest.raises(sqlite3.DatabaseError, match="a row of job_requests is not as it was written"):
        jobs_file.open_jobs(db, service="here")

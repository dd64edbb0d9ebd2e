"""Batch jobs in the journal's SQLite file: which were begun, and what they asked.

A job is written down before it is created, so that its label finds it at the provider whatever happens in between.
What it answers goes to the journal's outcomes, as what is answered online.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_gen.llm import journal_file
from data_gen.llm.chat import RequestKey, Spent
from data_gen.llm.journal_check import checked
from data_gen.llm.journal_file import insert_row

_TABLES = (
    """CREATE TABLE IF NOT EXISTS jobs (
      label TEXT PRIMARY KEY, service TEXT NOT NULL, model TEXT NOT NULL, name TEXT, is_open INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS job_requests (
      label TEXT NOT NULL, digest TEXT NOT NULL, echo TEXT NOT NULL, lineage TEXT NOT NULL, round INTEGER NOT NULL,
      purpose TEXT NOT NULL, calls INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
      usd REAL NOT NULL, checksum INTEGER NOT NULL,
      PRIMARY KEY (label, digest)
    ) WITHOUT ROWID""",
)


class Asked(NamedTuple):
    """A request of a job."""

    key: RequestKey
    echo: str
    """What the provider echoes of it."""
    reserved: Spent
    """What it was expected to cost when it was sent."""


@dataclass
class Job:
    """A job whose results have not been read yet."""

    label: str
    """What it is known by here and, as a mark on it, at the provider."""
    model: str
    requests: Mapping[str, Asked] = field(repr=False)
    """By digest."""
    name: str | None = None
    """The provider's name for it; None while it may not exist there."""


def create(db: sqlite3.Connection) -> None:
    """Makes the tables where they are not there yet."""
    for table in _TABLES:
        db.execute(table)


def intend(db: sqlite3.Connection, *, job: Job, service: str) -> None:
    """Writes a job down that is about to be created."""
    insert_row(db, "jobs", (job.label, service, job.model, None, 1))
    for digest, (key, echo, (calls, *tokens, usd)) in job.requests.items():
        place = (key.lineage, key.round, key.purpose)
        insert_row(db, "job_requests", (job.label, digest, echo, *place, calls, *tokens, float(usd)))


def name(db: sqlite3.Connection, *, label: str, as_: str) -> None:
    db.execute("UPDATE jobs SET name = ? WHERE label = ?", (as_, label))
    _seal(db, label=label)


def forget(db: sqlite3.Connection, *, label: str) -> None:
    """Strikes out a job that never came to be."""
    db.execute("DELETE FROM jobs WHERE label = ?", (label,))
    db.execute("DELETE FROM job_requests WHERE label = ?", (label,))


def open_jobs(db: sqlite3.Connection, *, service: str) -> list[Job]:
    """The jobs of a service whose results have not been read, oldest file order aside."""
    select = "SELECT label, model, name FROM jobs WHERE is_open AND service = ? ORDER BY label"
    return [Job(label, model, _requests(db, label=label), at) for label, model, at in db.execute(select, (service,))]


def _requests(db: sqlite3.Connection, *, label: str) -> dict[str, Asked]:
    rows = db.execute("SELECT * FROM job_requests WHERE label = ?", (label,)).fetchall()
    checked_rows = (checked(row, table="job_requests") for row in rows)
    return {
        digest: Asked(RequestKey(lineage, round_, purpose), echo, Spent(*reserved))
        for _, digest, echo, lineage, round_, purpose, *reserved in checked_rows
    }


def unanswered(db: sqlite3.Connection, *, job: Job) -> dict[str, Spent]:
    """What was reserved for each request of a job to which the journal holds no reply, by digest."""
    return {
        digest: asked.reserved
        for digest, asked in job.requests.items()
        if journal_file.outcome(db, digest=digest) is None
    }


def elsewhere(db: sqlite3.Connection, *, services: Iterable[str]) -> dict[str, int]:
    """How many requests are in open jobs of services other than these, by service."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone() is None:
        return {}  # there never was a job
    select = "SELECT service, COUNT(*) FROM jobs JOIN job_requests USING (label) WHERE is_open GROUP BY service"
    return {service: count for service, count in db.execute(select) if service not in services}


def give_up(db: sqlite3.Connection, *, jobs: Iterable[Job]) -> None:
    """Strikes out jobs that nobody will read."""
    for job in jobs:
        forget(db, label=job.label)


def close(db: sqlite3.Connection, *, label: str) -> None:
    """Ends a job, all of whose replies are in the journal."""
    db.execute("UPDATE jobs SET is_open = 0 WHERE label = ?", (label,))
    _seal(db, label=label)
    db.execute("DELETE FROM job_requests WHERE label = ?", (label,))


def _seal(db: sqlite3.Connection, *, label: str) -> None:
    """Puts the checksum of a job that was changed right."""
    changed = "checksum(label, service, model, name, is_open)"
    db.execute(f"UPDATE jobs SET checksum = {changed} WHERE label = ?", (label,))

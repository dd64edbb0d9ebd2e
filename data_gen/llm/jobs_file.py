"""Batch jobs in the journal's SQLite file: which were begun, what they asked, and what came back.

A job is written down before it is created, so that its label finds it at the provider whatever happens in between.
Replies are kept here from the moment a job's results are read until the journal has each under its own request.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_gen.llm.journal_check import checked
from data_gen.llm.journal_file import Outcome, insert_row

_TABLES = (
    """CREATE TABLE IF NOT EXISTS jobs (
      label TEXT PRIMARY KEY, service TEXT NOT NULL, model TEXT NOT NULL, name TEXT, is_open INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS job_requests (
      label TEXT NOT NULL, digest TEXT NOT NULL, echo TEXT NOT NULL, checksum INTEGER NOT NULL,
      PRIMARY KEY (label, digest)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS job_replies (
      digest TEXT PRIMARY KEY, outcome TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
      model TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
      cached_tokens INTEGER NOT NULL, usd REAL NOT NULL, checksum INTEGER NOT NULL
    )""",
)


@dataclass
class Job:
    """A job whose results have not been read yet."""

    label: str
    """What it is known by here and, as a mark on it, at the provider."""
    model: str
    echoes: Mapping[str, str] = field(repr=False)
    """Digest of each request in it -> what the provider echoes of that request."""
    name: str | None = None
    """The provider's name for it; None while it may not exist there."""


def create(db: sqlite3.Connection) -> None:
    """Makes the tables where they are not there yet."""
    for table in _TABLES:
        db.execute(table)


def intend(db: sqlite3.Connection, *, job: Job, service: str) -> None:
    """Writes a job down that is about to be created."""
    insert_row(db, "jobs", (job.label, service, job.model, None, 1))
    for digest, echo in job.echoes.items():
        insert_row(db, "job_requests", (job.label, digest, echo))


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
    return [
        Job(
            label,
            model,
            dict(db.execute("SELECT digest, echo FROM job_requests WHERE label = ?", (label,))),
            name_at_provider,
        )
        for label, model, name_at_provider in db.execute(select, (service,)).fetchall()
    ]


def elsewhere(db: sqlite3.Connection, *, services: Iterable[str]) -> dict[str, int]:
    """How many requests are in open jobs of services other than these, by service."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone() is None:
        return {}  # there never was a job
    select = "SELECT service, COUNT(*) FROM jobs JOIN job_requests USING (label) WHERE is_open GROUP BY service"
    return {service: count for service, count in db.execute(select) if service not in services}


def asked(db: sqlite3.Connection, *, services: Iterable[str]) -> list[str]:
    """The digests of the requests in the open jobs of services."""
    return [digest for service in services for job in open_jobs(db, service=service) for digest in job.echoes]


def give_up(db: sqlite3.Connection, *, services: Iterable[str]) -> None:
    """Strikes out the open jobs of services."""
    for service in services:
        for job in open_jobs(db, service=service):
            forget(db, label=job.label)


def keep(db: sqlite3.Connection, *, outcomes: Iterable[tuple[str, Outcome]]) -> None:
    """Keeps (digest, outcome) pairs; of two for one digest, the first."""
    for digest, outcome in outcomes:
        *values, usd = outcome
        insert_row(db, "job_replies", (digest, *values, float(usd)), of_two="first")


def close(db: sqlite3.Connection, *, label: str) -> set[str]:
    """Ends a job, all of whose results are kept; returns the digests that the journal holds by now, kept no longer."""
    db.execute("UPDATE jobs SET is_open = 0 WHERE label = ?", (label,))
    _seal(db, label=label)
    db.execute("DELETE FROM job_requests WHERE label = ?", (label,))
    return tidy(db)


def tidy(db: sqlite3.Connection) -> set[str]:
    """Drops, and names, the replies that the journal holds."""
    gone = db.execute("DELETE FROM job_replies WHERE digest IN (SELECT digest FROM outcomes) RETURNING digest")
    return {digest for (digest,) in gone.fetchall()}


def kept(db: sqlite3.Connection) -> set[str]:
    """The digests whose outcome is kept."""
    return {digest for (digest,) in db.execute("SELECT digest FROM job_replies")}


def outcome(db: sqlite3.Connection, *, digest: str) -> Outcome | None:
    """What a job answered to a request; None if none did, or the journal holds it by now."""
    row = db.execute("SELECT * FROM job_replies WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else Outcome(*checked(row, table="job_replies")[1:])


def _seal(db: sqlite3.Connection, *, label: str) -> None:
    """Puts the checksum of a job that was changed right."""
    changed = "checksum(label, service, model, name, is_open)"
    db.execute(f"UPDATE jobs SET checksum = {changed} WHERE label = ?", (label,))

"""The journal's SQLite file: its tables, how it is opened and checked, and what is done to it in a transaction.

Every change here runs inside a transaction that `journal.py` commits. `in_flight` holds a mark for each request that
was passed on and has no outcome yet, `outcomes` the replies and the refusals, both by the digest of the request;
`lineages` holds what came of each seed, `decisions` what a run settled for all of its lineages. How damage to any of
that is found is said in `journal_check.py`.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from configs.errors import UserError
from data_gen.llm import journal_check
from data_gen.llm.chat import NOTHING, ChatReply, FinishReason, Permanent, Purpose, RequestKey, Spent
from data_gen.llm.journal_check import checked, checksum, transaction

_APPLICATION_ID = 0x57495A4A  # "WIZJ", in the file's header
_FORMAT = 5
_LOCK_SECONDS = 2.0
_PAGE = 256  # lineages in memory at a time

_SCHEMA = f"""
BEGIN;
CREATE TABLE in_flight (
  digest TEXT PRIMARY KEY, lineage TEXT NOT NULL, round INTEGER NOT NULL, purpose TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcomes (
  digest TEXT PRIMARY KEY, lineage TEXT NOT NULL, round INTEGER NOT NULL, purpose TEXT NOT NULL,
  outcome TEXT NOT NULL CHECK (outcome IN ('reply', 'refused')), text TEXT NOT NULL,
  finish_reason TEXT NOT NULL, model TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, usd REAL NOT NULL, checksum INTEGER NOT NULL
);
CREATE INDEX outcomes_of_lineage ON outcomes (lineage, round);
CREATE TABLE lineages (
  "index" INTEGER PRIMARY KEY, seed_id TEXT NOT NULL, payload TEXT NOT NULL, finished INTEGER NOT NULL,
  usd REAL NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE decisions (name TEXT PRIMARY KEY, payload TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE totals (
  possibly_paid_twice INTEGER, calls INTEGER, input_tokens INTEGER, output_tokens INTEGER, usd REAL,
  commits INTEGER, is_open INTEGER, checksum INTEGER
);
INSERT INTO totals VALUES (0, 0, 0, 0, 0.0, 0, 0, {checksum(0, 0, 0, 0, 0.0, 0, 0)});
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""

_SPENT = "calls, input_tokens, output_tokens, usd"


_DAMAGED = (
    "the file is damaged; put back a copy, save what can be read with `sqlite3 FILE .recover`, or move it away "
    "and pay anew"
)
_ADVICE = {
    sqlite3.SQLITE_ERROR: _DAMAGED,  # its tables are others than were made
    sqlite3.SQLITE_BUSY: "it is open in another process; wait for that run to end, or stop it",
    sqlite3.SQLITE_LOCKED: "it is open in another process; wait for that run to end, or stop it",
    sqlite3.SQLITE_NOTADB: "the file is damaged or no SQLite database; put back a copy, or move it away and pay anew",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: "the disk is full; free some space and start the same command again",
    sqlite3.SQLITE_READONLY: "the file or its folder may not be written; change the permissions and start again",
    sqlite3.SQLITE_IOERR: "the disk refused to read or write; mend that and start the same command again",
    sqlite3.SQLITE_CANTOPEN: "it can not be opened; it must be a file in an existing local folder that is writable",
}


class JournalError(UserError):
    """The journal can not be opened or written; nothing that was committed before is lost."""


@dataclass(frozen=True)
class SavedLineage:
    """What came of a seed: for good if `finished`, else until the budget was spent."""

    index: int
    seed_id: str
    payload: str
    finished: bool
    usd: float = 0.0
    """What its requests cost."""


class Totals(NamedTuple):
    """Of the whole file, over all restarts."""

    possibly_paid_twice: int
    spent: Spent


class Outcome(NamedTuple):
    """What came of a request for good: a reply, or a refusal whose message is `text`."""

    kind: Literal["reply", "refused"]
    text: str
    finish_reason: FinishReason
    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    usd: float

    @property
    def spent(self) -> Spent:
        return Spent(int(self.kind == "reply"), self.input_tokens, self.output_tokens, self.usd)

    def reply(self) -> ChatReply:
        """The reply; raises `Permanent` for a refusal."""
        if self.kind == "refused":
            raise Permanent(self.text, scope="request")
        return ChatReply(
            text=self.text,
            finish_reason=self.finish_reason,
            model=self.model,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            usd=self.usd,
        )


def connect(path: Path) -> sqlite3.Connection:
    """Opens or creates the file under an exclusive lock; marks that an earlier process left are counted and cleared.

    Raises:
      JournalError: the file is damaged, locked by another process, not writable, or of another program.
    """
    try:
        db = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise explained(path, error) from error
    try:
        _prepare(db)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA synchronous = FULL")
        _check(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        with transaction(db):
            _count_marks(db)
    except (sqlite3.Error, JournalError, UnicodeDecodeError) as error:
        db.close()
        raise error if isinstance(error, JournalError) else explained(path, error) from error
    return db


def read_only(path: Path) -> sqlite3.Connection:
    """An existing journal, to look at while no run has it open.

    Raises:
      JournalError: there is none, it is damaged, of another program, or open in a run.
    """
    if not path.is_file():
        raise JournalError(f"{path}: there is no journal; name the folder of a wizard evolve that was begun")
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_LOCK_SECONDS)
    except sqlite3.Error as error:
        raise explained(path, error) from error
    try:
        _prepare(db)
        _check(db, path)
    except (sqlite3.Error, JournalError, UnicodeDecodeError) as error:
        db.close()
        raise error if isinstance(error, JournalError) else explained(path, error) from error
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogatepass")
    db.create_function("checksum", -1, checksum, deterministic=True)


def totals(db: sqlite3.Connection) -> Totals:
    lost, *spent = db.execute(f"SELECT possibly_paid_twice, {_SPENT} FROM totals").fetchone()
    return Totals(lost, Spent(*spent))


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Creates the tables in a new file; refuses, untouched, a file that is damaged or not ours."""
    ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
    if not tables:
        db.executescript(_SCHEMA)
    ((application,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    if application != _APPLICATION_ID:
        raise JournalError(f"{path}: this SQLite file is no journal of replies; name another file")
    if version != _FORMAT:
        raise JournalError(f"{path}: the journal has format {version}, this program reads {_FORMAT}; use its version")
    ((damage,),) = db.execute("PRAGMA integrity_check(1)")
    if damage != "ok":
        raise explained(path, journal_check.Damaged(damage))
    with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(_SCHEMA)
        for table in fresh.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL").fetchall():
            if db.execute("SELECT name, sql FROM sqlite_master WHERE name = ?", table[:1]).fetchone() != table:
                raise explained(path, journal_check.Damaged(f"{table[0]} is not as it was made"))
    journal_check.check_rows(db)
    if missing := journal_check.check_commits(db, path):
        raise JournalError(f"{path}: {missing}")


def explained(path: Path, error: Exception) -> JournalError:
    """What to do about an error; it names the file."""
    if isinstance(error, OSError):
        code = sqlite3.SQLITE_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else sqlite3.SQLITE_IOERR
    elif isinstance(error, UnicodeDecodeError):
        code = sqlite3.SQLITE_CORRUPT
    else:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only refine the primary code
    advice = _ADVICE.get(code, "it can not be written").replace("FILE", str(path))
    return JournalError(f"{path}: {advice} ({error})")


def _utf8(text: str) -> bytes:
    """Text as SQLite keeps it; lone surrogates, which JSON allows and UTF-8 does not, survive the round trip."""
    return text.encode("utf-8", "surrogatepass")


def insert_row(
    db: sqlite3.Connection,
    table: str,
    values: journal_check.Values,
    *,
    of_two: Literal["none", "first", "last"] = "none",
) -> None:
    """A new row, with its checksum in the last column; `of_two` says which one stays where its key is taken."""
    marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in values)
    kept = [_utf8(value) if isinstance(value, str) else value for value in values]
    verb = {"none": "INSERT", "first": "INSERT OR IGNORE", "last": "INSERT OR REPLACE"}[of_two]
    db.execute(f"{verb} INTO {table} VALUES ({marks}, ?)", (*kept, checksum(*values)))


def outcome_of(reply: ChatReply) -> Outcome:
    tokens = (reply.input_tokens, reply.output_tokens, reply.cached_tokens)
    return Outcome("reply", reply.text, reply.finish_reason, reply.model, *tokens, reply.usd)


def refusal(error: Permanent) -> Outcome:
    return Outcome("refused", str(error), "stop", "", 0, 0, 0, 0.0)


def has_outcomes(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM outcomes LIMIT 1").fetchone() is not None


def outcome(db: sqlite3.Connection, *, digest: str) -> Outcome | None:
    """What came of the request before, if anything."""
    known = db.execute("SELECT * FROM outcomes WHERE digest = ?", (digest,)).fetchone()
    return None if known is None else Outcome(*checked(known, table="outcomes")[4:])


def mark(db: sqlite3.Connection, *, digest: str, key: RequestKey) -> None:
    """The request is about to be sent."""
    db.execute(
        "INSERT OR REPLACE INTO in_flight VALUES (?, CAST(? AS TEXT), ?, ?)",
        (digest, _utf8(key.lineage), key.round, key.purpose),
    )


def save_outcome(db: sqlite3.Connection, *, digest: str, key: RequestKey, outcome: Outcome) -> None:
    kind, text, finish_reason, model, *tokens, cached, usd = outcome
    row = (digest, key.lineage, key.round, key.purpose, kind, text, finish_reason, model, *tokens, cached, float(usd))
    insert_row(db, "outcomes", row)
    unmark(db, digest=digest)
    _add(db, outcome.spent)


def unmark(db: sqlite3.Connection, *, digest: str) -> None:
    db.execute("DELETE FROM in_flight WHERE digest = ?", (digest,))


def count_lost(db: sqlite3.Connection, *, digest: str, assumed: Spent = NOTHING) -> None:
    """The request may have been answered, and is `assumed` to have cost so much."""
    unmark(db, digest=digest)
    _add(db, assumed)
    db.execute("UPDATE totals SET possibly_paid_twice = possibly_paid_twice + 1")


def _count_marks(db: sqlite3.Connection) -> None:
    """Requests that were on the wire when a process died are taken to have cost what others did on average."""
    ((lost,),) = db.execute("SELECT count(*) FROM in_flight")
    mean = "total(input_tokens) / count(*), total(output_tokens) / count(*), total(usd) / count(*)"
    ((tokens_in, tokens_out, usd),) = db.execute(f"SELECT {mean} FROM outcomes WHERE outcome = 'reply'")
    _add(db, Spent(lost, round(lost * (tokens_in or 0)), round(lost * (tokens_out or 0)), lost * (usd or 0.0)))
    db.execute("UPDATE totals SET possibly_paid_twice = possibly_paid_twice + ?", (lost,))
    db.execute("DELETE FROM in_flight")


def _add(db: sqlite3.Connection, spent: Spent) -> None:
    db.execute(
        "UPDATE totals SET calls = calls + ?, input_tokens = input_tokens + ?, output_tokens = output_tokens + ?, "
        "usd = usd + ?",
        spent,
    )


def save_lineage(
    db: sqlite3.Connection, *, index: int, seed_id: str, payload: str, finished: bool, usd: float = 0.0
) -> None:
    insert_row(db, "lineages", (index, seed_id, payload, int(finished), float(usd)), of_two="last")


def lineages_after(db: sqlite3.Connection, *, index: int) -> list[SavedLineage]:
    """The next some hundred saved lineages, by index."""
    rows = db.execute('SELECT * FROM lineages WHERE "index" > ? ORDER BY "index" LIMIT ?', (index, _PAGE))
    lineages = (checked(row, table="lineages") for row in rows)
    return [SavedLineage(index, seed_id, payload, bool(done), usd) for index, seed_id, payload, done, usd in lineages]


def save_decision(db: sqlite3.Connection, *, name: str, payload: str) -> None:
    insert_row(db, "decisions", (name, payload), of_two="last")


def decision(db: sqlite3.Connection, *, name: str) -> str | None:
    """What the run settled under this name; None while it has not."""
    row = db.execute("SELECT * FROM decisions WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(checked(row, table="decisions")[1])


def lineage_payload(db: sqlite3.Connection, *, index: int) -> str | None:
    """What came of a seed so far; None where nothing did yet."""
    row = db.execute('SELECT * FROM lineages WHERE "index" = ?', (index,)).fetchone()
    return None if row is None else str(checked(row, table="lineages")[2])


def spent_by_round(db: sqlite3.Connection, *, lineage: str, purpose: Purpose | None = None) -> dict[int, Spent]:
    """What a lineage cost, by round; of one purpose alone, if one is named."""
    sums = "count(*), sum(input_tokens), sum(output_tokens), sum(usd)"
    rows = db.execute(
        f"SELECT round, {sums} FROM outcomes WHERE lineage = ? AND outcome = 'reply' "
        "AND purpose = coalesce(?, purpose) GROUP BY round",
        (lineage, purpose),
    )
    return {round_: Spent(*spent) for round_, *spent in rows}


def spent_by_purpose(db: sqlite3.Connection) -> dict[tuple[int, str], Spent]:
    """What all of the run cost, by round and by what the requests were for."""
    sums = "count(*), sum(input_tokens), sum(output_tokens), sum(usd)"
    rows = db.execute(
        f"SELECT round, purpose, {sums} FROM outcomes WHERE outcome = 'reply' GROUP BY round, purpose "
        "ORDER BY round, purpose"
    )
    return {(round_, purpose): Spent(*spent) for round_, purpose, *spent in rows}

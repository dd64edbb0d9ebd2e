"""Whether a journal's file holds what was written to it: every row has a checksum, and every commit is counted.

SQLite finds damage to the order of its pages, and in its log; what stands inside a page it takes as it comes, and
the rest of a log after a damaged place it takes for what a power cut left. So each row ends with a checksum of its
own. And while a journal is open, the file `journal.sqlite-commits` beside it says how many transactions are on the
disk: where the database holds fewer, its log is gone or was cut off, and with it replies that were paid for.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.folder import fsync_folder

_COUNT_BYTES = 20

COLUMN = "checksum"
"""The last column of a table whose rows are checked."""

Values = tuple[Any, ...]


class Damaged(sqlite3.DatabaseError):
    """What was read is not what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def checksum(*values: object) -> int:
    """CRC-32 of a row's values, of which each is text, a number or NULL, and their types."""
    text = repr([float(value) if isinstance(value, float) else value for value in values])
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def checked(row: Values, *, table: str) -> Values:
    """A row without its checksum; raises `Damaged` where that is another's."""
    if checksum(*row[:-1]) != row[-1]:
        raise Damaged(f"a row of {table} is not as it was written: {str(row[0])[:80]!r}")
    return row[:-1]


def check_rows(db: sqlite3.Connection) -> None:
    """Reads every row that has a checksum: 10 seconds for the 624,000 replies of a full run.

    Raises:
      sqlite3.Error: `Damaged`, or what SQLite found.
    """
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    for table in tables:
        rows = db.execute(f'SELECT * FROM "{table}"')
        if rows.description[-1][0] != COLUMN:
            continue
        try:
            for row in rows:
                checked(row, table=table)
        except UnicodeDecodeError as error:
            raise Damaged(f"a row of {table} is no text ({error.reason})") from error


class Commits:
    """The count beside an open journal, which it marks open, in the database itself and not only in its log.

    Raises:
      OSError, sqlite3.Error: the disk refuses.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._path = _count_file(path)
        self._count = -1
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.note(db)
            os.ftruncate(self._file, _COUNT_BYTES)  # an empty file would read as a damaged one to who comes next
            os.fsync(self._file)
            fsync_folder(path.parent)
            with transaction(db):
                db.execute("UPDATE totals SET is_open = 1")
            db.execute("PRAGMA wal_checkpoint").fetchall()
            self.note(db)
        except BaseException:
            os.close(self._file)
            raise

    def note(self, db: sqlite3.Connection) -> None:
        """To be called after a transaction: what it changed is on the disk."""
        count = _commits(db)
        if count != self._count:
            self._count = count
            # Not forced to the disk: after a power cut an earlier count may stand here, and that is never too high.
            os.pwrite(self._file, b"%0*d\n" % (_COUNT_BYTES - 1, count), 0)

    def end(self, db: sqlite3.Connection) -> None:
        """Marks the journal closed, closes it, and removes the count."""
        with transaction(db):
            db.execute("UPDATE totals SET is_open = 0")
        db.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Without `end`, the journal stays marked open, as where a process was killed."""
        os.close(self._file)


def check_commits(db: sqlite3.Connection, path: Path) -> str:
    """What is missing of a journal that was not closed, and what to do; empty where nothing is."""
    ((is_open,),) = db.execute("SELECT is_open FROM totals")
    if not is_open:
        return ""
    log, file = path.with_name(f"{path.name}-wal"), _count_file(path)
    mend = (
        f"put the files back as they were beside it; or, to go on with what it still holds and pay anew for the rest, "
        f"write 0 into {file} and start again"
    )
    try:
        count = int(file.read_bytes())
    except (OSError, ValueError):
        return f"a process died with it open, and {file}, which says how much it must hold, is gone or damaged: {mend}"
    missing = count - _commits(db)
    if missing <= 0:
        return ""
    return f"its last {missing:,} commits are missing, for {log}, which holds them, is gone or damaged: {mend}"


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """What is changed while it is entered is changed as one, and counted; what only reads costs no write."""
    changes = db.total_changes
    db.execute("BEGIN")
    try:
        yield
        if db.total_changes > changes:
            db.execute("UPDATE totals SET commits = commits + 1")
            row = "possibly_paid_twice, calls, input_tokens, output_tokens, usd, commits, is_open"
            db.execute(f"UPDATE totals SET checksum = checksum({row})")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                db.execute("ROLLBACK")


def _commits(db: sqlite3.Connection) -> int:
    ((count,),) = db.execute("SELECT commits FROM totals")
    return int(count)


def _count_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-commits")

"""What must be remembered of all rows that were read, on the disk and not in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any, Self

from data_gen.readers.oasst import as_export, message_of
from data_gen.readers.rows import Row, SourceError

_TABLES = """
CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE messages (number INTEGER PRIMARY KEY, tree TEXT, id TEXT, source TEXT, row INTEGER, message TEXT,
                       UNIQUE (tree, id));
BEGIN;
"""


class Scratch:
    """Holds a private database of SQLite open, which keeps 2 MB in memory and the rest in a file without a name."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._database is not None:
            self._database.close()

    def is_new(self, value: Any) -> bool:
        """Whether this row, key by key, comes for the first time."""
        text = json.dumps(value, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).digest()[:16]
        with _told_as_source_error():
            return self._open().execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def add_message(self, row: Row) -> bool:
        """Keeps a flat message of OpenAssistant for its tree; False for one that is there already.

        Raises:
          RowError: it is no whole message.
        """
        message = message_of(row.value)
        tree, name = json.dumps(message["message_tree_id"]), json.dumps(message["message_id"])
        values = (tree, name, row.source, row.number, json.dumps(message))
        insert = "INSERT OR IGNORE INTO messages (tree, id, source, row, message) VALUES (?, ?, ?, ?, ?)"
        with _told_as_source_error():
            return self._open().execute(insert, values).rowcount == 1

    def trees(self) -> Iterator[Row]:
        """The trees of all messages in the order of their first rows, as rows of the tree export."""
        if self._database is None:
            return
        firsts = "SELECT tree, min(number) AS first FROM messages GROUP BY tree ORDER BY first"
        of_tree = "SELECT source, row, message FROM messages WHERE tree = ? ORDER BY number"
        with _told_as_source_error():
            for tree, _ in self._database.execute(firsts):
                found = self._database.execute(of_tree, (tree,)).fetchall()
                source, number, _ = found[0]
                value = as_export([json.loads(message) for _, _, message in found])
                yield Row(source, number, value, fault="" if value else "a message tree whose first message is missing")

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            # Whoever takes the next seed may be another thread than the one that took the last, but never at once.
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._database.executescript(_TABLES)
        return self._database


@contextlib.contextmanager
def _told_as_source_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SourceError(
            f"the rows can not be put in order in a temporary file ({error}): set SQLITE_TMPDIR to a folder with room"
        ) from None

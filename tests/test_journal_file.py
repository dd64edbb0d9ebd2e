"""A journal file that is damaged, locked, foreign or on a full disk is named, with what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from data_gen.llm import journal_file
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import JournalError

CHILD: dict[str, Any] = {
    "stdout": subprocess.PIPE,
    "text": True,
    "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
}


def command(job: str, path: Path, *numbers: int) -> list[str]:
    client = Path(__file__).with_name("journal_client.py")
    return [sys.executable, str(client), job, str(path), *map(str, numbers)]


def rows(path: Path, select: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(select).fetchall()
    finally:
        db.close()


def opened(path: Path) -> None:
    async def run() -> None:
        async with Journal.open(path):
            pass

    asyncio.run(run())


def filled(path: Path) -> None:
    async def run() -> None:
        async with Journal.open(path) as journal:
            for i in range(100):
                await journal.save_lineage(i, seed_id=f"seed-{i}", payload="x" * 500)

    asyncio.run(run())


def test_a_commit_is_one_that_a_power_cut_can_not_undo(tmp_path: Path) -> None:
    with contextlib.closing(journal_file.connect(tmp_path / "journal.sqlite")) as db:
        settings = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    assert settings == [2, "wal"], "2 is FULL"


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    filled(path)
    whole = path.read_bytes()
    page = 4096
    damaged = {
        "cut": whole[: len(whole) // 2],
        "header": b"x" * 100 + whole[100:],
        "page": whole[: 8 * page] + b"\xff" * page + whole[9 * page :],
    }
    for kind, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(JournalError, match="damaged") as raised:
            opened(path)
        assert str(path) in str(raised.value), kind
        assert "move it away" in str(raised.value), kind
        assert isinstance(raised.value, UserError)


def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="no journal"):
        opened(path)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "journal.sqlite"):
        with pytest.raises(JournalError, match="can not be opened") as raised:
            opened(path)
        assert str(path) in str(raised.value)


def test_a_journal_open_in_another_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    holder = subprocess.Popen(command("hold", path), **CHILD)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(JournalError, match="another process"):
            opened(path)
    finally:
        holder.kill()
        holder.communicate()
    opened(path)  # a killed process leaves no lock behind


def test_a_disk_that_refuses_to_write_is_told_to_every_caller_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    child = subprocess.run(command("fill", path), timeout=60, check=True, **CHILD)
    counts, message = child.stdout.splitlines()
    replied, failed, calls = map(int, counts.split())
    assert replied > 0
    assert failed > 0
    assert replied + failed == calls  # nobody hung, nobody got anything else
    assert str(path) in message
    assert "start the same command again" in message
    opened(path)
    assert rows(path, "SELECT count(*) FROM outcomes")[0][0] >= replied

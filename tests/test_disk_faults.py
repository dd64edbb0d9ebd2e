"""A disk that is full, or that breaks, at the k-th write: a stop that names the file, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_files import files, unwatched
from wizard_children import Parent, can_have_a_disk, parent_of_wizards

from configs.folder import read_complete
from configs.loader import dump
from data_gen.config import EvolveConfig, Faults, Measure, Simulated, SimulatedSeeds
from data_gen.generate import generate
from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import JournalError
from wizard_jax.cli import main

CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=6),
    llm=Simulated(faults=Faults(empty=0.1)),
    measure=Measure(diversity_sample=0, duplicates="off"),
    rounds=2,
    records_per_shard=8,
)
ENOUGH = 4000
"""Kilobytes."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    generate(CONFIG, out, progress=unwatched)
    return out


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Parent]:
    """Its processes see a small file system on `disk`, where the machine allows that."""
    folder = tmp_path_factory.mktemp("wizards")
    with parent_of_wizards(folder, disk=disk if can_have_a_disk(disk) else None) as parent:
        yield parent


def evolving(folder: Path, out: Path) -> list[str]:
    file = folder / "config.gin"
    file.write_text(dump(CONFIG))
    return ["evolve", str(file), "--out", str(out)]


def told_once(output: str, out: Path) -> bool:
    """Whether a run said in one message which file can not be written, and what to do."""
    said = [line for line in output.splitlines() if line.startswith("wizard: ")]
    return (
        len(said) == 1
        and "Traceback" not in output
        and (f"wizard: {out}/" in said[0] or f"wizard: {out}: can not be written" in said[0])
        and ("start the same command again" in said[0] or "choose another --out" in said[0])
    )


def went_on(out: Path, whole: Path) -> None:
    """Nothing was lost, and nothing asked again but what the run says so of."""
    summary = read_complete(out)
    assert files(out) == files(whole)
    assert summary["calls"] == read_complete(whole)["calls"] + summary["possibly_paid_twice"]


def fill_up(parent: Parent, folder: Path, disk: Path, whole: Path, *, sizes: range) -> int:
    """Evolves on a disk of each of the sizes (kilobytes), then on one with room; returns how often it was too small."""
    if parent.seen(disk) == disk or not can_have_a_disk(disk):
        pytest.skip("no file system of one's own can be mounted here")
    out, seen = disk / "out", parent.seen(disk) / "out"
    command = evolving(folder, out)
    full = 0
    for kilobytes in sizes:
        shutil.rmtree(seen, ignore_errors=True)
        parent.resize(disk, kilobytes=kilobytes)
        code, output = parent.run(command)
        assert code in (0, 2), output
        if code:
            full += 1
            assert told_once(output, out), output
            assert not (seen / "complete.json").exists()
        parent.resize(disk, kilobytes=ENOUGH)
        code, output = parent.run(command)
        assert code == 0, output
        went_on(seen, whole)
    return full


def test_a_disk_that_is_full_after_any_of_12_sizes_stops_a_run_which_then_goes_on(
    parent: Parent, tmp_path: Path, disk: Path, whole: Path
) -> None:
    assert fill_up(parent, tmp_path, disk, whole, sizes=range(4, 400, 33)) >= 10


@pytest.mark.slow
def test_a_disk_that_is_full_after_any_of_105_sizes_stops_a_run_which_then_goes_on(
    parent: Parent, tmp_path: Path, disk: Path, whole: Path
) -> None:
    assert fill_up(parent, tmp_path, disk, whole, sizes=range(4, 424, 4)) >= 90


def test_a_file_that_may_grow_no_further_after_any_of_8_sizes_stops_a_run_which_then_goes_on(
    parent: Parent, tmp_path: Path, whole: Path
) -> None:
    for most in (600, 1500, 5_000, 20_000, 50_000, 100_000, 150_000, 200_000):
        out = tmp_path / f"out_{most}"
        command = evolving(tmp_path, out)
        code, output = parent.run(command, most_file_bytes=most)
        assert code == 2, output
        assert told_once(output, out), output
        code, output = parent.run(command)
        assert code == 0, output
        went_on(out, whole)


REFUSALS = {"/dev/full": "No space left on device", "/proc/self/mem": "Input/output error"}
WRITTEN = ("seeds.sha256", "rejected.jsonl", "measures.json", "README.md", "report.html", "complete.json")


@pytest.mark.parametrize("device", REFUSALS)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_the_disk_refuses_is_named_and_the_run_goes_on(
    name: str, device: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for made in ("complete.json", name):
        (out / made).unlink(missing_ok=True)
    (out / f".{name}.partial").symlink_to(device)  # every write to it is refused
    assert main(evolving(tmp_path, out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"wizard: {out / name}: {REFUSALS[device]}; mend that and start the same command again")
    assert not (out / "complete.json").exists()
    (out / f".{name}.partial").unlink()
    assert main(evolving(tmp_path, out)) == 0
    assert files(out) == files(whole)


def test_a_journal_that_can_not_be_read_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "complete.json").unlink()
    (out / "journal.sqlite").unlink()
    (out / "journal.sqlite").symlink_to("/proc/self/mem")
    assert main(evolving(tmp_path, out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"wizard: {out / 'journal.sqlite'}: ")
    assert "start the same command again" in said or "put back a copy" in said


class Teller:
    def __init__(self) -> None:
        self.asked: list[int] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request.seed)
        return ChatReply(text=f"{request.seed} " * 300, finish_reason="stop", model="m", input_tokens=1)


@pytest.mark.parametrize("pages", range(12, 112, 10))
def test_a_database_that_is_full_at_any_of_10_sizes_tells_every_caller_and_keeps_what_was_told(
    pages: int, tmp_path: Path
) -> None:
    def asking(number: int) -> ChatRequest:
        message = Message("user", f"question {number}")
        key = RequestKey(f"{number}", 0, "answer")
        return ChatRequest(key=key, model="m", messages=(message,), temperature=1, top_p=1, max_tokens=9, seed=number)

    async def run() -> None:
        teller = Teller()
        async with Journal.open(tmp_path / "j") as journal:
            journal._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite says of it what it says of a full disk
            model = journal.wrap(journal.marked(teller))
            outcomes: list[ChatReply | BaseException] = []
            for start in range(0, 400, 20):
                asked = (model.complete(asking(number)) for number in range(start, start + 20))
                outcomes += await asyncio.gather(*asked, return_exceptions=True)
        replies = {number: one for number, one in enumerate(outcomes) if isinstance(one, ChatReply)}
        errors = [one for one in outcomes if isinstance(one, JournalError)]
        assert len(replies) + len(errors) == 400
        assert errors
        assert f"{tmp_path / 'j'}: the disk is full; free some space" in str(errors[0])
        again = Teller()
        async with Journal.open(tmp_path / "j") as journal:
            for number, reply in replies.items():
                assert await journal.wrap(journal.marked(again)).complete(asking(number)) == reply
            assert again.asked == []
            assert journal.possibly_paid_twice >= len(teller.asked) - len(replies)

    asyncio.run(run())


def test_the_run_that_the_others_are_held_to_has_something_to_lose(whole: Path) -> None:
    summary = read_complete(whole)
    assert summary["calls"] > 30
    assert summary["rejected"] > 0
    assert len(list((whole / "dataset").glob("*.tfrecord*"))) == 2

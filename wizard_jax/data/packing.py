"""Conversations packed into rows of L tokens: planned once, for all of them, before training.

The rows are a folder of one ArrayRecord file and a manifest, named by what it was made from, so that it is
made once and found again. How many hosts or workers read it later has no influence on what is in it.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from data_gen import shards
from wizard_jax import chat
from wizard_jax.data.config import DataConfig, DataError
from wizard_jax.data.conversations import Conversations, encode_selected
from wizard_jax.data.order import seeded_order
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer

ROWS = "rows.arrayrecord"
MANIFEST = "manifest.json"
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Row r holds the conversations `items[starts[r] : starts[r + 1]]`, in this order."""

    items: np.ndarray
    """int64 [conversations]"""
    starts: np.ndarray
    """int64 [rows + 1]"""

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.starts.tobytes() + self.items.tobytes()).hexdigest()

    def row(self, index: int) -> np.ndarray:
        return self.items[self.starts[index] : self.starts[index + 1]]


def plan_packing(lengths: np.ndarray, *, seq_len: int, seed: int) -> Plan:
    """Best fit decreasing, or minimum bin slack where that needs fewer rows. Nothing is split.

    Best fit is kept if it needs no more rows than the tokens do. Otherwise row after row is filled: the longest
    conversation left, then those of the rest that fill the row best, found as subset sums in a bitset: the minimum
    bin slack heuristic of Gupta and Ho (1999), with the longest fixed as in Fleszar and Hindi (2002). The seed
    decides which conversations of equal length go where.

    Costs 0.2 s for 22,000 conversations, 0.4 s for 200,000 and 1.4 s for a million (one core, seq_len 2048, lengths
    log-normal with a mean of 568): the more of a length there are, the more rows one search fills.

    Args:
      lengths: int [conversations], each in 1..seq_len.
    """
    lengths = np.asarray(lengths, np.int64)
    assert lengths.size == 0 or (lengths.min() >= 1 and lengths.max() <= seq_len)
    rows = _best_fit(lengths, seq_len=seq_len)
    if len(rows) > -(-int(lengths.sum()) // seq_len):
        rows = min(rows, _minimum_slack(lengths, seq_len=seq_len), key=len)
    # The first conversation of a length in shuffled order goes to the first place for that length, and so on.
    shuffled = seeded_order(len(lengths), seed=seed)
    places = np.fromiter(itertools.chain.from_iterable(rows), np.int64, len(lengths))
    items = np.empty(len(lengths), np.int64)
    items[np.argsort(places, kind="stable")] = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    return Plan(items=items, starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def _minimum_slack(lengths: np.ndarray, *, seq_len: int) -> list[list[int]]:
    """The lengths in each row: the longest left, then those of the rest that fill the row best."""
    counts = np.bincount(lengths).tolist()
    left = np.flatnonzero(counts).tolist()
    rows: list[list[int]] = []
    while left:
        longest = left[-1]
        counts[longest] -= 1
        row = [longest, *_best_fill(left, counts=counts, room=seq_len - longest)]
        counts[longest] += 1
        # The best fill stays the best while there are conversations for it: what is left only gets less.
        uses = collections.Counter(row)
        times = min(counts[length] // used for length, used in uses.items())
        rows.extend([row] * times)
        for length, used in uses.items():
            counts[length] -= used * times
            if not counts[length]:
                del left[bisect.bisect_left(left, length)]
    return rows


def _best_fill(left: Sequence[int], *, counts: Sequence[int], room: int) -> list[int]:
    """Of the lengths `left` (ascending), each up to `counts` times: those whose sum comes closest to `room`.

    Of several such sums of lengths, one with long ones: short ones are worth more later.
    """
    within = (1 << (room + 1)) - 1
    reached = 1  # bit s: some of the lengths seen so far add up to s
    history = []
    for length in reversed(left[: bisect.bisect_right(left, room)]):
        before, copies, step = reached, min(counts[length], room // length), 1
        while copies > 0:
            take = min(step, copies)
            reached |= (reached << (length * take)) & within
            copies, step = copies - take, step * 2
        if reached != before:
            history.append((length, before))
        if reached >> room:
            break
    total = reached.bit_length() - 1
    fill = []
    for length, before in reversed(history):
        while not before >> total & 1:
            fill.append(length)
            total -= length
    assert total == 0
    return fill[::-1]


def _best_fit(lengths: np.ndarray, *, seq_len: int) -> list[list[int]]:
    """The lengths in each row, longest first: each goes into the fullest row that has room for it."""
    rows: list[list[int]] = []
    # with_room[room]: the rows with that much room left; count[room] is how many, for a fast search.
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    count = np.zeros(seq_len + 1, np.int64)
    of_length = np.bincount(lengths)
    for length in np.flatnonzero(of_length)[::-1].tolist():
        todo = int(of_length[length])
        candidates = iter((np.flatnonzero(count[length:]) + length).tolist())
        room = next(candidates, None)
        while todo:
            if room is None:
                row, space = len(rows), seq_len
                rows.append([])
            else:
                row, space = with_room[room].pop(), room
                count[room] -= 1
                if not with_room[room]:
                    room = next(candidates, None)
            # A row that has just been added to is now the fullest with room: it takes all it can.
            taken = min(todo, space // length)
            rows[row].extend([length] * taken)
            with_room[space - taken * length].append(row)
            count[space - taken * length] += 1
            todo -= taken
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackStats:
    """What was packed, and what was lost on the way."""

    seq_len: int
    rows: int
    conversations: int
    tokens: int
    trained_tokens: int
    candidates: int
    """Conversations of the selected rounds and operations, before any loss."""
    truncated: int
    """Packed without their end."""
    dropped: int
    """Left out because they are longer than a row."""
    untrained: int
    """Left out because they hold nothing to train on."""

    @property
    def efficiency(self) -> float:
        """Tokens in rows / tokens that rows can hold."""
        return self.tokens / (self.rows * self.seq_len)

    @property
    def lost_share(self) -> float:
        """Of conversations, those that are not there whole; `truncated` is of the packed ones, the others of all."""
        usable = self.candidates - self.dropped - self.untrained
        every = self.candidates * self.conversations
        return (every - usable * (self.conversations - self.truncated)) / every


@dataclasses.dataclass(frozen=True)
class PackedFolder:
    """Packed rows on disk."""

    path: pathlib.Path
    stats: PackStats
    sha256: str
    """Of the file of rows."""

    @property
    def rows_file(self) -> pathlib.Path:
        return self.path / ROWS

    @property
    def rows(self) -> int:
        return self.stats.rows


class Row(NamedTuple):
    """One packed row without padding. tokens: int32 [n]; trained: bool [n]; lengths: int32 [conversations]."""

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray

    def to_bytes(self) -> bytes:
        """Little-endian uint32: number of conversations, their lengths, then 2 * id + trained for each token."""
        words = (self.tokens.astype(np.uint32) << 1) | self.trained
        parts = (np.array([len(self.lengths)]), self.lengths, words)
        return np.concatenate([part.astype("<u4") for part in parts]).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Row:
        words = np.frombuffer(data, "<u4")
        count = int(words[0])
        lengths, body = words[1 : count + 1].astype(np.int32), words[count + 1 :]
        return cls(tokens=(body >> 1).astype(np.int32), trained=(body & 1).astype(np.bool_), lengths=lengths)


def _silent(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    del done, total, facts


def pack(
    config: DataConfig, tokenizer: Tokenizer, *, cache_dir: pathlib.Path, progress: Progress = _silent
) -> PackedFolder:
    """The packed rows that a config asks for: those in `cache_dir` if they are intact, or made now.

    One process makes them while others that ask for the same wait.

    Raises:
      DataError: nothing selected, too long conversations, too much lost, or conversations that the
        format cannot hold.
      ShardError: the data set is missing or damaged.
    """
    chat_format = chat.get_format(config.chat_format)
    if config.seq_len < 2:
        raise DataError(f"data.seq_len is {config.seq_len}: a row needs at least 2 tokens")
    made_from = {
        "version": _VERSION,
        "data": shards.read_manifest(pathlib.Path(config.dataset)).sha256,
        "tokenizer": tokenizer.sha256,
        "chat_format": dataclasses.asdict(chat_format),
        "seq_len": config.seq_len,
        "selection": dataclasses.asdict(config.selection),
        "truncation": config.truncation,
        "packing_seed": config.packing_seed,
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
    cache_dir = pathlib.Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder = cache_dir / key
    with _lock(cache_dir / f"{key}.lock"):
        packed = _open_packed(folder)
        if packed is None:
            partial = cache_dir / f".{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _build(config, tokenizer, folder=partial, made_from=made_from, progress=progress)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            packed = _open_packed(folder)
            assert packed is not None, f"{folder} was just written and is not intact"
    _refuse_losses(packed.stats, config=config)
    return packed


def _build(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    folder: pathlib.Path,
    made_from: dict[str, Any],
    progress: Progress,
) -> None:
    conversations = encode_selected(config, tokenizer, spool=folder / "spool", progress=progress)
    plan = plan_packing(conversations.lengths, seq_len=config.seq_len, seed=config.packing_seed)
    stats = PackStats(
        seq_len=config.seq_len,
        rows=plan.rows,
        conversations=len(conversations.lengths),
        tokens=int(conversations.lengths.sum()),
        trained_tokens=int(conversations.trained.sum()),
        candidates=conversations.candidates,
        truncated=conversations.truncated,
        dropped=conversations.dropped,
        untrained=conversations.untrained,
    )
    _refuse_losses(stats, config=config)
    _write_rows(folder / ROWS, plan=plan, conversations=conversations, progress=progress)
    conversations.spool.unlink()
    manifest = {
        "made_from": made_from,
        "plan_sha256": plan.sha256,
        "rows_sha256": _sha256(folder / ROWS),
        "stats": dataclasses.asdict(stats),
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _write_rows(file: pathlib.Path, *, plan: Plan, conversations: Conversations, progress: Progress) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), "group_size:1")
    for index in range(plan.rows):
        row = plan.row(index)
        parts = [conversations.read(item) for item in row.tolist()]
        writer.write(
            Row(
                tokens=np.concatenate([tokens for tokens, _ in parts]),
                trained=np.concatenate([trained for _, trained in parts]),
                lengths=conversations.lengths[row],
            ).to_bytes()
        )
        if index % 1000 == 999 or index == plan.rows - 1:
            progress(index + 1, plan.rows, {"doing": "write rows"})
    writer.close()


def _refuse_losses(stats: PackStats, *, config: DataConfig) -> None:
    if stats.lost_share > config.max_lost_share:
        raise DataError(
            f"of {stats.candidates} conversations of {config.dataset}, {stats.truncated} are truncated and "
            f"{stats.dropped} dropped at data.seq_len = {config.seq_len}, and {stats.untrained} hold nothing to "
            f"train on: more than data.max_lost_share = {config.max_lost_share} allows. Raise data.seq_len, "
            "select other records, or raise data.max_lost_share"
        )


def _open_packed(folder: pathlib.Path) -> PackedFolder | None:
    """None unless the folder is there and its rows are those that were written."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not (folder / MANIFEST).is_file() or not (folder / ROWS).is_file():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        stats = PackStats(**manifest["stats"])
        sha256 = manifest["rows_sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    if _sha256(folder / ROWS) != sha256:
        return None
    reader = ArrayRecordReader(str(folder / ROWS))
    rows = reader.num_records()
    reader.close()
    return PackedFolder(path=folder, stats=stats, sha256=sha256) if rows == stats.rows else None


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(file: pathlib.Path) -> Iterator[None]:
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, as does the death of this process

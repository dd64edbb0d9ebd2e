"""Conversations packed into rows of L tokens: planned once, for all of them, before training.

The rows are a folder of one ArrayRecord file and a manifest, named by what it was made from, so that it is
made once and found again. How many hosts or workers read it later has no influence on what is in it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_gen import shards
from wizard_jax import chat
from wizard_jax.data.config import DataConfig, DataError, Part
from wizard_jax.data.conversations import Conversations, encode_selected
from wizard_jax.data.planning import Plan, plan_packing
from wizard_jax.data.rows import Row
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer

ROWS = "rows.arrayrecord"
MANIFEST = "manifest.json"
_VERSION = 3


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """What was packed of one round of one source."""

    source: str
    round: int
    conversations: int
    tokens: int
    trained_tokens: int


@dataclasses.dataclass(frozen=True)
class PackedFolder:
    """Packed rows on disk."""

    path: pathlib.Path
    stats: PackStats
    groups: tuple[Group, ...]
    """By source and round; rows name them by their index here."""
    sha256: str
    """Of the file of rows."""

    @property
    def rows_file(self) -> pathlib.Path:
        return self.path / ROWS

    @property
    def rows(self) -> int:
        return self.stats.rows


def _silent(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    del done, total, facts


def pack(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    cache_dir: pathlib.Path,
    part: Part = "train",
    progress: Progress = _silent,
) -> PackedFolder:
    """The packed rows that a config asks for: those in `cache_dir` if they are intact, or made now.

    The part 'held_out' is that share of lineages which is not in the part 'train' of the same config.

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
        "part": part,
        "held_out": [config.held_out_share, config.held_out_seed],
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
                _build(config, tokenizer, part=part, folder=partial, made_from=made_from, progress=progress)
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
    part: Part,
    folder: pathlib.Path,
    made_from: dict[str, Any],
    progress: Progress,
) -> None:
    conversations = encode_selected(config, tokenizer, part=part, spool=folder / "spool", progress=progress)
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
        "groups": [dataclasses.asdict(group) for group in _groups(conversations)],
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _groups(conversations: Conversations) -> list[Group]:
    numbers = len(conversations.group_names)
    counts = np.bincount(conversations.groups, minlength=numbers).tolist()
    # Sums of float64 are exact below 2**53 tokens.
    tokens = np.bincount(conversations.groups, weights=conversations.lengths, minlength=numbers).tolist()
    trained = np.bincount(conversations.groups, weights=conversations.trained, minlength=numbers).tolist()
    return [
        Group(source=source, round=number, conversations=count, tokens=int(held), trained_tokens=int(learnt))
        for (source, number), count, held, learnt in zip(
            conversations.group_names, counts, tokens, trained, strict=True
        )
    ]


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
                groups=conversations.groups[row],
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
        groups = tuple(Group(**group) for group in manifest["groups"])
        sha256 = manifest["rows_sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    if _sha256(folder / ROWS) != sha256:
        return None
    reader = ArrayRecordReader(str(folder / ROWS))
    rows = reader.num_records()
    reader.close()
    return PackedFolder(folder, stats, groups, sha256) if rows == stats.rows else None


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(file: pathlib.Path) -> Iterator[None]:
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, as does the death of this process

"""Conversations packed into rows of L tokens: planned once, for all of them, before training.

packed/<key>/            named by what it was made from, so that it is made once and found again
  rows-00000-of-00003.arrayrecord  ...
  manifest.json          what it was made from, and every file's rows and SHA-256
  audit.json             what was packed, and what was lost
packed/.<key>.encoded/   token ids, while rows are being made: what is finished in it is not made again after a kill

How many processes make the rows, or read them later, has no influence on what is in them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from configs.folder import write_atomically
from data_gen import shards
from wizard_jax import chat
from wizard_jax.data.audit import Audit, Group, PackStats, describe_long, make_audit
from wizard_jax.data.choosing import choose
from wizard_jax.data.config import DataConfig, DataError, Part
from wizard_jax.data.conversations import encode_members
from wizard_jax.data.encoding import Encoder, Filter
from wizard_jax.data.planning import plan_packing
from wizard_jax.data.row_files import RowFile, RowWriter, is_whole, row_file_count, row_tasks, sha256_of
from wizard_jax.data.workers import in_order, usable_cpus
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer

MANIFEST = "manifest.json"
AUDIT = "audit.json"
_VERSION = 4


class LossError(DataError):
    """More conversations are lost than the config allows."""

    def __init__(self, message: str, *, audit: Audit) -> None:
        super().__init__(message)
        self.audit = audit


@dataclasses.dataclass(frozen=True)
class PackedFolder:
    """Packed rows on disk."""

    path: pathlib.Path
    audit: Audit
    files: tuple[RowFile, ...]

    @property
    def stats(self) -> PackStats:
        return self.audit.stats

    @property
    def groups(self) -> tuple[Group, ...]:
        """By source and round; rows name them by their index here."""
        return self.audit.groups

    @property
    def rows(self) -> int:
        return sum(written.rows for written in self.files)

    @property
    def sha256(self) -> str:
        """Of all rows, in order."""
        return hashlib.sha256("".join(f"{one.rows} {one.sha256}\n" for one in self.files).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What processes work on at a time, at least: large data sets have larger pieces, so that they stay few."""

    chunk_records: int = 1024
    file_rows: int = 16_384


def _silent(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
    del done, total, facts


def pack(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    cache_dir: pathlib.Path,
    part: Part = "train",
    progress: Progress = _silent,
    sizes: Sizes = Sizes(),
) -> PackedFolder:
    """The packed rows that a config asks for: those in `cache_dir` if they are intact, or made now.

    The part 'held_out' is that share of lineages which is not in the part 'train' of the same config. One process
    makes them while others that ask for the same wait. A call that was killed is gone on with: neither a finished
    chunk of conversations nor a finished file of rows is made again.

    Raises:
      DataError: nothing selected, too long conversations, or conversations that the format cannot hold.
      LossError: too much lost. What was found is in `<key>.audit.json` beside the packed folders.
      ShardError: a data set is missing or damaged.
    """
    chat.check_tokenizer(chat.get_format(config.chat_format), tokenizer)
    if config.seq_len < 2:
        raise DataError(f"data.seq_len is {config.seq_len}: a row needs at least 2 tokens")
    manifests = tuple(shards.read_manifest(pathlib.Path(member.dataset)) for member in config.members)
    _refuse_overlap(config, manifests=manifests)
    job = _Job(config, tokenizer, part, manifests, sizes, pathlib.Path(cache_dir))
    job.cache_dir.mkdir(parents=True, exist_ok=True)
    packed = _open_packed(job.folder)
    if packed is None:
        with _lock(job.cache_dir / f"{job.encoded_key}.lock"):
            packed = _open_packed(job.folder)
            if packed is None:
                partial = job.cache_dir / f".{job.key}.partial"
                with _folder_if_filled(job.encoded), _folder_if_filled(partial):
                    if _open_packed(partial) is None:  # one that was killed here had only to give it its name
                        _build(job, partial, progress=progress)
                    shutil.rmtree(job.encoded)
                    shards.put_in_place(partial, job.folder)
                packed = _open_packed(job.folder)
                assert packed is not None, f"{job.folder} was just written and is not intact"
    _refuse_losses(packed.audit, config=config, file=packed.path / AUDIT)
    return packed


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is to be packed, and where."""

    config: DataConfig
    tokenizer: Tokenizer
    part: Part
    manifests: tuple[shards.Manifest, ...]
    sizes: Sizes
    cache_dir: pathlib.Path

    @property
    def encoded_from(self) -> dict[str, Any]:
        """All that token ids depend on."""
        config = self.config
        kept = [
            Filter.of(member.selection, part=self.part, share=config.held_out_share, seed=config.held_out_seed)
            for member in config.members
        ]
        return {
            "version": _VERSION,
            "data": [manifest.sha256 for manifest in self.manifests],
            "records": [dataclasses.asdict(one) for one in kept],
            "tokenizer": self.tokenizer.sha256,
            "chat_format": dataclasses.asdict(chat.get_format(config.chat_format)),
            "seq_len": config.seq_len,
        }

    @property
    def made_from(self) -> dict[str, Any]:
        """With what decides which of the encoded conversations are packed, and how."""
        mixture = self.config.mixture
        limits = {
            "selections": [dataclasses.asdict(member.selection) for member in self.config.members],
            "weights": None if mixture is None else [mixture.weights, mixture.ends],
        }
        return {
            "encoded_from": self.encoded_from,
            "truncation": self.config.truncation,
            "packing_seed": self.config.packing_seed,
            "file_rows": self.sizes.file_rows,
            **(limits if self.part == "train" else {}),
        }

    @functools.cached_property
    def key(self) -> str:
        return _key(self.made_from)

    @functools.cached_property
    def encoded_key(self) -> str:
        return _key(self.encoded_from)

    @property
    def folder(self) -> pathlib.Path:
        return self.cache_dir / self.key

    @property
    def encoded(self) -> pathlib.Path:
        return self.cache_dir / f".{self.encoded_key}.encoded"


def _refuse_overlap(config: DataConfig, *, manifests: Sequence[shards.Manifest]) -> None:
    """An epoch has a conversation as often as it says: so none may be of two members of a mixture."""
    for (one, left), (other, right) in itertools.combinations(zip(config.members, manifests, strict=True), 2):
        ours, theirs = one.selection, other.selection
        lasts = [math.inf if last is None else last for last in (ours.rounds_to, theirs.rounds_to)]
        rounds = max(ours.rounds_from, theirs.rounds_from) <= min(lasts)
        operations = not (ours.operations and theirs.operations) or set(ours.operations) & set(theirs.operations)
        if left.sha256 == right.sha256 and rounds and operations:
            raise DataError(
                f"{one.dataset} and {other.dataset} hold the same records, and data.mixture takes some of them from "
                "both: select other rounds or operations of each, or name the data set once"
            )


def _build(job: _Job, folder: pathlib.Path, *, progress: Progress) -> None:
    """Write a packed folder; where too much is lost, only its audit, beside the packed folders."""
    config, file_rows = job.config, job.sizes.file_rows
    conversations = encode_members(
        config,
        Encoder(job.tokenizer, config.chat_format, config.seq_len, job.encoded),
        part=job.part,
        manifests=job.manifests,
        chunk_records=job.sizes.chunk_records,
        progress=progress,
    )
    if problem := describe_long(conversations, config=config):
        raise DataError(problem)
    choice = choose(conversations, config=config, part=job.part)
    lengths = conversations.kept[choice.items]
    plan = plan_packing(lengths, seq_len=config.seq_len, seed=config.packing_seed)
    audit = make_audit(conversations, choice=choice, plan=plan, lengths=lengths, config=config, part=job.part)
    refused = job.cache_dir / f"{job.key}.audit.json"
    write_atomically(refused, audit.to_json())
    _refuse_losses(audit, config=config, file=refused)
    refused.unlink()
    tasks = row_tasks(conversations, items=choice.items, lengths=lengths, plan=plan, file_rows=file_rows)
    processes = min(config.processes or usable_cpus(), row_file_count(plan, file_rows=file_rows))
    files, done = [], 0
    for written in in_order(RowWriter(folder, conversations.words), tasks, processes=processes):
        files.append(written)
        done += written.rows
        progress(done, plan.rows, {"doing": "write rows"})
    for note in folder.glob("*.arrayrecord.json"):
        note.unlink()
    write_atomically(folder / AUDIT, audit.to_json())
    manifest = {
        "made_from": job.made_from,
        "plan_sha256": plan.sha256,
        "files": [dataclasses.asdict(written) for written in files],
        "audit_sha256": sha256_of(folder / AUDIT),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _refuse_losses(audit: Audit, *, config: DataConfig, file: pathlib.Path) -> None:
    stats = audit.stats
    if stats.lost_share > config.max_lost_share:
        where = " and ".join(member.dataset for member in config.members)
        raise LossError(
            f"of {stats.candidates} conversations of {where}, {stats.truncated} are truncated and "
            f"{stats.dropped} dropped at data.seq_len = {config.seq_len}, and {stats.untrained} hold nothing to "
            f"train on: more than data.max_lost_share = {config.max_lost_share} allows. {file} names some. "
            "Raise data.seq_len, select other records, or raise data.max_lost_share",
            audit=audit,
        )


def _open_packed(folder: pathlib.Path) -> PackedFolder | None:
    """None unless the folder is there and its rows are those that were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = tuple(RowFile(**written) for written in manifest["files"])
        audit = Audit.from_json((folder / AUDIT).read_bytes())
        intact = sha256_of(folder / AUDIT) == manifest["audit_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with ThreadPoolExecutor(usable_cpus()) as threads:  # hashing leaves Python's lock
        intact = intact and all(threads.map(lambda written: is_whole(folder, written), files))
    return PackedFolder(folder, audit, files) if intact else None


def _key(made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _folder_if_filled(folder: pathlib.Path) -> Iterator[None]:
    """A folder to write to, which is not left behind with nothing in it."""
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _lock(file: pathlib.Path) -> Iterator[None]:
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, as does the death of this process

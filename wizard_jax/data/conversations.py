"""The encoded conversations of all data sets that a config names: counts in memory, tokens and ids on disk."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_gen import shards
from data_gen.stretches import cut
from wizard_jax.data.config import DataConfig, DataError, Member, Part
from wizard_jax.data.encoding import Chunk, Encoded, Encoder, Facts, Filter, read_ids
from wizard_jax.data.workers import in_order, usable_cpus
from wizard_jax.progress import Progress

_MOST_CHUNKS = 512
"""Of all data sets together: each is two files, and those with tokens are open at the same time."""


@dataclass(frozen=True)
class Conversations:
    """Conversation i of all data sets, one data set after the other. About 30 bytes of memory each."""

    seq_len: int
    words: tuple[pathlib.Path, ...]
    """A file of each chunk, with the first L tokens of its conversations."""
    firsts: np.ndarray
    """int64 [chunks + 1]: the conversations of chunk c are those from firsts[c] to firsts[c + 1]."""
    members: np.ndarray
    """int64 [data sets + 1]: likewise."""
    lengths: np.ndarray
    """uint32 [conversations]: of the whole conversation."""
    trained: np.ndarray
    """uint32 [conversations]: trained tokens among the first L."""
    groups: np.ndarray
    """uint32 [conversations]: index into `group_names`."""
    marks: np.ndarray
    """uint8 [conversations]"""
    group_names: tuple[tuple[str, int], ...]
    """(source, round), sorted."""
    eos_trained: int
    eos_untrained: int

    @property
    def kept(self) -> np.ndarray:
        """uint32 [conversations]: tokens that are on disk."""
        kept: np.ndarray = np.minimum(self.lengths, np.uint32(self.seq_len))
        return kept

    def places(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where conversations are: chunk (uint32), and byte in its file (int64)."""
        chunks = np.searchsorted(self.firsts, items, side="right") - 1
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.kept, dtype=np.int64)])
        return chunks.astype(np.uint32), 4 * (ends[items] - ends[self.firsts[chunks]])

    def ids(self, items: np.ndarray) -> list[str]:
        """Of a few conversations."""
        found = []
        for item in items.tolist():
            chunk = int(np.searchsorted(self.firsts, item, side="right")) - 1
            found.append(read_ids(self.words[chunk])[item - int(self.firsts[chunk])])
        return found


def encode_members(
    config: DataConfig,
    encoder: Encoder,
    *,
    part: Part,
    manifests: Sequence[shards.Manifest],
    chunk_records: int,
    progress: Progress,
) -> Conversations:
    """Encode one part of what rounds and operations keep of every data set, in `config.processes` processes.

    Raises:
      DataError: nothing selected, an unknown operation, or a conversation that the chat format cannot hold.
      ShardError: a data set is damaged.
    """
    total = sum(manifest.records for manifest in manifests)
    size = max(chunk_records, -(-total // _MOST_CHUNKS))
    chunks, counts = [], []
    for member, manifest in zip(config.members, manifests, strict=True):
        folder = shards.dataset_folder(pathlib.Path(member.dataset))
        shards.verify(folder)
        kept = Filter.of(member.selection, part=part, share=config.held_out_share, seed=config.held_out_seed)
        cuts = [Chunk(member.dataset, cut_, kept) for cut_ in cut(folder, manifest, records_per_chunk=size)]
        chunks += cuts
        counts.append(len(cuts))
    # A process takes a second to start, and a chunk of 1024 half of one.
    processes = max(1, min(config.processes or usable_cpus(), total // (4 * size)))
    encoded: list[Encoded] = []
    done = 0
    for chunk, one in zip(chunks, in_order(encoder, chunks, processes=processes), strict=True):
        encoded.append(one)
        done += chunk.records
        progress(done, total, {"doing": "tokenize"})
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    for member, first, last in zip(config.members, bounds, bounds[1:], strict=False):
        _check_member(member, [one.facts for one in encoded[first:last]], config=config, part=part)
    return _joined(encoded, bounds=bounds, seq_len=config.seq_len)


def _joined(encoded: Sequence[Encoded], *, bounds: np.ndarray, seq_len: int) -> Conversations:
    names = tuple(sorted({name for one in encoded for name in one.facts.groups}))
    number = {name: index for index, name in enumerate(names)}
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(one.lengths) for one in encoded], dtype=np.int64)])
    groups = [np.array([number[name] for name in one.facts.groups], np.uint32)[one.groups] for one in encoded]
    return Conversations(
        seq_len=seq_len,
        words=tuple(one.words for one in encoded),
        firsts=firsts,
        members=firsts[bounds],
        lengths=np.concatenate([one.lengths for one in encoded]),
        trained=np.concatenate([one.trained for one in encoded]),
        groups=np.concatenate(groups),
        marks=np.concatenate([one.marks for one in encoded]),
        group_names=names,
        eos_trained=sum(one.facts.eos_trained for one in encoded),
        eos_untrained=sum(one.facts.eos_untrained for one in encoded),
    )


def _check_member(member: Member, facts: Sequence[Facts], *, config: DataConfig, part: Part) -> None:
    """Raises DataError where rounds, operations and part leave nothing of a data set."""
    path = member.dataset
    operations = {name for one in facts for name in one.operations}
    rounds = {number for one in facts for number in one.rounds}
    unknown = sorted(set(member.selection.operations) - operations)
    if unknown:
        raise DataError(
            f"{member.setting}.operations names {', '.join(unknown)}, which wrote no record of {path}; "
            f"there are {', '.join(repr(name) for name in sorted(operations))}"
        )
    selected = sum(one.selected for one in facts)
    if not selected:
        raise DataError(
            f"{member.setting} keeps none of the records of {path}: its rounds are {min(rounds)} to {max(rounds)}"
        )
    if not any(one.groups for one in facts):
        raise DataError(
            f"data.held_out_share = {config.held_out_share} leaves nothing in the {part.replace('_', '-')} part of the "
            f"{selected} records selected from {path}: {'raise' if part == 'held_out' else 'lower'} it"
        )

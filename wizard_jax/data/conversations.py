"""The conversations that a selection keeps, encoded once and spooled to disk."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_gen import shards
from data_gen.records import Record
from wizard_jax import chat
from wizard_jax.data.config import DataConfig, DataError, Part, Selection
from wizard_jax.data.order import is_drawn, seeded_order
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conversations:
    """Encoded conversations: lengths and counts in memory, tokens on disk."""

    spool: pathlib.Path
    """uint32: 2 * id + trained, one conversation after the other."""
    words: np.ndarray
    """The spool, memory-mapped."""
    starts: np.ndarray
    """int64 [conversations]: where each begins in the spool."""
    lengths: np.ndarray
    """int64 [conversations]"""
    trained: np.ndarray
    """int64 [conversations]: trained tokens."""
    groups: np.ndarray
    """int32 [conversations]: index into `group_names`."""
    group_names: tuple[tuple[str, int], ...]
    """(source, round), sorted."""
    candidates: int
    truncated: int
    dropped: int
    untrained: int

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens int32 [n], trained bool [n]"""
        start = self.starts[index]
        words = self.words[start : start + self.lengths[index]]
        return (words >> 1).astype(np.int32), (words & 1).astype(np.bool_)


@dataclass
class _Tally:
    """What was seen while encoding."""

    candidates: int = 0
    dropped: int = 0
    untrained: int = 0
    too_long: int = 0
    longest: tuple[int, str] = (0, "")
    lengths: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    group_numbers: dict[tuple[str, int], int] = field(default_factory=dict)


def encode_selected(
    config: DataConfig, tokenizer: Tokenizer, *, part: Part, spool: pathlib.Path, progress: Progress
) -> Conversations:
    """Encode one part of what `config.selection` keeps of the data set; memory holds no tokens.

    `examples` and `trained_tokens` limit what is trained on: the held-out part is of all that is selected besides.

    Raises:
      DataError: nothing or too little selected, an unknown operation, conversations longer than a row
        with truncation='error', or one that the chat format cannot hold (named by its record).
    """
    tally = _encode_all(config, tokenizer, part=part, spool=spool, progress=progress)
    if config.truncation == "error" and tally.too_long:
        length, record = tally.longest
        raise DataError(
            f"{tally.too_long} of {tally.candidates} conversations of {config.dataset} are longer than "
            f"data.seq_len = {config.seq_len}; the longest, record {record!r}, has {length} tokens: raise "
            "data.seq_len, or set data.truncation to 'truncate' or 'drop'"
        )
    lengths, trained = np.array(tally.lengths, np.int64), np.array(tally.trained, np.int64)
    if not len(lengths):
        raise DataError(
            f"none of the {tally.candidates} conversations selected from {config.dataset} can be trained on: "
            f"{tally.dropped} are longer than data.seq_len = {config.seq_len}, "
            f"{tally.untrained} hold nothing to train on"
        )
    kept = _choose(trained, selection=config.selection) if part == "train" else np.arange(len(trained))
    group_names = tuple(sorted(tally.group_numbers))
    place = np.array([group_names.index(name) for name in tally.group_numbers], np.int32)
    starts = np.cumsum(lengths) - lengths
    return Conversations(
        spool=spool,
        words=np.memmap(spool, np.uint32, mode="r"),
        starts=starts[kept],
        lengths=lengths[kept],
        trained=trained[kept],
        groups=place[np.array(tally.groups, np.int64)[kept]],
        group_names=group_names,
        candidates=tally.candidates,
        truncated=int(np.array(tally.truncated, np.int64)[kept].sum()),
        dropped=tally.dropped,
        untrained=tally.untrained,
    )


def _encode_all(
    config: DataConfig, tokenizer: Tokenizer, *, part: Part, spool: pathlib.Path, progress: Progress
) -> _Tally:
    chat_format = chat.get_format(config.chat_format)
    tally = _Tally()
    with spool.open("wb") as stream:
        for record in _selected(config, part=part, progress=progress):
            tally.candidates += 1
            try:
                tokens, trained = chat.encode_conversation(record.turns, chat_format=chat_format, tokenizer=tokenizer)
            except chat.ChatError as error:
                raise DataError(f"record {record.id!r} of {config.dataset}: {error}") from error
            is_long = len(tokens) > config.seq_len
            if is_long:
                tally.too_long += 1
                tally.longest = max(tally.longest, (len(tokens), record.id))
                if config.truncation == "drop":
                    tally.dropped += 1
                    continue
                tokens, trained = tokens[: config.seq_len], trained[: config.seq_len]
            if not trained.any():
                tally.untrained += 1
                continue
            stream.write(((tokens.astype(np.uint32) << 1) | trained).astype(np.uint32).tobytes())
            tally.lengths.append(len(tokens))
            tally.trained.append(int(trained.sum()))
            tally.truncated.append(is_long)
            group = (record.source, record.round)
            tally.groups.append(tally.group_numbers.setdefault(group, len(tally.group_numbers)))
    return tally


def _selected(config: DataConfig, *, part: Part, progress: Progress) -> Iterator[Record]:
    """The records of one part of the selected rounds and operations, in the order of the data set."""
    selection, path = config.selection, pathlib.Path(config.dataset)
    total = shards.read_manifest(path).records
    operations, rounds, kept, given = set(), set(), 0, 0
    for number, record in enumerate(shards.read_dataset(path), start=1):
        operations.add(record.operation)
        rounds.add(record.round)
        late = selection.rounds_to is not None and record.round > selection.rounds_to
        other = bool(selection.operations) and record.operation not in selection.operations
        if record.round >= selection.rounds_from and not late and not other:
            kept += 1
            held_out = is_drawn(record.lineage, share=config.held_out_share, seed=config.held_out_seed)
            if held_out == (part == "held_out"):
                given += 1
                yield record
        if number % 1000 == 0 or number == total:
            progress(number, total, {"doing": "tokenize"})
    unknown = sorted(set(selection.operations) - operations)
    if unknown:
        raise DataError(
            f"data.selection.operations names {', '.join(unknown)}, which wrote no record of {path}; "
            f"there are {', '.join(repr(name) for name in sorted(operations))}"
        )
    if not kept:
        raise DataError(
            f"data.selection keeps none of the {total} records of {path}: its rounds are {min(rounds)} to {max(rounds)}"
        )
    if not given:
        raise DataError(
            f"data.held_out_share = {config.held_out_share} leaves nothing in the {part.replace('_', '-')} part of the "
            f"{kept} records selected from {path}: {'raise' if part == 'held_out' else 'lower'} it"
        )


def _choose(trained: np.ndarray, *, selection: Selection) -> np.ndarray:
    """Indices (sorted) of the conversations that `examples` and `trained_tokens` leave."""
    count = len(trained)
    if selection.examples is None and selection.trained_tokens is None:
        return np.arange(count)
    order = seeded_order(count, seed=selection.seed)
    take = count
    if selection.examples is not None:
        if not 1 <= selection.examples <= count:
            raise DataError(f"data.selection.examples is {selection.examples}, and there are {count} to take from")
        take = selection.examples
    if selection.trained_tokens is not None:
        total = np.cumsum(trained[order[:take]])
        if not 1 <= selection.trained_tokens <= total[-1]:
            raise DataError(
                f"data.selection.trained_tokens is {selection.trained_tokens}, and the {take} conversations "
                f"to take from hold {total[-1]}"
            )
        take = int(np.searchsorted(total, selection.trained_tokens)) + 1
    return np.sort(order[:take])

"""Records as token ids: chunk by chunk, in any process, each kept on disk from when it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy as np

from configs.folder import naming
from data_gen.examples import from_example
from data_gen.records import Record
from data_gen.stretches import Stretch
from wizard_jax import chat
from wizard_jax.data.config import DataError, Part, Selection
from wizard_jax.data.order import is_drawn
from wizard_jax.data.rows import to_words
from wizard_jax.tokenizer import Tokenizer

# What is found in an encoded conversation, as bits of `Encoded.marks`.
BOS_REPEATED = 1
"""BOS directly after BOS."""
EOS_REPEATED = 2
"""EOS directly after EOS."""
END_UNTRAINED = 4
"""Its last token is not trained: nothing of it teaches to stop."""


@dataclass(frozen=True)
class Filter:
    """Which records of a data set are encoded at all."""

    rounds_from: int
    rounds_to: int | None
    operations: tuple[str, ...]
    part: Part
    held_out_share: float
    held_out_seed: int

    @classmethod
    def of(cls, selection: Selection, *, part: Part, share: float, seed: int) -> Filter:
        return cls(selection.rounds_from, selection.rounds_to, selection.operations, part, share, seed)

    def selects(self, record: Record) -> bool:
        late = self.rounds_to is not None and record.round > self.rounds_to
        other = bool(self.operations) and record.operation not in self.operations
        return record.round >= self.rounds_from and not late and not other

    def is_in_part(self, record: Record) -> bool:
        held_out = is_drawn(record.lineage, share=self.held_out_share, seed=self.held_out_seed)
        return held_out == (self.part == "held_out")


@dataclass(frozen=True)
class Chunk:
    """Some records of a data set, next to each other, and which of them to encode."""

    dataset: str
    stretches: tuple[Stretch, ...]
    filter: Filter

    @property
    def records(self) -> int:
        return sum(stretch.count for stretch in self.stretches)

    @property
    def name(self) -> str:
        """Of what it is made from, whatever that is called and wherever it lies."""
        made_from = [[s.sha256, s.first, s.count] for s in self.stretches], asdict(self.filter)
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Facts:
    """What was seen of a chunk's records."""

    selected: int
    """Of the selected rounds and operations, before those of the other part were left out."""
    rounds: tuple[int, ...]
    operations: tuple[str, ...]
    """Of all its records, as are `rounds`."""
    groups: tuple[tuple[str, int], ...]
    """(source, round), in the order in which they came."""
    eos_trained: int
    eos_untrained: int
    """Tokens that end an answer, in all that was encoded, by whether they are trained (Llama 3's end any turn)."""
    words_sha256: str


@dataclass(frozen=True)
class Encoded:
    """The conversations of a chunk. `words` holds the first L tokens of each, one conversation after the other."""

    words: pathlib.Path
    lengths: np.ndarray
    """uint32 [conversations]: tokens of the whole conversation, of which L at most are kept."""
    trained: np.ndarray
    """uint32 [conversations]: trained ones of those that are kept."""
    groups: np.ndarray
    """uint32 [conversations]: index into `facts.groups`."""
    marks: np.ndarray
    """uint8 [conversations]"""
    facts: Facts


@dataclass(frozen=True)
class Encoder:
    """Encodes chunks into a folder; one that is there, and whole, is taken as it is."""

    tokenizer: Tokenizer
    chat_format: str
    seq_len: int
    folder: pathlib.Path

    def __call__(self, chunk: Chunk) -> Encoded:
        """
        Raises:
          DataError: a conversation that the chat format cannot hold (named by its record).
          ShardError: the data set is damaged.
        """
        words, columns = (self.folder / f"{chunk.name}.{kind}" for kind in ("words", "npz"))
        found = _load(words, columns)
        if found is None:
            self._encode(chunk, words=words, columns=columns)
            found = _load(words, columns)
            assert found is not None, f"{words} was just written and is not intact"
        return found

    def _encode(self, chunk: Chunk, *, words: pathlib.Path, columns: pathlib.Path) -> None:
        chat_format = chat.get_format(self.chat_format)
        end = chat.end_id(chat_format, self.tokenizer)
        rounds, operations, selected = set(), set(), 0
        groups: dict[tuple[str, int], int] = {}
        eos = [0, 0]
        ids: list[str] = []
        found: list[tuple[int, int, int, int]] = []  # length, trained, group, marks
        digest = hashlib.sha256()
        with _replacing(words) as stream:
            for record in _records(chunk):
                rounds.add(record.round)
                operations.add(record.operation)
                if not chunk.filter.selects(record):
                    continue
                selected += 1
                if not chunk.filter.is_in_part(record):
                    continue
                try:
                    tokens, trained = chat.encode_conversation(
                        record.turns, chat_format=chat_format, tokenizer=self.tokenizer
                    )
                except chat.ChatError as error:
                    raise DataError(f"record {record.id!r} of {chunk.dataset}: {error}") from error
                data = to_words(tokens[: self.seq_len], trained=trained[: self.seq_len])
                stream.write(data)
                digest.update(data)
                group = groups.setdefault((record.source, record.round), len(groups))
                marks = find_marks(tokens, trained=trained, bos=self.tokenizer.bos_id, eos=end)
                found.append((len(tokens), int(trained[: self.seq_len].sum()), group, marks))
                ids.append(record.id)
                ends = trained[tokens == end]
                eos[0] += int(ends.sum())
                eos[1] += int((~ends).sum())
        facts = Facts(
            selected=selected,
            rounds=tuple(sorted(rounds)),
            operations=tuple(sorted(operations)),
            groups=tuple(groups),
            eos_trained=eos[0],
            eos_untrained=eos[1],
            words_sha256=digest.hexdigest(),
        )
        _save(columns, found=found, ids=ids, facts=facts)


def read_ids(words: pathlib.Path) -> list[str]:
    """The ids of a chunk's conversations, which memory does not hold."""
    with np.load(words.with_suffix(".npz")) as columns:
        ids: list[str] = json.loads(columns["ids"].tobytes())
    return ids


def _records(chunk: Chunk) -> Iterator[Record]:
    return map(from_example, itertools.chain.from_iterable(stretch.read() for stretch in chunk.stretches))


def find_marks(tokens: np.ndarray, *, trained: np.ndarray, bos: int | None, eos: int) -> int:
    """The bits that say what is odd about a conversation."""
    again = tokens[1:][tokens[1:] == tokens[:-1]]
    repeated = BOS_REPEATED * (bos is not None and bool((again == bos).any())) | EOS_REPEATED * bool(
        (again == eos).any()
    )
    return repeated | END_UNTRAINED * (not trained[-1])


def _save(file: pathlib.Path, *, found: list[tuple[int, int, int, int]], ids: list[str], facts: Facts) -> None:
    lengths, trained, groups, marks = np.array(found, np.int64).reshape(-1, 4).T
    texts = [np.frombuffer(json.dumps(value).encode(), np.uint8) for value in (ids, asdict(facts))]
    with _replacing(file) as stream:
        np.savez(
            stream,
            lengths=lengths.astype(np.uint32),
            trained=trained.astype(np.uint32),
            groups=groups.astype(np.uint32),
            marks=marks.astype(np.uint8),
            ids=texts[0],
            facts=texts[1],
        )


def _load(words: pathlib.Path, columns: pathlib.Path) -> Encoded | None:
    """None unless both files are there and whole (a zip archive checks its members' CRC-32 as they are read)."""
    try:
        with np.load(columns) as stored:
            facts = json.loads(stored["facts"].tobytes())
            arrays = {name: stored[name] for name in ("lengths", "trained", "groups", "marks")}
        with words.open("rb") as stream:
            intact = hashlib.file_digest(stream, "sha256").hexdigest() == facts["words_sha256"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not intact:
        return None
    facts["groups"] = tuple((source, number) for source, number in facts["groups"])
    return Encoded(words, **arrays, facts=Facts(**facts))


@contextlib.contextmanager
def _replacing(file: pathlib.Path) -> Iterator[BinaryIO]:
    """A file of this process's own, which takes its name once it is whole."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with naming(file), partial.open("wb") as stream:
        yield stream
    partial.replace(file)

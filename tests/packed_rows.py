"""Small data sets to pack, and what is in packed rows; a packed folder of rows that a test made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_gen import shards
from data_gen.records import Record, Turn
from wizard_jax.data.audit import Audit, Finding, Group, PackStats
from wizard_jax.data.config import DataConfig
from wizard_jax.data.packing import PackedFolder
from wizard_jax.data.row_files import RowFile, RowReader, sha256_of
from wizard_jax.data.rows import Row
from wizard_jax.tokenizer import Tokenizer, train_tokenizer

WORDS = "kiwi plum fig olive mint jam honey bread".split()


def record(number: int) -> Record:
    """Rounds 0 to 3 in turn; longer and longer questions."""
    words = [WORDS[(number * i) % 8] for i in range(1 + number % 20)]
    return Record(
        id=f"s{number // 4}/{number % 4}",
        lineage=f"s{number // 4}",
        turns=(Turn("user", " ".join(words)), Turn("assistant", " ".join(reversed(words)))),
        round=number % 4,
        operation=("", "deepening", "in_breadth", "deepening")[number % 4],
    )


def write(records: list[Record], folder: Path) -> Path:
    shards.write_dataset(records, folder, name="d", count=len(records), records_per_shard=17, description="for a test")
    return folder


def small_tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer([" ".join(WORDS), "### Response:"] * 20, folder / "tokenizer.model", vocab_size=400)


def config(dataset: Path, **changes: object) -> DataConfig:
    return replace(
        DataConfig(dataset=str(dataset), chat_format="wizardlm_7b", seq_len=256),
        **changes,
    )


def rows_of(packed: PackedFolder) -> list[Row]:
    return [Row.from_bytes(data) for data in RowReader(packed.path, packed.files).read(range(packed.rows))]


def conversations_of(packed: PackedFolder) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    found = []
    for row in rows_of(packed):
        cuts = np.cumsum(row.lengths)[:-1]
        parts = zip(np.split(row.tokens, cuts), np.split(row.trained, cuts), strict=True)
        found += [(tuple(tokens.tolist()), tuple(trained.tolist())) for tokens, trained in parts]
    return found


def write_rows(rows: Sequence[Row], folder: Path, *, seq_len: int, file_rows: int) -> PackedFolder:
    files = []
    for first in range(0, len(rows), file_rows):
        held = rows[first : first + file_rows]
        file = folder / f"rows-{first:05d}.arrayrecord"
        writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        for row in held:
            writer.write(row.to_bytes())
        writer.close()
        files.append(RowFile(file.name, len(held), sha256_of(file)))
    return PackedFolder(folder, _audit(rows, seq_len=seq_len), tuple(files))


def _audit(rows: Sequence[Row], *, seq_len: int) -> Audit:
    conversations = sum(len(row.lengths) for row in rows)
    tokens, trained = (sum(len(row.tokens) for row in rows), sum(int(row.trained.sum()) for row in rows))
    none = Finding(count=0, examples=())
    names = sorted({int(group) for row in rows for group in row.groups})
    return Audit(
        part="train",
        stats=PackStats(
            seq_len=seq_len,
            rows=len(rows),
            conversations=conversations,
            tokens=tokens,
            trained_tokens=trained,
            candidates=conversations,
            truncated=0,
            dropped=0,
            untrained=0,
        ),
        truncated=none,
        dropped=none,
        untrained=none,
        bos_repeated=none,
        eos_repeated=none,
        end_untrained=none,
        zero_loss_rows=0,
        eos_trained=0,
        eos_untrained=0,
        groups=tuple(Group(source="s", round=name, conversations=0, tokens=0, trained_tokens=0) for name in names),
        members=(),
        lengths={},
        histogram=(),
        longest=(),
    )

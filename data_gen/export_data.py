"""A data set as one Parquet or JSONL file that `datasets.load_dataset`, axolotl and others read, with its card.

OUT/train.parquet  (or train.jsonl)    conversations in the layout asked for, and where each came from
OUT/README.md                          the data card
OUT/.export.json                       what it was made of, so that the same command does nothing twice
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from configs.errors import UserError
from configs.folder import COMPLETE, load_config, naming, read_complete, read_identity
from data_gen import shards
from data_gen.card import FIELDS, Exported, Layout, data_card
from data_gen.config import AnswerConfig, EvolveConfig
from data_gen.finish import MEASURES
from data_gen.records import Record

FileFormat = Literal["jsonl", "parquet"]

MARK = ".export.json"

_ROWS = 10_000  # of a Parquet row group at most
_BYTES = 64_000_000  # of its texts at most: what memory holds

_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


class ExportError(UserError):
    """A data set can not be exported as asked."""


class Progress(Protocol):
    def __call__(self, done: int, total: int, facts: Mapping[str, int | str]) -> None:
        """`done` of `total` records are written."""
        ...


def export_data(
    dataset: Path,
    out: Path,
    *,
    file_format: FileFormat,
    layout: Layout,
    progress: Progress = lambda done, total, facts: None,  # noqa: ARG005
) -> Path:
    """Writes the folder `out`, which appears complete or not at all, and returns the file of records in it.

    `dataset` is the folder of a `wizard evolve`, `answer` or `merge`, or of its data set alone; of that, the card knows
    less. An earlier export in `out` is replaced, unless it is the same.

    Raises:
      ExportError: `out` holds something else, or a conversation that the layout has no place for.
      ShardError: the data set is damaged, or not finished.
    """
    manifest = shards.verify(dataset)
    exported = Exported(file=f"train.{file_format}", file_format=file_format, layout=layout)
    card = _card(dataset, exported)
    mark = json.dumps({"dataset_sha256": manifest.sha256, **dataclasses.asdict(exported)}, indent=1) + "\n"
    _check_replaceable(out)
    if _holds(out, mark=mark, card=card, file=exported.file):
        return out / exported.file
    rows = _counted((to_row(record, layout=layout) for record in _read(dataset)), manifest.records, progress)
    write = {"jsonl": _write_jsonl, "parquet": _write_parquet}[file_format]
    with _in_place_of(out) as partial:
        with naming(out / exported.file):
            write(rows, partial / exported.file, layout)
        for name, text in {"README.md": card, MARK: mark}.items():
            with naming(out / name):
                (partial / name).write_text(text, encoding="utf-8")
        for file in partial.iterdir():
            with naming(out / file.name), file.open("rb") as stream:
                os.fsync(stream.fileno())
    return out / exported.file


@contextlib.contextmanager
def _in_place_of(out: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `out` when all is written; where not all is, nothing is left."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shards.put_in_place(partial, out)


def _read(dataset: Path) -> Iterator[Record]:
    """The records; a disk that can not be read is not taken for one that can not be written."""
    with naming(dataset):
        yield from shards.read_dataset(dataset)


def to_row(record: Record, *, layout: Layout) -> dict[str, Any]:
    """One record as a row: the conversation in the layout, then where it came from.

    Raises:
      ExportError: the layout has no place for the conversation.
    """
    lineage = {name: getattr(record, name) for name in FIELDS}
    lineage["flags"] = ",".join(record.flags)  # of a list that is mostly empty, readers of JSONL can not tell the type
    if layout == "messages":
        return {"messages": [vars(turn) for turn in record.turns], **lineage}
    if layout == "sharegpt":
        turns = [{"from": _SHAREGPT_ROLES[turn.role], "value": turn.content} for turn in record.turns]
        return {"conversations": turns, **lineage}
    system, earlier = record.context[:1], record.context[1:]
    if earlier or any(turn.role != "system" for turn in system):
        raise ExportError(
            f"record {record.id}: there are turns before the instruction, for which the layout alpaca has no place; "
            "export the layout messages or sharegpt"
        )
    single = {"instruction": record.instruction, "input": "", "output": record.answer}
    return {**single, "system": system[0].content if system else "", **lineage}


def _card(dataset: Path, exported: Exported) -> str:
    """The card, from all that the folder of the run tells; from the records where there is no such folder."""
    shown = shards.dataset_folder(dataset)
    folder = shown.parent
    stage = read_identity(folder).stage if (folder / COMPLETE).exists() else ""
    config: EvolveConfig | AnswerConfig
    if stage == "evolve":
        config = load_config(EvolveConfig, folder)
    elif stage == "answer":
        config = load_config(AnswerConfig, folder)
    else:
        return data_card(summary=_summary(shards.read_dataset(shown)), config=None, exported=exported)
    file = folder / MEASURES
    measures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return data_card(summary=read_complete(folder), config=config, measures=measures, exported=exported)


def _summary(records: Iterable[Record]) -> dict[str, Any]:
    """What the records alone tell of their run."""
    rounds: Counter[int] = Counter()
    models: set[str] = set()
    evolvers: set[str] = set()
    for record in records:
        rounds[record.round] += 1
        models |= {record.model} - {""}
        evolvers |= {record.evolver} - {""}
    return {
        "records": rounds.total(),
        "by_round": {str(number): rounds[number] for number in sorted(rounds)},
        "models": sorted(models),
        "evolvers": sorted(evolvers),
    }


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and was not exported here: choose another --out, or remove it")


def _holds(out: Path, *, mark: str, card: str, file: str) -> bool:
    """Whether this very export is there already."""
    told = {MARK: mark, "README.md": card}
    return (out / file).exists() and all(
        (out / name).exists() and (out / name).read_text(encoding="utf-8") == text for name, text in told.items()
    )


def _counted(rows: Iterable[dict[str, Any]], total: int, progress: Progress) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield row
        if number % 1000 == 0 or number == total:
            progress(number, total, {})


# --- the two formats


def _write_jsonl(rows: Iterable[dict[str, Any]], file: Path, layout: Layout) -> None:  # noqa: ARG001
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterable[dict[str, Any]], file: Path, layout: Layout) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(layout)
    held: list[dict[str, Any]] = []
    size = 0
    with contextlib.closing(parquet.ParquetWriter(file, schema, compression="zstd")) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(held, schema=schema))
            held.clear()

        for row in rows:
            held.append(row)
            size += _size(row)
            if len(held) == _ROWS or size > _BYTES:
                flush()
                size = 0
        if held:
            flush()


def _size(row: Mapping[str, Any]) -> int:
    """About how many bytes the texts of a row take."""
    turns = row.get("messages") or row.get("conversations") or [row]
    return sum(len(value) for turn in turns for value in turn.values() if isinstance(value, str))


def _schema(layout: Layout) -> Any:
    import pyarrow as pa

    text = pa.string()
    of_type = {"str": text, "int": pa.int64(), "float": pa.float64(), "tuple[str, ...]": text}
    conversation = {
        "messages": [("messages", pa.list_(pa.struct([("role", text), ("content", text)])))],
        "sharegpt": [("conversations", pa.list_(pa.struct([("from", text), ("value", text)])))],
        "alpaca": [(name, text) for name in ("instruction", "input", "output", "system")],
    }[layout]
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Record)}
    return pa.schema([*conversation, *((name, of_type[kinds[name]]) for name in FIELDS)])

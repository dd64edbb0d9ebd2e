"""The file of a task, as its authors published it: its bytes are known by their SHA-256, and every row is checked."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_gen.readers.json_rows import json_rows
from data_gen.readers.rows import Row, SourceError
from wizard_jax.evaluate.items import TaskError

HUB = "hf://"

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What every row holds: fields with the type of their values, and nothing else."""

    required: Mapping[str, type]
    optional: Mapping[str, type] = field(default_factory=dict)
    id: str = ""
    """The field that no two rows may share a value of; '' where rows have none."""

    def faults(self, row: Mapping[str, Any]) -> list[str]:
        """What is wrong with a row, in words."""
        known = {**self.required, **self.optional}
        missing = [name for name in self.required if name not in row]
        unknown = [name for name in row if name not in known]
        found = [f"no field {name!r}" for name in missing] + [f"unknown field {name!r}" for name in unknown]
        for name, kind in known.items():
            if name in row and not _is(row[name], kind):
                found.append(f"{name!r} is not {_WORDS[kind]} but {type(row[name]).__name__}")
            elif kind is str and name in row and not row[name].strip():
                found.append(f"{name!r} is empty")
        return found


_WORDS: Mapping[type, str] = MappingProxyType({str: "a text", int: "a whole number", float: "a number", list: "a list"})


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A file whose rows are what they should be."""

    source: str
    """As the config names it."""
    rows: tuple[dict[str, Any], ...]
    numbers: tuple[int, ...]
    """Of each row in the file, from 1."""
    sha256: str
    notes: tuple[str, ...] = ()

    def refuse(self, faults: Mapping[int, str]) -> None:
        """Raises TaskError where any row (by its index here) has a fault."""
        if faults:
            raise _unusable(self.source, [(self.numbers[index], fault) for index, fault in faults.items()])


def read_task_file(path: str, *, schema: Schema, published: str, sha256: str, setting: str = "task.sha256") -> TaskFile:
    """Reads a file, or one of a data set of the Hugging Face Hub (`hf://owner/name/FILE`), and checks it whole.

    `published` is the SHA-256 of what the authors published, `sha256` the one that `setting` allows instead.

    Raises:
      TaskError: no such file, another one than was published, or rows that are not what `schema` says; of these it
        names the numbers.
      HubError: the hub does not have it, or can not be reached.
    """
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found not in (sha256, published) or (sha256 and found != sha256):
        wanted, whose = (sha256, f"{setting} names") if sha256 else (published, "the published file has")
        raise TaskError(
            f"{path} has the SHA-256 {found}, and {whose} {wanted}: take that file, or set {setting}={found} to take "
            "this one all the same"
        )
    rows = _rows(content, path=path)
    if not rows:
        raise TaskError(f"{path} is empty: it must hold at least one row")
    faults = [(row.number, fault) for row in rows for fault in _faults(row, schema)]
    if not faults and schema.id:
        faults = _repeated(rows, schema.id)
    if faults:
        raise _unusable(path, faults)
    other = (
        f"{path} is not the file that was published: {found} instead of {published}. Its figures are its own, and "
        "are not to be compared with published ones."
    )
    return TaskFile(
        source=path,
        rows=tuple(row.value for row in rows),
        numbers=tuple(row.number for row in rows),
        sha256=found,
        notes=() if found == published else (other,),
    )


def _read(path: str) -> bytes:
    if path.startswith(HUB):
        from wizard_jax.convert.hub import fetch_file

        return fetch_file(path).read_bytes()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise TaskError(f"{path} does not exist: give the file, or hf://owner/name/FILE, as task.path") from None
    except OSError as error:
        raise TaskError(f"{path} can not be read: {error.strerror}") from error


def _rows(content: bytes, *, path: str) -> list[Row]:
    """Raises TaskError: not UTF-8, or not JSON at all."""
    try:
        return list(json_rows(io.BytesIO(content), path=Path(path), source=path))
    except SourceError as error:
        raise TaskError(str(error)) from error


def _faults(row: Row, schema: Schema) -> list[str]:
    if row.fault:
        return [row.fault]
    if not isinstance(row.value, dict):
        return [f"not a JSON object but {type(row.value).__name__}"]
    return schema.faults(row.value)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _repeated(rows: list[Row], name: str) -> list[tuple[int, str]]:
    first: dict[Any, int] = {}
    faults = []
    for row in rows:
        value = row.value[name]
        if value in first:
            faults.append((row.number, f"{name!r} is {value!r}, as that of row {first[value]}"))
        first.setdefault(value, row.number)
    return faults


def _unusable(path: str, faults: list[tuple[int, str]]) -> TaskError:
    """One line for each kind of fault, with the first rows that have it."""
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for number, fault in faults:
        kinds[fault].append(number)
    bad = len({number for number, _ in faults})
    rows, them = ("row", "it") if bad == 1 else ("rows", "them")
    lines = [f"{path}: {bad:,} {rows} can not be used: mend {them}, or take another file"]
    for fault, numbers in list(kinds.items())[:_SHOWN]:
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        told = ", ".join(map(str, numbers[:_SHOWN]))
        lines.append(f"  {'row' if len(numbers) == 1 else 'rows'} {told}{more}: {fault}")
    if len(kinds) > _SHOWN:
        lines.append(f"  and {len(kinds) - _SHOWN} other faults")
    return TaskError("\n".join(lines))

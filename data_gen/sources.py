"""Public instruction data sets -> Records of round 0.

    {"instruction": "Sort these.", "input": "3 1 2", "output": "1 2 3"}
        ->  user: "Sort these.\\n3 1 2"   assistant: "1 2 3"

A file is a JSON array or JSON lines. Which data set a row is from is told by its keys, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs.errors import UserError
from data_gen import world
from data_gen.config import SeedFile, SimulatedSeeds
from data_gen.records import Record, Role, Turn

SCHEMAS = """\
  Alpaca         {"instruction", "input", "output"}
  self-instruct  {"instruction", "instances": [{"input", "output"}, ...]}
  ShareGPT       {"conversations": [{"from", "value"}, ...]}
  messages       {"messages": [{"role", "content"}, ...]}
  plain          {"instruction" or "prompt" or "question" or "query"}, if wanted with "input" and an answer as
                 "output" or "response" or "answer" or "completion\""""

_INSTRUCTION_KEYS = ("instruction", "prompt", "question", "query")
_ANSWER_KEYS = ("output", "response", "answer", "completion")
_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "assistant": "assistant",
        "system": "system",
    }
)
_SHOWN = 10


class SourceError(UserError):
    """Seeds that can not be read; names the file, the rows (from 1) and what to do."""


class _RowError(Exception):
    """What is wrong with one row; rows with the same fault are reported together."""


def load_seeds(seeds: SeedFile | SimulatedSeeds) -> list[Record]:
    """The seeds as records of round 0, in their own order; the lineage is the number of the row, from 000000.

    Raises:
      SourceError: the file is missing, empty or not JSON, a row has an unknown schema, no instruction or a
        conversation that can not be followed. All rows are checked before one is used.
    """
    if isinstance(seeds, SimulatedSeeds):
        if seeds.count < 1:
            raise SourceError(f"seeds.count is {seeds.count}: ask for at least one seed")
        source = f"simulated world (seed {seeds.seed})"
        texts = world.sample_seeds(seeds.count, seeds.seed)
        return [_record(index, (Turn("user", text),), source=source) for index, text in enumerate(texts)]
    if seeds.limit < 0:
        raise SourceError(f"seeds.limit is {seeds.limit}: give a number of rows, or 0 for all")
    path = Path(seeds.path)
    rows = _rows(path)[: seeds.limit or None]
    records: list[Record] = []
    faults: dict[str, list[int]] = {}
    for index, (number, row) in enumerate(rows):
        try:
            records.append(_record(index, _turns(row), source=path.name))
        except _RowError as fault:
            faults.setdefault(str(fault), []).append(number)
    if faults:
        raise SourceError(_report(path, faults, rows=len(rows)))
    return records


def _record(index: int, turns: tuple[Turn, ...], *, source: str) -> Record:
    lineage = f"{index:06d}"
    return Record(id=f"{lineage}/0", lineage=lineage, turns=turns, source=source)


# --- files


def _rows(path: Path) -> list[tuple[int, Any]]:
    """(number of the row or line from 1, value) of everything in the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}: seeds.path must name a JSON or JSONL file") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise SourceError(f"{path} can not be read: {error.strerror}") from None
    rows = _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    if not rows:
        raise SourceError(f"{path} is empty: it must hold at least one instruction")
    return rows


def _array(path: Path, text: str) -> list[tuple[int, Any]]:
    try:
        rows = list(enumerate(json.loads(text), start=1))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        where = "nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"
    else:
        return rows
    raise SourceError(f"{path} is not JSON ({where}): mend it, or write one object per line")


def _lines(path: Path, text: str) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    faults: dict[str, list[int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split inside of strings
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError):  # a number of thousands of digits is a plain ValueError
            faults.setdefault("not JSON (a file that is no JSON array has one object per line)", []).append(number)
    if faults:
        raise SourceError(_report(path, faults, rows=len(rows) + sum(map(len, faults.values()))))
    return rows


def _report(path: Path, faults: Mapping[str, list[int]], *, rows: int) -> str:
    total = sum(map(len, faults.values()))
    lines = [f"{path}: {total} of {rows} rows can not be used; mend or remove them, then start again"]
    for fault, numbers in list(faults.items())[:_SHOWN]:
        shown = ", ".join(map(str, numbers[:_SHOWN]))
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        lines.append(f"  {'row' if len(numbers) == 1 else 'rows'} {shown}{more}: {fault}")
    if len(faults) > _SHOWN:
        lines.append(f"  and {len(faults) - _SHOWN} more kinds of fault")
    if any(fault.startswith("unknown schema") for fault in faults):
        lines.append(f"Known schemas:\n{SCHEMAS}")
    return "\n".join(lines)


# --- rows


def _turns(row: Any) -> tuple[Turn, ...]:
    if not isinstance(row, dict):
        raise _RowError(f"not a JSON object but {type(row).__name__}")
    for found_by, read in _READERS:
        if found_by in row:
            turns = read(row)
            break
    else:
        keys = [repr(key) for key in row]
        seen = ", ".join([*keys[:_SHOWN], *(["..."] if len(keys) > _SHOWN else [])]) or "(none)"
        raise _RowError(f"unknown schema, with the keys {seen}")
    try:
        "".join(turn.content for turn in turns).encode()
    except UnicodeEncodeError:
        raise _RowError("text that is not Unicode (half of a surrogate pair)") from None
    return turns


def _from_instances(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise _RowError("'instances' is not a list of objects")
    return _from_plain({"instruction": row.get("instruction"), **(instances[0] if instances else {})})


def _from_plain(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    key = next(key for key in _INSTRUCTION_KEYS if key in row)
    instruction = _text(row, key)
    if not instruction:
        raise _RowError(f"the instruction is empty (key {key!r})")
    if given := _text(row, "input"):
        instruction = f"{instruction}\n{given}"
    answer = next((text for key in _ANSWER_KEYS if (text := _text(row, key))), "")
    turns = (Turn("user", instruction), Turn("assistant", answer))
    return turns if answer else turns[:1]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise _RowError(f"{key!r} is not a text but {type(value).__name__}")
    return (value or "").strip()


def _reader(key: str, who: str, said: str) -> Callable[[Mapping[str, Any]], tuple[Turn, ...]]:
    """Reads a conversation under `key`, whose turns name the speaker under `who` and the text under `said`."""

    def read(row: Mapping[str, Any]) -> tuple[Turn, ...]:
        turns = row[key]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise _RowError(f"{key!r} is not a list of objects")
        return _conversation([_turn(turn, who=who, said=said) for turn in turns])

    return read


def _turn(turn: Mapping[str, Any], *, who: str, said: str) -> Turn:
    speaker = turn.get(who)
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise _RowError(f"unknown speaker {speaker!r} under {who!r} (known: {', '.join(_ROLES)})")
    return Turn(_ROLES[speaker], _text(turn, said))


def _conversation(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """At most one system turn, then user and assistant in turn; the last user turn is what will be evolved.

    An answer before the first question, as where a conversation was cut out of a longer one, is left out.
    """
    kept = list(turns)
    head = kept[:1] if kept and kept[0].role == "system" and kept[0].content else []
    body = kept[1:] if kept and kept[0].role == "system" else kept
    if body and body[0].role == "assistant":
        body = body[1:]
    if not body:
        raise _RowError("the conversation has no user turn")
    for position, turn in enumerate(body):
        if turn.role != ("user", "assistant")[position % 2]:
            raise _RowError("user and assistant do not take turns")
        if not turn.content:
            raise _RowError(f"an empty {turn.role} turn" if turn.role == "assistant" else "the instruction is empty")
    return (*head, *body)


_READERS: tuple[tuple[str, Callable[[Mapping[str, Any]], tuple[Turn, ...]]], ...] = (
    ("conversations", _reader("conversations", "from", "value")),
    ("messages", _reader("messages", "role", "content")),
    ("instances", _from_instances),
    *((key, _from_plain) for key in _INSTRUCTION_KEYS),
)

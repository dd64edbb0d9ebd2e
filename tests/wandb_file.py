"""What a run has written for Weights & Biases in its offline mode: records in a LevelDB log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32_768
_FIRST, _LAST, _FULL = 2, 4, 1


def records(file: Path) -> Iterator[Record]:
    """Every record; a file begins with 7 bytes of its own, and a part of a record with 7: checksum, length, type."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:  # what is left of a block is too short for a part
            at += _BLOCK - at % _BLOCK
            continue
        if at + 7 + int.from_bytes(data[at + 4 : at + 6], "little") > len(data):
            return
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + 7 : at + 7 + length]
        parts = part if kind in (_FULL, _FIRST) else parts + part
        at += 7 + length
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)


def files(folder: Path) -> list[Path]:
    """Those of the starts of a run, oldest first, once they are whole: the client's own process writes them."""
    found = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    deadline = time.monotonic() + 30
    while not all("exit" in [one.WhichOneof("record_type") for one in records(file)] for file in found):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def history(file: Path) -> list[dict[str, Any]]:
    """The figures of every line that was logged, by name."""
    rows = (record.history for record in records(file) if record.WhichOneof("record_type") == "history")
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]

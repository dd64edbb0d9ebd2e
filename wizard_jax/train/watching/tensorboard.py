"""TensorBoard's event files, as far as curves need them.

A file is a row of TFRecord frames, each with one `Event`, a protocol buffer of these fields:

    Event    1 wall_time (double)   2 step   3 file_version (string)   5 summary   7 session_log
    Summary  1 value, repeated: 1 tag (string), 2 simple_value (float)

(tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto). tensorboardX writes them too, but imports
PyTorch wherever it is installed: 3 s of every start.
"""

from __future__ import annotations

import platform
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from data_gen.shard_files import frame

_VERSION = b"brain.Event:2"
_SESSION_STARTS = b"\x08\x01"


class TensorBoard:
    """Event files in a folder. Figures of `from_step` and later, from a run that was cut off, are hidden."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        file = folder / f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        self._file = open(file, "xb")  # noqa: SIM115  # held open until close
        self._write(0, _field(3, _VERSION))
        self._write(from_step, _field(7, _SESSION_STARTS))
        self.flush()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        values = (_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value) for tag, value in figures.items())
        self._write(step, _field(5, b"".join(_field(1, value) for value in values)))

    def flush(self) -> None:
        self._file.flush()

    def close(self, *, finished: bool) -> None:
        del finished
        self._file.close()

    def _write(self, step: int, content: bytes) -> None:
        self._file.write(frame(b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + content))


def _field(number: int, content: bytes) -> bytes:
    """One of bytes, text or a message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """7 bits a byte, the lowest first; all but the last have bit 7 set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])

"""JSON arrays, JSON lines and JSON objects one after another, read in memory that is bounded by the largest row.

A file that begins with [ is an array. Any other has one value per line, unless its first line is the beginning of an
object over several lines, as in the files of Super-NaturalInstructions.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from data_gen.readers.rows import Row, SourceError

_CHUNK = 1 << 16  # bytes read at once; a row that is longer doubles it
_SPACE = " \t\r\n"
_CUT = 16  # characters: an error so close to the end of the window may only say that the window ends there
_DECODER = json.JSONDecoder()

NOT_JSON = "not JSON (a file that is no JSON array has one object per line)"


def json_rows(stream: BinaryIO, *, path: Path, source: str) -> Iterator[Row]:
    """The rows of an open file, which must be able to go back to its beginning.

    Raises:
      SourceError: not UTF-8, or an array (or an object over several lines) that is not JSON. A line that is not JSON
        is a row with a fault, for the next line is whole again.
    """
    text = _Window(stream, path=path)
    try:
        first = text.peek()
        if first == "[":
            values = _array(text)
        elif first == "{" and _goes_over_lines(stream, path=path):
            values = _values(_Window(stream, path=path))
        else:
            yield from _lines(stream, path=path, source=source)
            return
        for number, value in enumerate(values, start=1):
            yield Row(source, number, value)
    except _NotJson as error:
        raise SourceError(f"{path} is not JSON ({error}): mend it, or write one object per line") from None


class _NotJson(Exception):
    """Text that is not JSON, with its place in words."""


class _Window:
    """Holds a stream open at the value that is being read: the text grows to that value and no further."""

    def __init__(self, stream: BinaryIO, *, path: Path) -> None:
        stream.seek(0)
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes = 0
        self._line = 1
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not space; '' at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._grow():
                return ""

    def step(self) -> None:
        """Over the character that `peek` gave."""
        self._at += 1

    def value(self) -> Any:
        """The JSON value that begins at the character that `peek` gave."""
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                # Of a string without an end the decoder names the beginning.
                cut = error.pos + _CUT > len(self._text) or error.msg.startswith("Unterminated")
                if not cut or not self._grow():
                    raise self.error(error.msg, ahead=ahead) from None
            except RecursionError:
                raise self.error("nested too deep") from None
            except ValueError:
                raise self.error("a number of too many digits") from None
            else:
                # A number at the end of the window may go on behind it: 1 may become 1e-7.
                whole = end + len("e-7") <= len(self._text) or not isinstance(found, int | float)
                length = end - self._at  # growing, also in vain, drops what was read before
                if whole or not self._grow():
                    self._at += length
                    return found

    def error(self, message: str, *, ahead: int = 0) -> _NotJson:
        """So many characters ahead of where reading stands."""
        return _NotJson(f"line {self._line + self._text.count(chr(10), 0, self._at + ahead)}: {message}")

    def _grow(self) -> bool:
        """Drops what was read and reads on; False where the stream has ended."""
        pending = len(self._decoder.getstate()[0])
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        if self._bytes == 0:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
        try:
            text = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path, self._bytes - pending + error.start) from None
        self._bytes += len(chunk)
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(chunk)


def _array(text: _Window) -> Iterator[Any]:
    text.step()
    if text.peek() == "]":
        text.step()
    else:
        while True:
            if not text.peek():
                raise text.error("the array has no end")
            yield text.value()
            mark = text.peek()
            text.step()
            if mark == "]":
                break
            if mark != ",":
                raise text.error("Expecting ',' delimiter" if mark else "the array has no end")
    if text.peek():
        raise text.error("something follows the array")


def _values(text: _Window) -> Iterator[Any]:
    while text.peek():
        yield text.value()


def _goes_over_lines(stream: BinaryIO, *, path: Path) -> bool:
    """Whether the file begins with an object that its first line does not hold whole."""
    stream.seek(0)
    line = next(line for line in stream if line.removeprefix(codecs.BOM_UTF8).strip())
    beginning = _decoded(line.removeprefix(codecs.BOM_UTF8), path=path, offset=0)
    try:
        json.loads(beginning)
    except (ValueError, RecursionError):
        text = _Window(stream, path=path)
        text.peek()
        try:
            text.value()
        except _NotJson:
            return False
        return True
    return False


def _lines(stream: BinaryIO, *, path: Path, source: str) -> Iterator[Row]:
    stream.seek(0)
    offset = 0
    for number, line in zip(count(1), stream, strict=False):  # splitlines() would also split inside of strings
        text = _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, path=path, offset=offset)
        offset += len(line)
        if not text.strip():
            continue
        try:
            row = Row(source, number, json.loads(text))
        except (ValueError, RecursionError):  # a number of thousands of digits is a plain ValueError
            row = Row(source, number, fault=NOT_JSON)
        yield row


def _decoded(line: bytes, *, path: Path, offset: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start) from None


def _not_utf8(path: Path, byte: int) -> SourceError:
    return SourceError(f"{path} is not UTF-8 (byte {byte}): save it as UTF-8")

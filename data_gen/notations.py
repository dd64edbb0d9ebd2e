"""Whether a piece of JSON, XML, SQL, Python, HTML, shell or CSV parses. Nothing is ever executed.

    fault('{"a": 1', notation="json")   -> Fault(1, "Expecting ',' delimiter")
    fault('{"a": 1}', notation="json")  -> None

Each check is bounded in time and stack, whatever the text: see `LARGEST`.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn
from xml.parsers import expat

Notation = Literal["json", "jsonl", "xml", "sql", "python", "html", "shell", "csv"]

NAMES: Mapping[Notation, str] = MappingProxyType(
    {
        "json": "JSON",
        "jsonl": "JSON Lines",
        "xml": "XML",
        "sql": "SQL",
        "python": "Python",
        "html": "HTML",
        "shell": "shell",
        "csv": "CSV",
    }
)

LARGEST = 20_000
"""Characters of text that is checked; a reply of 2,048 tokens has about 8,000. SQL, the slowest, takes up to 1.1 s."""

_DEEPEST_SQL = 20  # brackets in brackets; sqlglot needs about 20 Python frames for each, of 1,000 there are
_SHELL_SECONDS = 2.0


class Fault(NamedTuple):
    """Where a text stops to parse (line from 1; 0 where no line can be named), and why."""

    line: int
    message: str


def fault(text: str, *, notation: Notation) -> Fault | None:
    """What keeps a text from being of a notation, or None."""
    if len(text) > LARGEST:
        return Fault(0, f"{len(text):,} characters are more than is checked")
    if not text.strip():
        return Fault(0, "there is nothing in it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Fault(1 + text.count("\n", 0, error.start), "half of a surrogate pair")
    try:
        return _CHECKS[notation](text)
    except (RecursionError, MemoryError):  # the second is what Python's own parser raises
        return Fault(0, "it is nested more deeply than is checked")


def decode_json(text: str, *, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at a place, with 0 for every number, and the place behind it.

    Raises:
      ValueError: there is none; NaN and Infinity are none.
      RecursionError: it is nested too deeply.
    """
    return _DECODER.raw_decode(text, at)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


# Numbers are not converted: Python takes quadratic time for long ones.
_DECODER = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0, parse_constant=_refuse_constant)


def _json(text: str) -> Fault | None:
    try:
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return Fault(error.lineno, error.msg)
    except ValueError as error:
        return Fault(0, str(error))
    return None


def _jsonl(text: str) -> Fault | None:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and (found := _json(line)):
            return found._replace(line=number)
    return None


def _xml(text: str) -> Fault | None:
    parser = expat.ParserCreate()

    # Entities can stand for more text than memory holds, or for files; of a DTD that is only named nothing is read.
    def check_doctype(name: str, system: str | None, public: str | None, declares: object) -> None:  # noqa: ARG001
        if declares:
            raise ValueError

    parser.StartDoctypeDeclHandler = check_doctype
    try:
        parser.Parse(text.strip(), True)
    except expat.ExpatError as error:
        return Fault(error.lineno, expat.ErrorString(error.code))
    except ValueError:
        return Fault(parser.CurrentLineNumber, "a DOCTYPE that declares something, such as entities, is not read")
    return None


def _python(text: str) -> Fault | None:
    if re.match(r"\s*>>> ", text):  # a session at the prompt: what was typed
        text = "\n".join(
            line.lstrip()[4:] if re.match(r"\s*(?:>>>|\.\.\.)( |$)", line) else "" for line in text.split("\n")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of an invalid escape sequence
        try:
            ast.parse(textwrap.dedent(text))
        except SyntaxError as error:
            return Fault(error.lineno or 0, error.msg)
        except ValueError as error:
            return Fault(0, str(error))
    return None


# --- SQL

_DIALECTS = (None, "mysql", "postgres", "tsql", "sqlite")
_ROUTINE = re.compile(
    r"(?:CREATE|ALTER)\b.*?\b(?:FUNCTION|PROCEDURE|TRIGGER|EVENT|SEQUENCE|TYPE|DOMAIN|ROLE|USER|EXTENSION|POLICY|RULE)\s",
    re.IGNORECASE | re.DOTALL,
)
_OWN_GRAMMAR = ("CREATE", "ALTER", "SELECT", "INSERT", "UPDATE", "DELETE", "DROP", "MERGE", "WITH")


def _sql(text: str) -> Fault | None:
    """Passes what one of several dialects takes; the fault is the one of standard SQL."""
    if _depth(text) > _DEEPEST_SQL:
        raise RecursionError
    faults = []
    for dialect in _DIALECTS:
        found = _sql_in(text, dialect)
        if found is None:
            return None
        faults.append(found)
    return faults[0]


def _sql_in(text: str, dialect: str | None) -> Fault | None:
    import sqlglot
    from sqlglot import errors, expressions

    try:
        with _silent("sqlglot"):
            statements = sqlglot.parse(text, dialect=dialect)
    except errors.ParseError as error:
        first = error.errors[0] if error.errors else {}
        return Fault(first.get("line") or 0, first.get("description") or "it can not be read")
    except errors.SqlglotError:
        return Fault(0, "a quotation or comment does not end")
    except RecursionError:
        raise
    except Exception as error:  # on texts that nobody writes it fails in ways of its own
        return Fault(0, f"it can not be read ({type(error).__name__})")
    said = [statement for statement in statements if statement is not None]
    for statement in said:
        if isinstance(statement, expressions.Command):
            # What sqlglot has no grammar for it keeps as text. That may be right, but for what it has a grammar for.
            keyword = str(statement.this).upper()
            if keyword in _OWN_GRAMMAR and not _ROUTINE.match(f"{keyword}{statement.expression or ''} "):
                return Fault(0, f"a statement that begins with {keyword} can not be read")
        elif isinstance(statement, expressions.Condition | expressions.Alias):
            return Fault(0, "an expression and no statement")
    return None if said else Fault(0, "it holds no statement")


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{)\]}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


# --- HTML

_VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
_ENDS_BY_ITSELF = frozenset(
    """
    p li dt dd tr td th thead tbody tfoot colgroup caption option optgroup rt rp html head body
    """.split()
)
_RAW = frozenset("script style textarea title".split())
# Python's own reader of HTML takes 26 s for 50,000 characters of "<a ": possessive groups give up at once.
_TAG = re.compile(r"""<(?P<end>/?)(?P<name>[a-zA-Z][^\s/<>]*+)(?:[^<>"']++|"[^"]*+"|'[^']*+')*+>""")
_MARKUP = re.compile(r"<(?:[a-zA-Z/]|!--|!|\?)")
_CLOSING = {"<!--": "-->", "<!": ">", "<?": ">"}


def _html(text: str) -> Fault | None:
    """Passes tags that nest; an end tag may be missing where the standard says that it may."""
    is_open: list[tuple[str, int]] = []  # name, place
    place = tags = 0
    while markup := _MARKUP.search(text, place):
        line = 1 + text.count("\n", 0, markup.start())
        if closing := _CLOSING.get(markup[0]):
            end = text.find(closing, markup.end())
            if end < 0:
                return Fault(line, f"{markup[0]} has no {closing}")
            place = end + len(closing)
            continue
        tag = _TAG.match(text, markup.start())
        if tag is None:
            return Fault(line, "a tag does not end")
        name, place, tags = tag["name"].lower(), tag.end(), tags + 1
        if tag["end"]:
            while is_open and is_open[-1][0] != name and is_open[-1][0] in _ENDS_BY_ITSELF:
                is_open.pop()
            if not is_open or is_open.pop()[0] != name:
                return Fault(line, f"</{name[:40]}> ends nothing that is open")
        elif name not in _VOID and not tag[0].endswith("/>"):
            is_open.append((name, tag.start()))
            if name in _RAW:
                place = max(text.lower().find(f"</{name}", place), place)
    left = [(name, at) for name, at in is_open if name not in _ENDS_BY_ITSELF]
    if left:
        name, at = left[-1]
        return Fault(1 + text.count("\n", 0, at), f"<{name[:40]}> is never ended")
    return None if tags else Fault(0, "it holds no tag")


# --- shell


def _shell(text: str) -> Fault | None:
    """Reads it with `bash -n`, which runs nothing; where there is no bash, only quotations are checked."""
    lines = text.split("\n")
    if any(re.match(r"\s*\$ ", line) for line in lines):  # a session at the prompt: what was typed
        text = "\n".join(line.lstrip()[2:] if re.match(r"\s*[$>] ", line) else "" for line in lines)
    bash = shutil.which("bash")
    if bash is None:
        try:
            shlex.split(text, comments=True)
        except ValueError as error:
            return Fault(0, str(error))
        return None
    try:
        # An empty environment: bash runs the file that BASH_ENV names even when it is to run nothing.
        read = subprocess.run(
            [bash, "--norc", "--noprofile", "-n"],
            input=f"{text}\n".encode(),
            capture_output=True,
            timeout=_SHELL_SECONDS,
            env={"LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Fault(0, f"it could not be read ({type(error).__name__})")
    if read.returncode == 0:
        return None
    if read.returncode < 0:
        raise RecursionError
    said = re.search(r"line (\d+): (.*)", read.stderr.decode(errors="replace"))
    return Fault(int(said[1]), said[2]) if said else Fault(0, "it can not be read")


def _csv(text: str) -> Fault | None:
    delimiter = max("\t|;,", key=text.split("\n")[0].count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        return Fault(0, str(error))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            return Fault(number, f"{len(row)} fields, and {len(rows[0])} in the first row")
    return None


_CHECKS: Mapping[Notation, Callable[[str], Fault | None]] = MappingProxyType(
    {
        "json": _json,
        "jsonl": _jsonl,
        "xml": _xml,
        "sql": _sql,
        "python": _python,
        "html": _html,
        "shell": _shell,
        "csv": _csv,
    }
)

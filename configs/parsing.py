"""gin's text -> bindings with their lines, file by file, and values -> gin's text."""

from __future__ import annotations

import os
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath
from gin import config_parser

from configs.errors import UserError
from configs.schema import nearest

SHIPPED = Path(__file__).parent
_WIDTH = 100


class ConfigError(UserError):
    """One or several mistakes in a config, each with its file, line and path."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        many = f"{len(problems)} mistakes in the config:\n  " if len(problems) > 1 else ""
        super().__init__(many + "\n  ".join(problems))


@dataclass(frozen=True)
class Reference:
    """`@AdamW`: the choice of a component."""

    name: str
    evaluated: bool = False


@dataclass(frozen=True)
class MacroUse:
    """`%SEQ_LEN`: the value of a macro, wherever it is set last."""

    name: str


@dataclass(frozen=True)
class Binding:
    """`path = value` at a line of a file; the path of a macro is its name."""

    path: str
    value: Any
    where: str


@dataclass(frozen=True)
class Layer:
    """What one file binds itself; the files that it includes are layers before it."""

    name: str
    bindings: tuple[Binding, ...]


class _Delegate:
    """What gin's parser makes of `@` and `%` (its ParserDelegate)."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> MacroUse:
        return MacroUse(macro_name)


def read_layers(files: Sequence[str | os.PathLike[str]]) -> list[Layer]:
    """The files and all that they include, in the order in which later ones override earlier ones.

    Raises ConfigError for a file that is missing, not UTF-8, no gin text, or included twice.
    """
    layers: list[Layer] = []
    read: dict[str, str] = {}
    for file in files:
        found = _find(os.fspath(file), folders=(epath.Path(""), epath.Path(SHIPPED.parent)), asked="")
        _read_file(found, asked="the command line", open_files=(), read=read, layers=layers)
    return layers


def _find(name: str, *, folders: Sequence[epath.Path], asked: str) -> epath.Path:
    candidates = [epath.Path(name)] if "://" in name else [folder / name for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    near: list[str] = []
    for folder in {epath.Path(os.path.dirname(one) or ".") for one in candidates}:
        if folder.is_dir():
            near += [os.path.join(os.path.dirname(name), one.name) for one in folder.glob("*.gin")]
    tried = " and ".join(dict.fromkeys(_display(one) for one in candidates))
    prefix = f"{asked}: " if asked else ""
    raise ConfigError(f"{prefix}no such config file: {name} (looked for {tried}){nearest(name, near)}")


def _display(file: epath.Path) -> str:
    """The file's name as a user would type it here."""
    text: str = os.fspath(file)
    return text.removeprefix(os.getcwd() + os.sep)


def _key(file: epath.Path) -> str:
    """The same for all spellings of a local file's name (`resolve` would take a bucket for a folder)."""
    text: str = os.fspath(file)
    return text if "://" in text else os.path.realpath(text)


def _read_file(
    file: epath.Path, *, asked: str, open_files: tuple[str, ...], read: dict[str, str], layers: list[Layer]
) -> None:
    name, key = _display(file), _key(file)
    if key in open_files:
        cycle = " -> ".join(_display(epath.Path(one)) for one in (*open_files, key))
        raise ConfigError(f"{asked}: includes form a cycle: {cycle}")
    if key in read:
        raise ConfigError(
            f"{asked}: {name} is read a second time (first by {read[key]}), which would undo what lies "
            "between; keep one of the two"
        )
    read[key] = asked
    bindings: list[Binding] = []
    for statement in _parse(_read_text(file), where=lambda line: f"{name}:{line}"):
        where = f"{name}:{statement.location.line_num}"
        if isinstance(statement, config_parser.BindingStatement):
            bindings.append(_binding(statement, where=where))
        elif isinstance(statement, config_parser.IncludeStatement):
            if bindings:
                raise ConfigError(f"{where}: an include stands above all bindings: what follows overrides it")
            included = _find(statement.filename, folders=(epath.Path(file.parent), epath.Path(SHIPPED)), asked=where)
            _read_file(included, asked=where, open_files=(*open_files, key), read=read, layers=layers)
        elif isinstance(statement, config_parser.ImportStatement):
            raise ConfigError(f"{where}: '{statement.format()}': a config file imports nothing; use include")
        elif statement.scope:
            raise ConfigError(f"{where}: {statement.scope}/{statement.selector}: there are no scopes here")
    layers.append(Layer(name, _each_once(bindings)))


def _each_once(bindings: Sequence[Binding]) -> tuple[Binding, ...]:
    first: dict[str, Binding] = {}
    problems = []
    for binding in bindings:
        if binding.path in first:
            problems.append(
                f"{binding.where}: {binding.path}: bound twice in one file, first at {first[binding.path].where}"
            )
        first.setdefault(binding.path, binding)
    if problems:
        raise ConfigError(*problems)
    return tuple(bindings)


def _read_text(file: epath.Path) -> str:
    try:
        text: str = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_display(file)}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{_display(file)}: can not be read: {error.strerror}") from None
    return text


def _parse(text: str, *, where: Callable[[int], str]) -> list[Any]:
    """gin's statements; raises ConfigError with the line of a syntax error, or of too many brackets."""
    with warnings.catch_warnings():
        # An unknown escape such as '\d' is a warning to Python and a mistake here.
        warnings.simplefilter("error")
        try:
            parser = config_parser.ConfigParser(text, _Delegate())
            # Not by iteration: a StopIteration out of the parser itself must not look like the end.
            statements = []
            while (statement := parser.parse_statement()) is not None:
                statements.append(statement)
        except (SyntaxError, tokenize.TokenError) as error:
            line, message = _syntax_message(error)
            raise ConfigError(f"{where(line)}: {message}") from None
        except RecursionError:
            lines = text.split("\n")
            most = max(range(len(lines)), key=lambda line: sum(map(lines[line].count, "([{")))
            raise ConfigError(f"{where(most + 1)}: brackets are nested too deep") from None
    return statements


def parse_value(text: str, *, where: str) -> Any:
    """The value that stands in `text`, as it would behind `=` in a file."""
    statements = _parse(f"value = {text}\n", where=lambda _line: where)
    if len(statements) != 1:
        raise ConfigError(f"{where}: {text!r} is not one value")
    return _plain(statements[0].value, where=where)


def _syntax_message(error: SyntaxError | tokenize.TokenError) -> tuple[int, str]:
    if isinstance(error, tokenize.TokenError):
        return error.args[1][0], f"syntax error: {error.args[0]}"
    token = (error.msg or "").partition("Failed to parse token '")[2].removesuffix("'")
    line = (error.text or "").strip()
    if token in ("inf", "nan"):
        return error.lineno or 1, f"syntax error: {token} is no value (infinity is written 1e999): {line}"
    if token.isidentifier():
        return error.lineno or 1, f"syntax error: {token} is no value; a string needs quotes: {line}"
    message = (error.msg or "").strip().replace("\n    ", " ").rstrip(".")
    return error.lineno or 1, f"syntax error: {message}: {line}"


def _binding(statement: config_parser.BindingStatement, *, where: str) -> Binding:
    path = ".".join(part for part in (statement.selector, statement.arg_name) if part)
    if statement.scope:
        raise ConfigError(f"{where}: {statement.scope}/{path}: there are no scopes here; write {path}")
    return Binding(path, _plain(statement.value, where=f"{where}: {path}"), where)


def _plain(value: Any, *, where: str) -> Any:
    """`value`, whose references and macros are plain names."""
    for part in leaves(value):
        if isinstance(part, Reference) and part.evaluated:
            raise ConfigError(f"{where}: nothing is called here; write @{part.name} without ()")
        if isinstance(part, Reference | MacroUse) and "/" in part.name:
            raise ConfigError(f"{where}: {part.name}: there are no scopes here")
    return value


def leaves(value: Any) -> Iterator[Any]:
    """What a value holds, through tuples, lists and dicts."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def format_value(value: Any) -> str:
    """`value` as a config file says it: the text that `parse_value` reads back as an equal value."""
    match value:
        case Reference():
            return f"@{value.name}"
        case MacroUse():
            return f"%{value.name}"
        case tuple():
            return "(" + ", ".join(format_value(one) for one in value) + "," * (len(value) == 1) + ")"
        case float():
            # gin reads no name such as inf; a literal beyond the largest float is infinity.
            return float.__repr__(value).replace("inf", "1e999")
    return repr(value)


def format_binding(path: str, value: Any) -> str:
    """`path = value`, a long tuple with one item a line."""
    line = f"{path} = {format_value(value)}"
    if len(line) <= _WIDTH or not isinstance(value, tuple):
        return line
    return "\n".join([f"{path} = (", *(f"    {format_value(one)}," for one in value), ")"])

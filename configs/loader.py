"""Configs: gin's text, bound to a tree of frozen dataclasses.

    include 'models/llama2_7b.gin'       # what follows overrides what is included
    SEQ_LEN = 2048                       # a macro: upper case, and used somewhere
    data.seq_len = %SEQ_LEN
    optimizer = @AdamW                   # one of the types that the field's annotation allows
    optimizer.peak_lr = 2e-5

Layers, each overriding the ones before it: the included files, the file, the next file, the command
line. Within a layer order means nothing, and a path is bound once.

A field may hold components by names that the file chooses (`models.seeds = @Local`); None takes one out again.

A layer that chooses another type for a component keeps what earlier layers bound below it where the
new type has a field of that name, and drops the rest. A binding that its own layer's choices do not
allow is an error, so a misspelling is never dropped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from configs.parsing import (
    Binding,
    ConfigError,
    Layer,
    MacroUse,
    Reference,
    format_value,
    leaves,
    parse_value,
    read_layers,
)
from configs.schema import (
    MISSING,
    Field,
    check_value,
    fields_of,
    literal_values,
    nearest,
    setting,
    takes_any_text,
    takes_only_text,
)
from configs.trees import Difference, PathInfo, diff, dump, entries, identity, paths

__all__ = [
    "ConfigError",
    "Difference",
    "PathInfo",
    "diff",
    "dump",
    "entries",
    "identity",
    "load",
    "origins",
    "paths",
    "setting",
]

T = TypeVar("T")
Files = Sequence[str | os.PathLike[str]]
COMMAND_LINE = "command line"


def load(
    root: type[T], files: Files, overrides: Sequence[str] = (), *, otherwise: Mapping[str, str] | None = None
) -> T:
    """What the files and the command line's `path=value` overrides make; `otherwise` is for what they leave open.

    A name that the working directory lacks is looked for beside the shipped `configs` folder, an
    included one beside its includer and then in that folder. Raises ConfigError with every mistake found.
    """
    config: T = _assemble(root, files, overrides, otherwise or {}).config
    return config


def origins(root: type, files: Files, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Where each setting of `load`'s result comes from: 'file:line', 'command line' or 'default'."""
    return _assemble(root, files, overrides, {}).origins


@dataclass(frozen=True)
class _Place:
    """Where a path leads: to a field, to a component that nobody chose, or nowhere."""

    field: Field | None = None
    unchosen: str = ""
    problem: str = ""


@dataclass
class _Assembly:
    """The bindings in force, layer by layer, and then the tree that they make."""

    root: type
    bound: dict[str, Binding] = field(default_factory=dict)
    macros: dict[str, Binding] = field(default_factory=dict)
    settled: dict[str, Binding] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    config: Any = None


def _assemble(root: type, files: Files, overrides: Sequence[str], otherwise: Mapping[str, str]) -> _Assembly:
    state = _Assembly(root)
    lowest = [Binding(path, text, "otherwise") for path, text in otherwise.items()]
    layers = [Layer("otherwise", tuple(lowest)), *read_layers(files), None]
    for layer in layers:
        _apply(state, layer or _command_line(state, overrides))
    _check_macros(state)
    _check_choices(state)
    state.config = _build(state, root, prefix="", default=MISSING)
    if state.problems:
        raise ConfigError(*dict.fromkeys(state.problems))
    return state


def _apply(state: _Assembly, layer: Layer) -> None:
    """Puts a layer's bindings into force and drops what its choices have made void."""
    new: dict[str, Binding] = {}
    for binding in layer.bindings:
        if _is_macro(state.root, binding.path):
            state.macros[binding.path] = binding
            state.used.discard(binding.path)
        else:
            new[binding.path] = binding
    state.bound |= new
    for path, binding in list(state.bound.items()):
        place = _locate(state, path)
        if place.field is not None:
            state.settled[path] = binding
            if problem := _choice_problem(place.field, binding.value):
                state.problems.append(f"{binding.where}: {path}: {problem}")
        elif state.settled.get(path) is binding:
            del state.bound[path]
        elif place.problem:
            state.problems.append(f"{binding.where}: {path}: {place.problem}")
            del state.bound[path]
    for binding in state.bound.values():
        state.used |= _reachable(state, _macros_in(binding.value))


def _is_macro(root: type, path: str) -> bool:
    return path not in fields_of(root) and path.isidentifier() and path.isascii() and path.isupper()


def _locate(state: _Assembly, path: str) -> _Place:
    """What `path` leads to under the choices now in force."""
    names = path.split(".")
    cls = state.root
    default: Any = MISSING
    above: Field | None = None
    group: Field | None = None
    for depth, name in enumerate(names):
        prefix, is_last = ".".join(names[: depth + 1]), depth == len(names) - 1
        if group is not None:
            if not name.isidentifier():
                return _Place(problem=f"{name!r} is no name: letters, digits and _, not beginning with a digit")
            found, group, default = group.member(name), None, None
        else:
            if name not in fields_of(cls):
                above_it = _of_another_choice(above, cls, names[:depth], name)
                return _Place(problem=above_it or _unknown(state.root, cls, names, depth))
            found = fields_of(cls)[name]
            default = getattr(default, name) if type(default) is cls else found.default
        if is_last and found.named:
            return _Place(problem=f"holds {found.type_text()}")
        if is_last:
            return _Place(field=found)
        if found.named:
            group = found
            continue
        if not found.components:
            return _Place(problem=f"{prefix} is no component: its type is {found.type_text()}")
        chosen = _chosen(state, found, prefix, default)
        if chosen is None:
            return _Place(unchosen=prefix)
        cls, above = chosen, found
    raise AssertionError("a path has at least one name")


def _of_another_choice(above: Field | None, cls: type, prefix: list[str], name: str) -> str:
    """Which other types of the component above have a setting that the chosen one lacks, or nothing."""
    have = [one.__name__ for one in above.components if name in fields_of(one)] if above else []
    if not have:
        return ""
    choices = " or ".join(f"{'.'.join(prefix)} = @{one}" for one in have)
    return f"{cls.__name__} has no setting {name!r}; it goes with {choices}"


def _unknown(root: type, cls: type, names: list[str], depth: int) -> str:
    """Why a path's name at `depth` is wrong, with the path that was most likely meant."""
    prefix = "".join(f"{name}." for name in names[:depth])
    wrong, siblings = names[depth], list(fields_of(cls))
    told = f"{cls.__name__} has no setting {wrong!r}"
    near = nearest(prefix + wrong, [prefix + name for name in siblings])
    everywhere = list(dict.fromkeys(info.path for info in paths(root)))
    namesakes = [path for path in everywhere if path.rpartition(".")[2] == names[-1]]
    if near:
        return told + near
    if namesakes:
        return f"{told}; did you mean {' or '.join(namesakes[:3])}?"
    if len(names) == 1:
        macro = f"; a macro is written in upper case: {wrong.upper()}"
        return told + (nearest(wrong, everywhere) or macro)
    return f"{told}; it has {', '.join(siblings) or 'none'}"


def _chosen(state: _Assembly, found: Field, path: str, default: Any) -> type | None:
    """The dataclass in force at a component's path, or None: the chosen one, else the default's."""
    binding = state.bound.get(path)
    if binding is None:
        if default is None or default is MISSING:
            return found.sole_component
        return type(default)
    if isinstance(binding.value, Reference):
        return found.component_named(binding.value.name)
    return None


def _check_choices(state: _Assembly) -> None:
    """Adds a problem for each binding that is left below a component which is not chosen."""
    for path, binding in state.bound.items():
        place = _locate(state, path)
        if place.unchosen and place.unchosen not in state.bound:
            found = _locate(state, place.unchosen).field
            assert found is not None
            state.problems.append(
                f"{binding.where}: {path}: {place.unchosen} is not chosen; "
                f"write {' or '.join(f'{place.unchosen} = @{one.__name__}' for one in found.components)}"
            )
        elif place.unchosen and state.bound[place.unchosen].value is None:
            state.problems.append(
                f"{binding.where}: {path}: has no effect, as {place.unchosen} is None "
                f"({state.bound[place.unchosen].where})"
            )


def _choice_problem(found: Field, value: Any) -> str:
    """What is wrong with a value bound at a component's path, or nothing."""
    if not found.components or (value is None and found.optional):
        return ""
    if isinstance(value, Reference):
        if found.component_named(value.name):
            return ""
        near = nearest(value.name, [one.__name__ for one in found.components])
        return f"@{value.name} is none of its types, {found.type_text()}{near}"
    return f"{format_value(value)} chooses no type; write {found.type_text()}"


# Macros


def _reachable(state: _Assembly, names: Sequence[str]) -> set[str]:
    """The macros that these names use, directly or through the values of others."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _macros_in(state.macros[name].value) if name in state.macros else []
    return seen


def _check_macros(state: _Assembly) -> None:
    """Adds a problem for each macro without effect; raises ConfigError at once for a cycle."""
    cycles = []
    for name, binding in state.macros.items():
        if name in _reachable(state, _macros_in(binding.value)):
            cycles.append(f"{binding.where}: {name}: macros form a cycle: {_cycle(state, name)}")
        elif name not in state.used:
            near = nearest(name.lower(), fields_of(state.root))
            state.problems.append(f"{binding.where}: {name}: no setting uses this macro{near}")
        if any(isinstance(one, Reference) for one in leaves(binding.value)):
            state.problems.append(
                f"{binding.where}: {name}: a macro holds a value; choose a type where it stands: path = @Type"
            )
    if cycles:
        raise ConfigError(*cycles)


def _macros_in(value: Any) -> list[str]:
    return [one.name for one in leaves(value) if isinstance(one, MacroUse)]


def _cycle(state: _Assembly, start: str) -> str:
    path = [start]
    while len(path) == 1 or path[-1] != start:
        inner = _macros_in(state.macros[path[-1]].value)
        path.append(next(one for one in inner if one == start or start in _reachable(state, [one])))
    return " -> ".join(f"%{one}" for one in path)


def _resolve(state: _Assembly, value: Any) -> Any:
    """`value` with its macros replaced; raises ValueError for one that is not defined."""
    if isinstance(value, MacroUse):
        if value.name not in state.macros:
            raise ValueError(f"%{value.name} is not defined{nearest(value.name, state.macros)}")
        return _resolve(state, state.macros[value.name].value)
    if isinstance(value, list | tuple):
        return type(value)(_resolve(state, one) for one in value)
    return value


# The tree


def _build(state: _Assembly, cls: type, *, prefix: str, default: Any) -> Any:
    """An instance of `cls` from the bindings below `prefix`; what they leave open comes from `default`."""
    values: dict[str, Any] = {}
    for name, found in fields_of(cls).items():
        path = prefix + name
        given = getattr(default, name) if type(default) is cls else found.default
        if found.named:
            values[name] = _build_named(state, found, path)
        elif found.components:
            values[name] = _build_component(state, found, path, given)
        else:
            values[name] = _leaf(state, found, path, given)
    if state.problems:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        told = [name for name in values if re.search(rf"\b{name}\b", str(error))]
        bound = [state.bound[prefix + name].where for name in told or values if prefix + name in state.bound]
        where = ", ".join(dict.fromkeys(bound)) or "defaults"
        state.problems.append(f"{where}: {prefix.rstrip('.') or cls.__name__}: {error}")
        return None


def _build_named(state: _Assembly, found: Field, path: str) -> Mapping[str, Any]:
    """The components below `path`, in the order in which they were first bound."""
    names = dict.fromkeys(
        one.removeprefix(f"{path}.").partition(".")[0] for one in state.bound if one.startswith(f"{path}.")
    )
    built = {name: _build_component(state, found.member(name), f"{path}.{name}", None) for name in names}
    return MappingProxyType({name: one for name, one in built.items() if one is not None})


def _build_component(state: _Assembly, found: Field, path: str, default: Any) -> Any:
    binding = state.bound.get(path)
    chosen = _chosen(state, found, path, default)
    if found.sole_component is None:
        state.origins[path] = binding.where if binding else "default"
    if chosen is not None:
        return _build(state, chosen, prefix=f"{path}.", default=default)
    if binding is None and default is MISSING:
        state.problems.append(f"{path}: required, and nothing chooses it; write {path} = {found.type_text()}")
    return None


def _leaf(state: _Assembly, found: Field, path: str, default: Any) -> Any:
    binding = state.bound.get(path)
    if binding is None:
        state.origins[path] = "default"
        if default is MISSING:
            about = f" ({found.doc})" if found.doc else ""
            state.problems.append(
                f"{path}: required, and nothing binds it; write {path} = <{found.type_text()}>{about}"
            )
            return None
        return check_value(found.annotation, default)
    used = [name for name in _macros_in(binding.value) if name in state.macros]
    via = [f"{name} {state.macros[name].where}" for name in used]
    state.origins[path] = ", ".join([binding.where, *via])
    try:
        value = _resolve(state, binding.value)
        return check_value(found.annotation, value)
    except ValueError as error:
        state.problems.append(f"{state.origins[path]}: {path} = {format_value(binding.value)}: {error}")
        return None


# The command line


def _command_line(state: _Assembly, overrides: Sequence[str]) -> Layer:
    """The overrides as the last layer; choices are read first, for they say which paths hold text."""
    given: dict[str, Binding] = {}
    for override in sorted(overrides, key=lambda one: one.partition("=")[0].count(".")):
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not path:
            state.problems.append(f"{COMMAND_LINE}: {override!r}: an override is written path=value")
            continue
        if path in given:
            state.problems.append(f"{COMMAND_LINE}: {path}: given twice")
            continue
        view = _Assembly(state.root, bound=state.bound | given)
        try:
            given[path] = Binding(path, _override_value(view, path, text), COMMAND_LINE)
        except ConfigError as error:
            state.problems += error.problems
    return Layer(COMMAND_LINE, tuple(given.values()))


def _override_value(state: _Assembly, path: str, text: str) -> Any:
    """Text as it stands for a path that holds text, else gin's value of it."""
    where = f"{COMMAND_LINE}: {path}={text}"
    place = _locate(state, path)
    if place.unchosen or (place.problem and not _is_macro(state.root, path)):
        return text  # which of the two it is, is told by the check of choices
    if place.field is not None and place.field.components and text.isidentifier() and text != "None":
        return text  # a type without its @: told by the check of choices
    if place.field is None or place.field.components:
        return parse_value(text, where=where)
    annotation = place.field.annotation
    if text == "None" and place.field.optional:
        return None
    if takes_only_text(annotation) or text in literal_values(annotation):
        return text
    try:
        value = parse_value(text, where=where)
        return check_value(annotation, value) if takes_any_text(annotation) else value
    except ValueError:
        # Text that is no value: right where any text is, and else told by the check of its type.
        return text

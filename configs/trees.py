"""Finished config trees: written out, hashed, compared, listed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.parsing import Reference, format_binding, format_value
from configs.schema import MISSING, Role, check_value, fields_of


@dataclass(frozen=True)
class Entry:
    """One path of a config: a leaf's value, or a component's type as a Reference."""

    path: str
    value: Any
    role: Role
    chosen: bool = True

    @property
    def text(self) -> str:
        return format_value(self.value)


@dataclass(frozen=True)
class Difference:
    """A path at which two configs differ, as files would say it; None where one has no such path."""

    path: str
    left: str | None
    right: str | None
    role: Role


@dataclass(frozen=True)
class PathInfo:
    """A path that a file may bind; `default` is text as in a file, None where there is none."""

    path: str
    type: str
    default: str | None
    required: bool
    role: Role
    doc: str
    component: str


def entries(config: Any) -> list[Entry]:
    """Every component and leaf of a config, in the order of its fields; the root is the path ''."""
    return [Entry("", Reference(type(config).__name__), "identity", chosen=False), *_walk(config, "", "identity")]


def _walk(config: Any, prefix: str, role: Role) -> Iterator[Entry]:
    cls: type = type(config)
    for field in fields_of(cls).values():
        value = getattr(config, field.name)
        path = prefix + field.name
        here: Role = "operational" if "operational" in (role, field.role) else "identity"
        if field.named:
            for name, one in value.items():
                yield Entry(f"{path}.{name}", Reference(type(one).__name__), here)
                yield from _walk(one, f"{path}.{name}.", here)
        elif not field.components:
            try:
                yield Entry(path, check_value(field.annotation, value), here)
            except ValueError as error:
                raise TypeError(f"{cls.__name__}.{field.name} = {value!r}: {error}") from None
        elif value is None:
            yield Entry(path, None, here)
        else:
            yield Entry(path, Reference(type(value).__name__), here, chosen=field.sole_component is None)
            yield from _walk(value, f"{path}.", here)


def dump(config: Any) -> str:
    """The config as one file that binds every path: `load` makes an equal config of it."""
    told = [one for one in entries(config) if one.chosen]
    groups = {one.path.partition(".")[0] for one in told if "." in one.path}
    lines = [f"# {type(config).__name__}, every setting written out"]
    before: str | None = None
    for entry in told:
        top = entry.path.partition(".")[0]
        group = top if top in groups else ""
        if group != before:
            lines.append("")
        lines.append(format_binding(entry.path, entry.value))
        before = group
    return "\n".join(lines) + "\n"


def identity(config: Any) -> str:
    """SHA-256 in hex over the types and the identity settings, whatever their order in the class."""
    told = {one.path: _told(one.value) for one in entries(config) if one.role == "identity"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("ascii")).hexdigest()


def _told(value: Any) -> Any:
    """A value for JSON, in which a type and a string of the same spelling differ."""
    return {"type": value.name} if isinstance(value, Reference) else value


def diff(left: Any, right: Any) -> list[Difference]:
    """The paths at which two configs differ, in the order of the left one, then the right one's own."""
    ours = {one.path: one for one in entries(left)}
    theirs = {one.path: one for one in entries(right)}
    found = []
    for path in ours | theirs:
        one, other = ours.get(path), theirs.get(path)
        texts = (one.text if one else None, other.text if other else None)
        if texts[0] != texts[1]:
            role = (one or theirs[path]).role
            found.append(Difference(path, *texts, role))
    return found


def paths(root: type) -> list[PathInfo]:
    """Every path that a config of type `root` can bind; of a union, the paths of each member."""
    return list(_walk_paths(root, prefix="", role="identity", default=MISSING))


def _walk_paths(cls: type, *, prefix: str, role: Role, default: Any) -> Iterator[PathInfo]:
    for field in fields_of(cls).values():
        path = prefix + field.name
        here: Role = "operational" if "operational" in (role, field.role) else "identity"
        value = getattr(default, field.name) if type(default) is cls else field.default
        if field.named:
            field, path, value = field.member("NAME"), f"{path}.NAME", None
        if field.sole_component is None:
            required = value is MISSING
            shown = Reference(type(value).__name__) if dataclasses.is_dataclass(value) else value
            text = None if required else format_value(shown)
            yield PathInfo(path, field.type_text(), text, required, here, field.doc, field.owner)
        for component in field.components:
            yield from _walk_paths(component, prefix=f"{path}.", role=here, default=value)

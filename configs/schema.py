"""What a tree of config dataclasses may be bound to: its paths, types, defaults and roles."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import pydantic

Role: TypeAlias = Literal["identity", "operational"]
MISSING: Any = dataclasses.MISSING
_METADATA = "setting"


def setting(
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] = MISSING,
    operational: bool = False,
    doc: str = "",
) -> Any:
    """Declare a field of a config dataclass; without a default it is required.

    An `operational` setting says how a stage runs (rates, concurrency, what is kept), not what it
    makes: it stays out of `identity`, and may change when the stage is started again on its folder.
    All that lies below an operational component is operational.
    """
    metadata = {_METADATA: ("operational" if operational else "identity", doc)}
    if default_factory is not MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Field:
    """One field: a component (one of some dataclasses, perhaps None), several by name, or a leaf (any other type)."""

    name: str
    owner: str
    annotation: Any
    components: tuple[type, ...]
    optional: bool
    default: Any
    role: Role
    doc: str
    named: bool = False
    """Whether it holds any number of components, each by a name that the file chooses."""

    def member(self, name: str) -> Field:
        """The component of that name, of a field that holds several; None leaves out what an earlier layer chose."""
        return replace(self, name=name, optional=True, default=None, named=False)

    @property
    def sole_component(self) -> type | None:
        """The dataclass that stands here without being chosen."""
        return self.components[0] if len(self.components) == 1 and not self.optional and not self.named else None

    def component_named(self, name: str) -> type | None:
        return next((one for one in self.components if one.__name__ == name), None)

    def type_text(self) -> str:
        """The type, as a reader of a config file would write its values."""
        if self.named:
            return f"components by name: {self.name}.NAME = {self.member('NAME').type_text()}"
        if not self.components:
            return annotation_text(self.annotation)
        names = [f"@{one.__name__}" for one in self.components] + ["None"] * self.optional
        return " | ".join(names)


@functools.cache
def fields_of(cls: type) -> types.MappingProxyType[str, Field]:
    """The fields of a config dataclass by name.

    Raises TypeError for what no file could express: that is a mistake of the class, not of its user.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is no dataclass")
    hints = typing.get_type_hints(cls, include_extras=True)
    return types.MappingProxyType(
        {field.name: _field(cls, field, hints[field.name]) for field in dataclasses.fields(cls)}
    )


def _field(cls: type, field: dataclasses.Field[Any], annotation: Any) -> Field:
    if not field.init:
        raise TypeError(f"{cls.__name__}.{field.name}: a setting must be an argument of __init__")
    role, doc = field.metadata.get(_METADATA, ("identity", ""))
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    named = get_origin(annotation) is Mapping
    members = _union_members(get_args(annotation)[1] if named else annotation)
    components = tuple(one for one in members if _is_component(one))
    optional = type(None) in members
    if named and (not components or optional or default):
        raise TypeError(f"{cls.__name__}.{field.name}: a mapping is from names to dataclasses, and begins empty")
    if components:
        others = [one for one in members if one not in components and one is not type(None)]
        if others or len({one.__name__ for one in components}) < len(components):
            raise TypeError(
                f"{cls.__name__}.{field.name}: a component is one of dataclasses of different names, or None"
            )
    return Field(field.name, cls.__name__, annotation, components, optional, default, role, doc, named)


def _is_component(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _union_members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


@functools.cache
def _validator(annotation: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(strict=True))


def check_value(annotation: Any, value: Any) -> Any:
    """`value` as the type says it (an int becomes a float where a float stands); no other conversion.

    Raises ValueError, saying what is expected, for any other value.
    """
    try:
        checked = _validator(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        hint = _hint(annotation, value, error.errors()[0]["msg"])
        raise ValueError(f"expected {annotation_text(annotation)}{hint}") from None
    if _bool_became_number(value, checked):
        raise ValueError(f"expected {annotation_text(annotation)}; {value!r} is no number")
    if _holds_nan(checked):
        raise ValueError("nan equals nothing, not even itself, and so can not be a setting")
    return checked


def _bool_became_number(value: Any, checked: Any) -> bool:
    """Whether a Literal number has taken a bool for its equal."""
    if isinstance(value, tuple):
        return any(_bool_became_number(one, other) for one, other in zip(value, checked, strict=True))
    return isinstance(value, bool) is not isinstance(checked, bool)


def _holds_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds_nan(one) for one in value)
    return isinstance(value, float) and math.isnan(value)


def _hint(annotation: Any, value: Any, message: str) -> str:
    members = _union_members(annotation)
    if any(get_origin(one) is tuple for one in members):
        if isinstance(value, list):
            return "; write (1, 2), not [1, 2]"
        if not isinstance(value, tuple):
            return "; a tuple of one is written (1,)"
    if isinstance(value, str):
        return nearest(value, [one for one in literal_values(annotation) if isinstance(one, str)])
    if get_origin(annotation) is Annotated:
        return f": {message}"
    return ""


def literal_values(annotation: Any) -> tuple[Any, ...]:
    """The values that the Literals of a leaf type allow."""
    return tuple(
        value for member in _union_members(annotation) if get_origin(member) is Literal for value in get_args(member)
    )


def takes_any_text(annotation: Any) -> bool:
    """Whether every string is a value of this leaf type."""
    return str in _union_members(annotation)


def takes_only_text(annotation: Any) -> bool:
    """Whether the values of this leaf type are strings, or None."""
    return all(
        member in (str, type(None))
        or (get_origin(member) is Literal and all(isinstance(one, str) for one in get_args(member)))
        for member in _union_members(annotation)
    )


def annotation_text(annotation: Any) -> str:
    """A leaf type in words: `tuple[int, ...]`, `'full' | 'dots'`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (type(None), Ellipsis):
        return "None" if annotation is type(None) else "..."
    if origin is Literal:
        return " | ".join(repr(one) for one in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(annotation_text(one) for one in arguments)
    if origin is Annotated:
        return annotation_text(arguments[0])
    if origin is not None:
        return f"{origin.__name__}[{', '.join(annotation_text(one) for one in arguments)}]"
    return getattr(annotation, "__name__", str(annotation))


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""

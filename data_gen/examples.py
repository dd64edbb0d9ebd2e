"""`Record` <-> the bytes of one tf.train.Example, as TFDS writes and reads it.

The message is built and read directly, field by field: TFDS's own encoder gives the same bytes (a test compares them)
at a tenth of the rate. TFDS is imported inside the functions, since that takes more than a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from data_gen.records import PROPENSITY_DIGITS, Record, Turn

_Kind = Literal["bytes_list", "int64_list", "float_list"]

_SCALARS: MappingProxyType[str, _Kind] = MappingProxyType(
    {"str": "bytes_list", "int": "int64_list", "float": "float_list"}
)
_FIELDS = MappingProxyType({field.name: str(field.type) for field in dataclasses.fields(Record)})
_TURN_FIELDS = tuple(field.name for field in dataclasses.fields(Turn))


def features() -> Any:
    """The TFDS schema of `Record`."""
    import numpy as np
    import tensorflow_datasets as tfds

    of_type: dict[str, Any] = {
        "str": tfds.features.Text(),
        "int": np.int64,
        "float": np.float32,
        "tuple[str, ...]": tfds.features.Sequence(tfds.features.Text()),
        "tuple[Turn, ...]": tfds.features.Sequence(dict.fromkeys(_TURN_FIELDS, tfds.features.Text())),
    }
    return tfds.features.FeaturesDict({name: of_type[kind] for name, kind in _FIELDS.items()})


def to_example(record: Record) -> bytes:
    """The record as a serialised Example: the same bytes for equal records, in every process.

    Raises:
      UnicodeEncodeError: the record holds text that is not Unicode.
    """
    example = _message()()
    feature = example.features.feature
    for name, kind in _FIELDS.items():
        value = getattr(record, name)
        if kind == "tuple[Turn, ...]":
            for part in _TURN_FIELDS:
                _put_texts(feature[f"{name}/{part}"], [getattr(turn, part) for turn in value])
        elif kind == "tuple[str, ...]":
            _put_texts(feature[name], value)
        else:
            stored = value.encode() if kind == "str" else value
            getattr(feature[name], _SCALARS[kind]).value.append(stored)
    # Protobuf writes the entries of a map in the order of a hash table unless told otherwise.
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def from_example(data: bytes) -> Record:
    """The record that `to_example` made these bytes of."""
    feature = _message().FromString(data).features.feature
    values: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        if kind == "tuple[Turn, ...]":
            columns = {part: _texts(feature[f"{name}/{part}"]) for part in _TURN_FIELDS}
            values[name] = tuple(
                Turn(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
            )
        elif kind == "tuple[str, ...]":
            values[name] = _texts(feature[name])
        else:
            (value,) = getattr(feature[name], _SCALARS[kind]).value
            values[name] = _READ[kind](value)
    return Record(**values)


_READ: MappingProxyType[str, Callable[[Any], Any]] = MappingProxyType(
    {"str": bytes.decode, "int": int, "float": lambda value: round(value, PROPENSITY_DIGITS)}
)


def _put_texts(feature: Any, texts: Any) -> None:
    feature.bytes_list.SetInParent()  # an empty list is a list too
    feature.bytes_list.value.extend([text.encode() for text in texts])


def _texts(feature: Any) -> tuple[str, ...]:
    return tuple(text.decode() for text in feature.bytes_list.value)


@cache
def _message() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example

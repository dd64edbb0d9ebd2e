"""Reading the settings of a request's body; what is wrong with one is said in a `Refused`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_gen.llm.server.http import Refused


def read_json(body: bytes) -> Any:
    """Raises `Refused` where the body is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no JSON") from error


def number(asked: Mapping[str, object], name: str, *, default: float, least: float, most: float) -> float:
    """A setting of the request; raises `Refused` where it is no number between the two."""
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refused(400, f"{name} must be a number from {least:g} to {most:g}", param=name)
    return value


def whole(asked: Mapping[str, object], name: str, *, default: int, least: int, below: int = 2**63) -> int:
    """A setting of the request; raises `Refused` where it is no whole number between the two."""
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
        raise Refused(400, f"{name} must be a whole number, at least {least} and below {below}", param=name)
    return value

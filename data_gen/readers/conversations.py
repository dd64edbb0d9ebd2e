"""A list of turns as found in the wild -> a conversation that can be evolved, mended where that is plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from data_gen.records import Role, Turn

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "human": "user",
        "user": "user",
        "prompter": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "assistant": "assistant",
        "bard": "assistant",
        "bing": "assistant",
        "model": "assistant",  # as Gemini and Gemma call themselves
        "system": "system",
    }
)


_SHOWN = 60  # characters


class RowError(Exception):
    """What is wrong with a row; rows with the same fault are reported together."""


@dataclass(frozen=True)
class Conversation:
    """What a row came to: turns, or why there are none."""

    turns: tuple[Turn, ...] = ()
    mended: str = ""
    """What was cut off, in words."""
    fault: str = ""
    left_out: str = ""
    """Why it is no seed although nothing is wrong with it."""


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The text under a key without the space around it; '' where there is none."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key!r} is not a text but {type(value).__name__}")
    return (value or "").strip()


def role_of(speaker: object, *, key: str) -> Role:
    """The role of a speaker by the name that the data set gives it."""
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RowError(f"unknown speaker {shown(speaker)} under {key!r} (known: {', '.join(ROLES)})")
    return role


def shown(value: object) -> str:
    """What a row holds, for a message: escaped, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def conversation(turns: Sequence[Turn]) -> Conversation:
    """At most one system turn, then user and assistant in turn; the last user turn is what will be evolved.

    An answer before the first question, as where a conversation was cut out of a longer one, is left out; from the
    first turn that is empty or out of turn on, everything is. What is left must have a user turn.

    Raises:
      RowError: no user turn is left.
    """
    head = [turn for turn in turns[:1] if turn.role == "system"]
    body = list(turns[len(head) :])
    mended = ""
    if body and body[0].role == "assistant":
        body, mended = body[1:], "an answer before the first question was left out"
    if not body:
        raise RowError("the conversation has no user turn")
    good = 0
    for turn, role in zip(body, ("user", "assistant") * len(body), strict=False):
        if turn.role != role or not turn.content:
            break
        good += 1
    if not good:
        raise RowError("the instruction is empty" if body[0].role == "user" else "user and assistant do not take turns")
    if good < len(body):
        empty = body[good].role == ("user", "assistant")[good % 2]
        mended = "cut before an empty turn" if empty else "cut where user and assistant do not take turns"
    return Conversation((*(turn for turn in head if turn.content), *body[:good]), mended=mended)

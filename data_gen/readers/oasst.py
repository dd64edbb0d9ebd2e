"""Message trees of OpenAssistant: of several replies to a message the best one is followed.

flat     {"message_id", "parent_id", "message_tree_id", "role", "text", "rank", "deleted", "lang"}, one per row
export   {"message_tree_id", "prompt": {"role", "text", "lang", "replies": [{..., "replies": [...]}, ...]}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_gen.readers.conversations import Conversation, RowError, conversation, role_of, text_of
from data_gen.records import Turn

_FLAT = frozenset({"message_id", "message_tree_id", "role", "text"})
_KEPT = (*sorted(_FLAT), "parent_id", "rank", "deleted", "lang")


def is_message(row: Any) -> bool:
    """Whether this row is one message of a tree whose others are in other rows."""
    return isinstance(row, dict) and row.keys() >= _FLAT


def message_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed of a flat row.

    Raises:
      RowError: an id that is not a text, an unknown speaker, or a text that is none.
    """
    role_of(row["role"], key="role")
    text_of(row, "text")
    for key in ("message_id", "message_tree_id", "parent_id"):
        if not isinstance(row.get(key), str) and (key != "parent_id" or row.get(key) is not None):
            raise RowError(f"{key!r} is not a text but {type(row[key]).__name__}")
    return {key: row.get(key) for key in _KEPT}


def as_export(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One row of the tree export from the messages of a tree in their order; None where the first one is missing.

    A message has one parent, and that of the first is nobody: what hangs on the first has no circles.
    """
    by_id = {message["message_id"]: message for message in messages}
    for message in messages:
        parent = by_id.get(message["parent_id"])
        if parent is not None:
            parent.setdefault("replies", []).append(message)
    first = next((message for message in messages if message["parent_id"] is None), None)
    return first and {"message_tree_id": first["message_tree_id"], "prompt": first}


def from_export(row: Mapping[str, Any]) -> Iterator[Conversation]:
    """The conversation that is best at every turn: by rank from 0, those without one last, deleted ones never."""
    message = row["prompt"]
    if not isinstance(message, dict):
        raise RowError(f"'prompt' is not an object but {type(message).__name__}")
    if message.get("deleted") is True:
        yield Conversation(left_out="deleted by its authors")
        return
    turns = []
    while message is not None:
        turns.append(Turn(role_of(message.get("role"), key="role"), text_of(message, "text")))
        message = min(_replies(message), key=_order, default=None)
    yield conversation(turns)


def _replies(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = message.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise RowError("'replies' is not a list of objects")
    return [reply for reply in replies if reply.get("deleted") is not True]


def _order(message: Mapping[str, Any]) -> tuple[bool, float, bool]:
    """Of equal ones, as questions mostly are, one that was answered comes first; then the first of the file."""
    rank = message.get("rank")
    ranked = isinstance(rank, int | float) and rank == rank  # a table may have NaN for none
    return (not ranked, rank if ranked and rank is not None else 0, not _replies(message))

"""What a reader of files hands on: one row, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError


class SourceError(UserError):
    """Seeds that can not be read; names the file, the rows (from 1) and what to do."""


@dataclass(frozen=True)
class Row:
    """One row of a file, line of JSON lines or example of a data set."""

    source: str
    """The file or data set, as `Record.source` will name it."""
    number: int
    """Of the row or line in it, from 1."""
    value: Any = None
    fault: str = ""
    """Why there is no value."""


def chosen_split(splits: Sequence[str], *, of: str, other: str) -> str:
    """`train`, or the only split there is; of any other seeds are not made by accident.

    Raises:
      SourceError: there are others, and none is `train`; `other` says how to name one.
    """
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return splits[0]
    raise SourceError(f"{of} holds the splits {', '.join(splits)}, and none is 'train': {other}")

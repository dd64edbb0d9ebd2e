"""What training is told about its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.errors import UserError
from configs.loader import setting

Part = Literal["train", "held_out"]
"""Which side of `data.held_out_share` a conversation is on."""


class DataError(UserError):
    """The data cannot be used as the config asks."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which records of a data set are trained on.

    `examples` and `trained_tokens` take the first of one seeded order, so that with the same seed a larger
    selection holds every smaller one.
    """

    rounds_from: int = setting(0, doc="records of this round and later")
    rounds_to: int | None = setting(None, doc="records of this round and earlier; None: to the last")
    operations: tuple[str, ...] = setting((), doc="written by one of these ('': seeds); empty: all")
    examples: int | None = setting(None, doc="that many conversations")
    trained_tokens: int | None = setting(None, doc="conversations until that many trained tokens are reached")
    seed: int = setting(0, doc="of the order that examples and trained_tokens take from")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Conversations, how they are written out, and how they are packed."""

    dataset: str = setting(doc="folder that `wizard evolve` has filled, or a data set of its format")
    chat_format: str = setting(doc="vicuna, alpaca or wizardlm_7b")
    seq_len: int = setting(doc="L: tokens in a packed row")
    selection: Selection = setting(Selection())
    truncation: Literal["error", "truncate", "drop"] = setting(
        "error", doc="what to do with conversations longer than seq_len"
    )
    max_lost_share: float = setting(
        0.05, doc="refuse when a larger share of conversations is truncated, dropped or trains on nothing"
    )
    packing_seed: int = setting(0, doc="of which conversations share a row")
    held_out_share: float = setting(
        0.0, doc="of lineages, all rounds of each: never trained on, of the selected rounds and operations"
    )
    held_out_seed: int = setting(0, doc="of which lineages are held out, whatever is selected")

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise DataError(
                f"data.held_out_share is {self.held_out_share}: it is a share of lineages, at least 0 and less than 1"
            )


@dataclass(frozen=True, kw_only=True)
class RowsPerStep:
    """A fixed number of packed rows."""

    rows: int = setting(doc="packed rows in a step, over all devices and microbatches")


@dataclass(frozen=True, kw_only=True)
class ConversationsPerStep:
    """As many rows as hold that many conversations on average: the batch of a recipe that was trained unpacked."""

    conversations: int = setting(doc="conversations in a step, over all devices and microbatches")


@dataclass(frozen=True, kw_only=True)
class TrainedTokensPerStep:
    """As many rows as hold that many trained tokens on average (steps may differ by one row).

    So arms on other data train on as many tokens; between two of them the totals differ by far less than 1 %.
    """

    tokens: int = setting(doc="trained tokens in a step, over all devices and microbatches")

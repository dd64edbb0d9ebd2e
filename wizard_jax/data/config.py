"""What training is told about its data."""

from __future__ import annotations

import math
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
class Mixture:
    """Data sets that are trained on together with `data.dataset`, each in its share of an epoch's conversations.

        data.dataset = 'evolved'
        data.mixture = @Mixture
        data.mixture.datasets = ('sharegpt',)
        data.mixture.weights = (0.7, 0.3)      # of evolved, then of sharegpt

    Each set's conversations are taken without replacement, in its seeded order. What selects from each of `datasets`
    is as `data.selection` is for `data.dataset`; an empty tuple selects all.
    """

    datasets: tuple[str, ...] = setting(doc="folders of the other data sets")
    weights: tuple[float, ...] = setting(
        (), doc="relative numbers of conversations in an epoch, of data.dataset first; empty: all that is selected"
    )
    ends: Literal["first_exhausted", "all_exhausted"] = setting(
        "first_exhausted",
        doc="an epoch ends with the first set that is used up, so that nothing repeats; or with the last, so that "
        "everything is seen, and the others are there several times",
    )
    rounds_from: tuple[int, ...] = setting((), doc="of each of datasets")
    rounds_to: tuple[int | None, ...] = setting((), doc="of each of datasets")
    operations: tuple[tuple[str, ...], ...] = setting((), doc="of each of datasets")
    examples: tuple[int | None, ...] = setting((), doc="of each of datasets")
    trained_tokens: tuple[int | None, ...] = setting((), doc="of each of datasets")

    def __post_init__(self) -> None:
        if not self.datasets:
            raise DataError("data.mixture.datasets is empty: name other data sets, or set data.mixture to None")
        if self.weights and len(self.weights) != len(self.datasets) + 1:
            raise DataError(
                f"data.mixture.weights has {len(self.weights)} numbers for {len(self.datasets) + 1} data sets: give "
                "one for data.dataset, then one for each of data.mixture.datasets"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise DataError(f"data.mixture.weights = {self.weights}: each must be above 0")
        if not self.weights and self.ends != "first_exhausted":
            raise DataError("data.mixture.ends has no effect without data.mixture.weights: leave it out, or give them")
        for name in _OF_EACH:
            if (count := len(getattr(self, name))) not in (0, len(self.datasets)):
                raise DataError(
                    f"data.mixture.{name} has {count} values for {len(self.datasets)} data sets: give one for each of "
                    "data.mixture.datasets"
                )


_OF_EACH = ("rounds_from", "rounds_to", "operations", "examples", "trained_tokens")


@dataclass(frozen=True)
class Member:
    """A data set, and what is taken of it."""

    dataset: str
    selection: Selection
    setting: str
    """Where the config selects: data.selection or data.mixture."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Conversations, how they are written out, and how they are packed."""

    dataset: str = setting(doc="folder that `wizard evolve` has filled, or a data set of its format")
    chat_format: str = setting(doc="vicuna, wizardlm, wizardlm_7b, alpaca, llama2_chat or llama3")
    seq_len: int = setting(doc="L: tokens in a packed row")
    selection: Selection = setting(Selection(), doc="which of its records are trained on")
    mixture: Mixture | None = setting(None, doc="@Mixture: other data sets beside this one")
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

    processes: int | None = setting(
        None, operational=True, doc="that tokenize and write packed rows; None: one for each CPU there is"
    )

    @property
    def members(self) -> tuple[Member, ...]:
        """`dataset`, then those of the mixture; the seed of `selection` is of all of them."""
        first = Member(self.dataset, self.selection, "data.selection")
        if self.mixture is None:
            return (first,)
        others = []
        for index, dataset in enumerate(self.mixture.datasets):
            given = {name: values[index] for name in _OF_EACH if (values := getattr(self.mixture, name))}
            others.append(Member(dataset, Selection(**given, seed=self.selection.seed), "data.mixture"))
        return (first, *others)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that hold anything."""
        return ("train", "held_out") if self.held_out_share else ("train",)

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise DataError(f"data.processes is {self.processes}: it must be at least 1")
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

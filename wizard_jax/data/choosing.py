"""Which of the encoded conversations an epoch has, and how often each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wizard_jax.data.config import DataConfig, DataError, Member, Mixture, Part
from wizard_jax.data.conversations import Conversations
from wizard_jax.data.order import seeded_order


@dataclass(frozen=True, kw_only=True)
class MemberUse:
    """What an epoch has of a data set."""

    dataset: str
    usable: int
    """Conversations that can be trained on, after rounds, operations, examples and trained_tokens."""
    conversations: int
    """In an epoch, repetitions counted."""
    times: int
    """How often each of the usable ones is in an epoch at least."""

    @property
    def once_more(self) -> int:
        """How many, the first of the seeded order, are in it once more."""
        return self.conversations - self.times * self.usable


@dataclass(frozen=True)
class Choice:
    """The conversations of an epoch."""

    items: np.ndarray
    """int64: indices into `Conversations`, ascending; one that is repeated stands there several times."""
    members: tuple[MemberUse, ...]


def usable(conversations: Conversations, *, truncation: str) -> np.ndarray:
    """bool [conversations]: those that hold something to train on, and are not dropped for their length."""
    fits = conversations.lengths <= conversations.seq_len
    return (conversations.trained > 0) & (fits | (truncation != "drop"))


def choose(conversations: Conversations, *, config: DataConfig, part: Part) -> Choice:
    """What the selections and weights of a config leave of the usable conversations.

    They are about what is trained on: the held-out part has all that is usable, once.

    Raises:
      DataError: nothing usable, or less than asked for.
    """
    can = usable(conversations, truncation=config.truncation)
    orders = []
    for index, member in enumerate(config.members):
        first, last = conversations.members[index : index + 2].tolist()
        found = first + np.flatnonzero(can[first:last])
        if not len(found):
            raise DataError(_nothing_usable(member, conversations, first=first, last=last))
        if part == "train":
            found = found[seeded_order(len(found), seed=member.selection.seed)]
            found = _limited(found, trained=conversations.trained, member=member)
        orders.append(found)
    mixture = config.mixture if part == "train" else None
    counts = _shares([len(order) for order in orders], mixture=mixture, members=config.members)
    parts, uses = [], []
    for member, order, count in zip(config.members, orders, counts, strict=True):
        times = count // len(order)
        parts += [np.repeat(order, times), order[: count - times * len(order)]]
        uses.append(MemberUse(dataset=member.dataset, usable=len(order), conversations=count, times=times))
    return Choice(np.sort(np.concatenate(parts)), tuple(uses))


def _limited(order: np.ndarray, *, trained: np.ndarray, member: Member) -> np.ndarray:
    """The first of an order, as many as `examples` and `trained_tokens` say."""
    selection, take = member.selection, len(order)
    if selection.examples is not None:
        if not 1 <= selection.examples <= take:
            raise DataError(
                f"{member.setting}.examples is {selection.examples}, and there are {take} to take from in "
                f"{member.dataset}"
            )
        take = selection.examples
    if selection.trained_tokens is not None:
        total = np.cumsum(trained[order[:take]], dtype=np.int64)
        if not 1 <= selection.trained_tokens <= total[-1]:
            raise DataError(
                f"{member.setting}.trained_tokens is {selection.trained_tokens}, and the {take} conversations "
                f"to take from in {member.dataset} hold {total[-1]}"
            )
        take = int(np.searchsorted(total, selection.trained_tokens)) + 1
    return order[:take]


def _shares(counts: Sequence[int], *, mixture: Mixture | None, members: Sequence[Member]) -> list[int]:
    """How many conversations an epoch has of data sets that hold `counts`."""
    if mixture is None or not mixture.weights:
        return list(counts)
    weights = [Fraction(repr(weight)) for weight in mixture.weights]  # as written: 0.1 is a tenth
    lasts = [count / weight for count, weight in zip(counts, weights, strict=True)]
    length = min(lasts) if mixture.ends == "first_exhausted" else max(lasts)
    shares = [math.floor(length * weight) for weight in weights]
    for member, share in zip(members, shares, strict=True):
        if not share:
            raise DataError(
                f"data.mixture.weights leaves not one conversation of {member.dataset}: the set that is used up first "
                "is too small for them; raise its weight, or set data.mixture.ends to 'all_exhausted'"
            )
    return shares


def _nothing_usable(member: Member, conversations: Conversations, *, first: int, last: int) -> str:
    long = int((conversations.lengths[first:last] > conversations.seq_len).sum())
    untrained = int((conversations.trained[first:last] == 0).sum())
    return (
        f"none of the {last - first} conversations selected from {member.dataset} can be trained on: {long} are longer "
        f"than data.seq_len = {conversations.seq_len}, {untrained} hold nothing to train on within it"
    )

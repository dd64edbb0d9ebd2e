"""What was packed and what was lost on the way, with examples: kept beside the rows, and shown before training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from wizard_jax.data import encoding
from wizard_jax.data.choosing import Choice, MemberUse
from wizard_jax.data.config import DataConfig, Part
from wizard_jax.data.conversations import Conversations
from wizard_jax.data.planning import Plan

_EXAMPLES = 5
_LONGEST = 10
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackStats:
    """What was packed, and what was lost on the way."""

    seq_len: int
    rows: int
    conversations: int
    """Packed, repetitions counted, as are their tokens."""
    tokens: int
    trained_tokens: int
    candidates: int
    """Conversations of the selected rounds and operations, before any loss."""
    truncated: int
    """Packed without their end."""
    dropped: int
    """Left out because they are longer than a row."""
    untrained: int
    """Left out because they hold nothing to train on."""

    @property
    def efficiency(self) -> float:
        """Tokens in rows / tokens that rows can hold."""
        return self.tokens / (self.rows * self.seq_len)

    @property
    def lost_share(self) -> float:
        """Of conversations, those that are not there whole; `truncated` is of the packed ones, the others of all."""
        left = self.candidates - self.dropped - self.untrained
        every = self.candidates * self.conversations
        return (every - left * (self.conversations - self.truncated)) / every


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """What was packed of one round of one source."""

    source: str
    round: int
    conversations: int
    tokens: int
    trained_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Conversations of which something is to be known."""

    count: int
    examples: tuple[str, ...]
    """Record ids of the first few."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of the conversations that a config selects."""

    part: Part
    stats: PackStats
    truncated: Finding
    """Of what is packed, as are all findings but the next two."""
    dropped: Finding
    untrained: Finding
    bos_repeated: Finding
    """BOS directly after BOS."""
    eos_repeated: Finding
    end_untrained: Finding
    """Their last token, before any truncation, is not trained: nothing in them teaches to stop."""
    zero_loss_rows: int
    """Rows in which nothing is trained."""
    eos_trained: int
    """Tokens that end an answer, of all candidates, that are trained."""
    eos_untrained: int
    groups: tuple[Group, ...]
    members: tuple[MemberUse, ...]
    lengths: dict[str, int]
    """Tokens of a whole candidate: the shortest, percentiles, the longest."""
    histogram: tuple[tuple[int, int], ...]
    """(length, candidates that are at most so long and longer than the one before), in powers of two."""
    longest: tuple[tuple[str, int], ...]
    """Record id and tokens of the longest candidates."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Audit:
        """Raises ValueError, KeyError or TypeError for anything but what `to_json` gives."""
        told: dict[str, Any] = json.loads(text)
        findings = {name: Finding(**told[name] | {"examples": tuple(told[name]["examples"])}) for name in _FINDINGS}
        return cls(
            **told
            | findings
            | {
                "stats": PackStats(**told["stats"]),
                "groups": tuple(Group(**group) for group in told["groups"]),
                "members": tuple(MemberUse(**member) for member in told["members"]),
                "histogram": tuple((length, count) for length, count in told["histogram"]),
                "longest": tuple((name, length) for name, length in told["longest"]),
            }
        )

    def table(self) -> list[tuple[str, str, str]]:
        """(what, how many, a remark): for people."""
        stats = self.stats
        share = stats.conversations or 1
        lines = [
            ("candidates", f"{stats.candidates:,}", "of the selected rounds and operations"),
            ("packed", f"{stats.conversations:,}", f"{stats.tokens:,} tokens, {stats.trained_tokens:,} trained"),
            (
                "rows",
                f"{stats.rows:,}",
                f"{stats.efficiency:.2%} filled; in {self.zero_loss_rows:,} nothing is trained",
            ),
        ]
        if len(self.members) > 1:
            lines += [(f"of {one.dataset}", f"{one.conversations:,}", _times(one)) for one in self.members]
        lines += [
            (f"of {group.source or 'no source'}, round {group.round}", f"{group.conversations:,}",
             f"{group.conversations / share:.1%}, {group.trained_tokens:,} trained tokens")
            for group in self.groups
        ]  # fmt: skip
        for name, text in _FINDINGS.items():
            finding: Finding = getattr(self, name)
            such_as = f", such as {', '.join(finding.examples)}" if finding.examples else ""
            lines.append((name.replace("_", " "), f"{finding.count:,}", text + such_as))
        lines.append(("EOS trained", f"{self.eos_trained:,}", f"and {self.eos_untrained:,} not"))
        told = ", ".join(f"{name} {length:,}" for name, length in self.lengths.items())
        lines.append(("tokens of a conversation", f"{self.lengths['p50']:,}", told))
        return lines


_FINDINGS = {
    "truncated": "packed without their end",
    "dropped": "left out: longer than a row",
    "untrained": "left out: nothing to train on within a row",
    "bos_repeated": "BOS directly after BOS",
    "eos_repeated": "EOS directly after EOS",
    "end_untrained": "the last token is not trained",
}


def make_audit(
    conversations: Conversations, *, choice: Choice, plan: Plan, lengths: np.ndarray, config: DataConfig, part: Part
) -> Audit:
    """`lengths`: tokens that are packed of each of `choice.items`."""
    long = conversations.lengths > conversations.seq_len
    dropped = long & (config.truncation == "drop")
    untrained = (conversations.trained == 0) & ~dropped
    packed = np.unique(choice.items)
    tokens = conversations.trained[choice.items]
    truncated = int(long[choice.items].sum())
    stats = PackStats(
        seq_len=conversations.seq_len,
        rows=plan.rows,
        conversations=len(choice.items),
        tokens=int(lengths.sum(dtype=np.int64)),
        trained_tokens=int(tokens.sum(dtype=np.int64)),
        candidates=len(conversations.lengths),
        truncated=truncated,
        dropped=int(dropped.sum()),
        untrained=int(untrained.sum()),
    )

    def found(items: np.ndarray, *, count: int | None = None) -> Finding:
        examples = _named(conversations, items[:_EXAMPLES], config=config)
        return Finding(count=len(items) if count is None else count, examples=tuple(examples))

    def marked(bit: int) -> Finding:
        return found(packed[conversations.marks[packed] & bit > 0])

    every = conversations.lengths
    top = np.argsort(-every.astype(np.int64), kind="stable")[:_LONGEST]
    return Audit(
        part=part,
        stats=stats,
        truncated=found(packed[long[packed]], count=truncated),
        dropped=found(np.flatnonzero(dropped)),
        untrained=found(np.flatnonzero(untrained)),
        bos_repeated=marked(encoding.BOS_REPEATED),
        eos_repeated=marked(encoding.EOS_REPEATED),
        end_untrained=marked(encoding.END_UNTRAINED),
        zero_loss_rows=int((np.add.reduceat(tokens[plan.items], plan.starts[:-1]) == 0).sum()),
        eos_trained=conversations.eos_trained,
        eos_untrained=conversations.eos_untrained,
        groups=_groups(conversations, choice=choice, lengths=lengths),
        members=choice.members,
        lengths=_spread(every),
        histogram=_histogram(every),
        longest=tuple(zip(_named(conversations, top, config=config), every[top].tolist(), strict=True)),
    )


def describe_long(conversations: Conversations, *, config: DataConfig) -> str | None:
    """What to say where truncation='error' and some conversations are longer than a row; None where none is."""
    count = int((conversations.lengths > conversations.seq_len).sum())
    if config.truncation != "error" or not count:
        return None
    longest = int(conversations.lengths.max())
    (name,) = conversations.ids(np.flatnonzero(conversations.lengths == longest)[:1])
    where = " and ".join(member.dataset for member in config.members)
    return (
        f"{count} of {len(conversations.lengths)} conversations of {where} are longer than "
        f"data.seq_len = {config.seq_len}; the longest, record {name!r}, has {longest} tokens: "
        "raise data.seq_len, or set data.truncation to 'truncate' or 'drop'"
    )


def _groups(conversations: Conversations, *, choice: Choice, lengths: np.ndarray) -> tuple[Group, ...]:
    groups = conversations.groups[choice.items]
    numbers = len(conversations.group_names)
    counts = np.bincount(groups, minlength=numbers).tolist()
    # Sums in float64 are exact below 2**53 tokens.
    tokens = np.bincount(groups, weights=lengths, minlength=numbers).tolist()
    trained = np.bincount(groups, weights=conversations.trained[choice.items], minlength=numbers).tolist()
    return tuple(
        Group(source=source, round=number, conversations=count, tokens=int(held), trained_tokens=int(learnt))
        for (source, number), count, held, learnt in zip(
            conversations.group_names, counts, tokens, trained, strict=True
        )
    )


def _named(conversations: Conversations, items: np.ndarray, *, config: DataConfig) -> Sequence[str]:
    """Record ids; with their data set where there are several."""
    ids = conversations.ids(items)
    if config.mixture is None:
        return ids
    owners = np.searchsorted(conversations.members, items, side="right") - 1
    return [f"{config.members[owner].dataset}: {name}" for owner, name in zip(owners.tolist(), ids, strict=True)]


def _spread(lengths: np.ndarray) -> dict[str, int]:
    at = np.percentile(lengths, _PERCENTILES).tolist()
    between = {f"p{percent}": int(length) for percent, length in zip(_PERCENTILES, at, strict=True)}
    return {"shortest": int(lengths.min()), **between, "longest": int(lengths.max())}


def _histogram(lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    counts = np.bincount(np.ceil(np.log2(lengths)).astype(np.int64)).tolist()
    return tuple((2**power, count) for power, count in enumerate(counts) if count)


def _times(member: MemberUse) -> str:
    if member.times == 0:
        return f"of {member.usable:,}, none of them twice"
    once_more = f", {member.once_more:,} once more" if member.once_more else ""
    return f"each of {member.usable:,} {member.times} {'time' if member.times == 1 else 'times'}{once_more}"

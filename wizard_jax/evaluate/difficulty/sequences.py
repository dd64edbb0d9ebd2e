"""Records as the token sequences that IFD scores, and sequences in rows of a few static lengths.

Of a record in the format `wizardlm_7b`, with the scored tokens in capitals:

    whole         <s> Say hi . ### Response : \\n HI THERE </s>     the answer, after all that came before it
    alone         <s> ### Response : \\n HI THERE                   the same ids, after what any answer stands behind
    instruction   <s> SAY HI .                                      the last user turn by itself

The answer is tokenized once, with its conversation, and cut out by index: nothing is found by its text, and no
boundary can shift. The token that ends it is not scored, for the published measures score text.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from configs.errors import UserError
from data_gen.records import Record
from wizard_jax import chat
from wizard_jax.chat_formats import fill
from wizard_jax.data.pipeline import Batch, to_batch
from wizard_jax.data.planning import plan_packing
from wizard_jax.data.rows import Row
from wizard_jax.tokenizer import Tokenizer

AloneAfter = Literal["answer prefix", "bos"]
"""What stands before an answer that is scored alone: the chat format's own words (with BOS, where it has one), as in
Cherry_LLM ("### Response:"), or BOS alone, as for a language model that knows of no chat."""

SHORTEST_ROW = 512
"""Of longer rows attention takes a larger share: 8 % of a forward pass of 25M parameters at 512, 16 % at 1,024."""


class Scored(NamedTuple):
    """Tokens of which those from index `first` on are scored; `first` is at least 1."""

    tokens: np.ndarray
    """int32 [n]"""
    first: int

    @property
    def scored(self) -> int:
        return len(self.tokens) - self.first


class RecordSequences(NamedTuple):
    """What is scored of one record; `whole` and `alone` end in the same ids, all of which are scored."""

    whole: Scored
    alone: Scored
    instruction: Scored


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A record of which there is no figure, and why; `reason` is one of few, so that they can be counted."""

    reason: Literal["too long", "no answer", "no place in the chat format", "no instruction"]
    detail: str


@dataclass(frozen=True)
class Sequencer:
    """Makes the sequences of records.

    Raises:
      UserError: `alone_after` is "bos" and the tokenizer has none, or the tokenizer is not one for the format.
    """

    tokenizer: Tokenizer
    chat_format: chat.ChatFormat
    length: int
    """The most tokens that the model is given; a longer record is refused, never cut."""
    alone_after: AloneAfter = "answer prefix"

    def __post_init__(self) -> None:
        chat.check_tokenizer(self.chat_format, self.tokenizer)
        if self.alone_after == "bos" and self.tokenizer.bos_id is None:
            raise UserError("alone_after is 'bos', and the model's tokenizer has no BOS: take 'answer prefix'")

    @property
    def prefix(self) -> list[int]:
        """The ids that an answer alone stands behind; never none."""
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        if self.alone_after == "bos":
            return begin
        asked = (
            self.tokenizer.encode(piece)
            if isinstance(piece, str)
            else [chat.special_id(piece, tokenizer=self.tokenizer)]
            for piece in fill(self.chat_format.ask)
        )
        ids = [*(begin if self.chat_format.has_bos else []), *itertools.chain.from_iterable(asked)]
        assert ids, f"{self.chat_format.name}: nothing stands before an answer"
        return ids

    def of(self, record: Record) -> RecordSequences | Refused:
        """The three sequences, or why the record has none; nothing is ever cut."""
        if not record.answer.strip():
            return Refused(reason="no answer", detail="the record ends without an answer")
        try:
            given = chat.encode_prompt(record.turns[:-1], chat_format=self.chat_format, tokenizer=self.tokenizer)
            tokens, _ = chat.encode_conversation(record.turns, chat_format=self.chat_format, tokenizer=self.tokenizer)
        except chat.ChatError as error:
            return Refused(reason="no place in the chat format", detail=str(error))
        tokens = tokens[:-1]  # without the token that ends it
        answer = tokens[len(given) :]
        alone = np.array([*self.prefix, *answer], np.int32)
        begin = [self.tokenizer.bos_id] if self.tokenizer.bos_id is not None else self.prefix[:1]
        instruction = np.array([*begin, *self.tokenizer.encode(record.instruction)], np.int32)
        if not len(answer):
            return Refused(reason="no answer", detail="the answer has no tokens")
        if len(instruction) < 2:
            return Refused(reason="no instruction", detail="the instruction has no tokens")
        longest = max(len(tokens), len(alone), len(instruction))
        if longest > self.length:
            return Refused(reason="too long", detail=f"{longest:,} tokens, of {self.length:,} at most")
        return RecordSequences(
            whole=Scored(tokens, len(given)),
            alone=Scored(alone, len(alone) - len(answer)),
            instruction=Scored(instruction, 1),
        )


class Packed(NamedTuple):
    """A batch, and where in it sequences lie."""

    batch: Batch
    sequences: np.ndarray
    """int64 [n]: which ones."""
    rows: np.ndarray
    """int64 [n]"""
    starts: np.ndarray
    """int64 [n]: the place of the first token in its row, as `ends` is that after the last."""
    ends: np.ndarray


def row_lengths(length: int) -> tuple[int, ...]:
    """The lengths that rows have: powers of two from `SHORTEST_ROW`, up to the first that holds `length` tokens."""
    lengths = [min(SHORTEST_ROW, length)]
    while lengths[-1] < length:
        lengths.append(min(2 * lengths[-1], length))
    return tuple(lengths)


def pack(sequences: Sequence[Scored], *, length: int, batch_tokens: int) -> Iterator[Packed]:
    """Batches of about `batch_tokens` tokens, every sequence whole, in rows of the shortest length that holds the
    longest of them; the same sequences give the same batches."""
    sizes = np.array([len(one.tokens) for one in sequences], np.int64)
    assert not len(sizes) or sizes.max() <= length
    left = np.argsort(sizes, kind="stable").tolist()
    lengths = row_lengths(length)
    for row_length, shorter in zip(lengths[::-1], (*lengths[-2::-1], 0), strict=True):
        first = bisect.bisect_right(left, shorter, key=lambda n: sizes[n])
        members = np.array(left[first:], np.int64)
        del left[first:]
        if not len(members):
            continue
        plan = plan_packing(sizes[members], seq_len=row_length, seed=0)
        rows = [members[plan.row(n)].tolist() for n in range(plan.rows)]
        for row in rows:  # what is too short for a row of its own length fills what long ones leave
            room = row_length - sizes[row].sum()
            while place := bisect.bisect_right(left, room, key=lambda n: sizes[n]):
                row.append(left.pop(place - 1))
                room -= sizes[row[-1]]
        in_batch = max(1, batch_tokens // row_length)
        for start in range(0, len(rows), in_batch):
            yield _laid_out(rows[start : start + in_batch], sequences, row_length=row_length, in_batch=in_batch)


def _laid_out(rows: Sequence[np.ndarray], sequences: Sequence[Scored], *, row_length: int, in_batch: int) -> Packed:
    held = [_row([sequences[n] for n in row]) for row in rows]
    lengths = np.concatenate([row.lengths for row in held]).astype(np.int64)
    ends = np.concatenate([np.cumsum(row.lengths) for row in held]).astype(np.int64)
    return Packed(
        batch=to_batch([*held, *[None] * (in_batch - len(held))], seq_len=row_length),
        sequences=np.concatenate([np.array(row, np.int64) for row in rows]),
        rows=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        starts=ends - lengths,
        ends=ends,
    )


def _row(members: Sequence[Scored]) -> Row:
    return Row(
        tokens=np.concatenate([one.tokens for one in members]),
        trained=np.concatenate([np.arange(len(one.tokens)) >= one.first for one in members]),
        lengths=np.array([len(one.tokens) for one in members], np.int32),
        groups=np.zeros(len(members), np.int32),
    )

"""The data contract: conversations with their lineage, and candidates that were dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

PROPENSITY_DIGITS = 6
"""Decimal places that a propensity has, so that it survives the 32 bits that a TFRecord keeps of it."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Record:
    """One conversation and where it came from.

    `round` counts the rewriting rounds that the lineage has been through; `depth` counts the in-depth
    rewrites that were accepted on the way (a requeued or an in-breadth round adds none), so depth <= round.
    """

    id: str
    """`<lineage>/<round>`, unique in a data set."""
    lineage: str
    """The id of the seed that everything in this lineage goes back to."""
    turns: tuple[Turn, ...]
    """Ends with the user turn that is evolved and, once answered, the assistant turn that answers it."""
    parent: str = ""
    """The id of the record that this one was rewritten from; empty in round 0."""
    round: int = 0
    depth: int = 0
    operation: str = ""
    """The operation that wrote the instruction; empty in round 0."""
    source: str = ""
    """Where the seed came from: a file name, or the simulated world."""
    model: str = ""
    """The model that wrote the answer, as the server named it; empty where the seed brought its own."""
    steps: int = 0
    """Number of steps of a task of the simulated world; 0 for any other text."""
    evolver: str = ""
    """The model that wrote the instruction, as the server named it; empty in round 0."""
    propensity: float = 0.0
    """The probability with which the operation was drawn; 0 in round 0."""
    words_added: int = 0
    """Words of the instruction beyond its parent's, data that was added not counted; negative where it is shorter."""
    flags: tuple[str, ...] = ()
    """What was found of the record after the run, such as "duplicate" or "contaminated"."""

    @property
    def instruction(self) -> str:
        """The last user turn: what evolution rewrites."""
        return next(turn.content for turn in reversed(self.turns) if turn.role == "user")

    @property
    def context(self) -> tuple[Turn, ...]:
        """The turns before the last user turn."""
        last = max(i for i, turn in enumerate(self.turns) if turn.role == "user")
        return self.turns[:last]

    @property
    def answer(self) -> str:
        """The assistant turn that answers the instruction; empty while there is none."""
        return self.turns[-1].content if self.turns[-1].role == "assistant" else ""


Rule = Literal[
    "no_gain",  # 1: the judge found the rewritten instruction equal to the one before
    "refusal",  # 2: the answer says sorry in fewer than 80 words
    "empty_answer",  # 3: the answer holds only punctuation and stop words
    "copied_prompt",  # 4: the rewritten instruction copies words of the rewriting prompt
    "invalid_input",  # complicate_input: the data that was added does not parse, or there is none
    "word_count",  # the rewrite does not add the 10 to 20 words that it was asked for
    "changed_meaning",  # paraphrase: the judge found that it does not ask the same
    "duplicate",  # near-duplicate of an earlier record
    "contaminated",  # repeats an item of a test set
    "empty_instruction",  # the rewrite came back empty
    "truncated",  # the reply was cut off at max_tokens
    "unreadable_reply",  # the provider answered with something that holds no text
    "refused_request",  # the provider refused this request for good
    "gave_up",  # no answer after the allowed number of attempts
]


@dataclass(frozen=True)
class Rejected:
    """A candidate that was dropped, with the rule that dropped it and what the rule saw."""

    lineage: str
    round: int
    operation: str
    """Empty when round 0 was being answered."""
    rule: Rule
    evidence: str
    """What the rule matched, in words."""
    instruction: str
    """The candidate; empty when none came back."""
    answer: str = ""
    source: str = ""

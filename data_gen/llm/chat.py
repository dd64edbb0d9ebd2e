"""What a hosted language model is to this project: one method, three ways to fail.

Everything that answers (`openai.py`, `simulated.py`) and everything that wraps an answerer (`journal.py`,
`pacing.py`) is a `ChatModel`, so they stack in any order and tests need no patches.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length", "filtered", "unreadable"]


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


Purpose = Literal["evolve", "judge", "answer", "difficulty", "rank", "contamination"]
"""What a request is for; "difficulty" scores one instruction, "rank" all versions of a lineage together."""


@dataclass(frozen=True)
class RequestKey:
    """Which decision of the run a request belongs to."""

    lineage: str
    round: int
    purpose: Purpose


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One request. `seed` is sent to providers that sample by seed, and makes the simulated model repeatable."""

    key: RequestKey
    model: str
    messages: tuple[Message, ...]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical request with its key: what the journal files a reply under."""
        canonical = json.dumps(self, default=vars, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """One paid reply.

    `finish_reason`: "stop"; "length" (cut off at max_tokens); "filtered" (the provider withheld it);
    "unreadable" (a success status whose body held no text). Token counts are the provider's, 0 if it gave none;
    what a model thought is among the output tokens, for so it is billed.
    """

    text: str
    finish_reason: FinishReason
    model: str
    """The model's name and version as the server reports it."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input tokens that came from the provider's cache, and cost less."""
    usd: float = 0.0
    """What the reply cost, once it was priced."""


class Spent(NamedTuple):
    """What requests cost: how many were answered, their tokens, and US dollars."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.usd + other.usd,
        )

    def minus(self, other: Spent) -> Spent:
        return self.plus(Spent(-other.calls, -other.input_tokens, -other.output_tokens, -other.usd))


NOTHING = Spent()


class ChatModel(Protocol):
    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answers one request.

        Raises:
          NotSent: nothing was billed; the request may be sent again after `retry_after` seconds.
          Ambiguous: the request may have been billed; sending it again may pay twice.
          Permanent: sending it again as it stands would not help.
        """
        ...


class ChatError(Exception):
    """A request that brought no reply."""


class NotSent(ChatError):
    """Refused before any work was done: connection refused, 429, 503."""

    def __init__(self, message: str, *, retry_after: float | None = None, rate_limited: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.rate_limited = rate_limited


class Ambiguous(ChatError):
    """Lost after it was sent: a time-out, a dropped connection, 500, 502, 504. It may have been billed."""

    assumed: Spent = NOTHING
    """What it is taken to have cost."""


Scope = Literal["request", "run", "unclear"]


class Permanent(ChatError):
    """Will not succeed as it stands.

    `scope` says what to do about it: "request" (this prompt is refused for good: reject the candidate), "run" (bad
    key, unknown model, no permission: stop, for every other request would fail too) or "unclear" (the server does
    not say which of the two it is: go on with the others, and stop if they fail too).
    """

    def __init__(self, message: str, *, scope: Scope) -> None:
        super().__init__(message)
        self.scope: Scope = scope


class BudgetSpent(Permanent):
    """The request was not sent: with it the run would spend more than it may."""

    def __init__(self, message: str) -> None:
        super().__init__(message, scope="run")

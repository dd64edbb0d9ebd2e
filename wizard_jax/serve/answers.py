"""Answers in OpenAI's format, whole or in parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wizard_jax.serve.choices import Choice, Token

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a token that is one byte


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What every part of an answer says of it."""

    kind: Literal["chat", "text"]
    id: str
    created: int
    model: str

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        made = [self._choice(one) for one in sorted(choices, key=lambda one: one.index)]
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": made, "usage": usage(choices)}

    def part(self, choice: Choice, text: str, tokens: Sequence[Token], *, first: bool = False) -> dict[str, Any]:
        """What a choice says now, with its end where that has come; `first` opens a chat's message."""
        ended = choice.ended or None
        shared = {"index": choice.index, "logprobs": self._log_chances(choice, tokens), "finish_reason": ended}
        if self.kind == "text":
            return {**self._head("text_completion"), "choices": [{**shared, "text": text}]}
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
        return {**self._head("chat.completion.chunk"), "choices": [{**shared, "delta": delta}]}

    def last(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The part that has no choices and says what was used."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [], "usage": usage(choices)}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        shown = choice.tokens[: choice.shown]
        shared = {
            "index": choice.index,
            "logprobs": self._log_chances(choice, shown),
            "finish_reason": choice.ended or "length",
        }
        if self.kind == "text":
            return {**shared, "text": choice.echo + choice.text}
        return {**shared, "message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def _log_chances(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if choice.alternatives is None:
            return None
        if self.kind == "chat":
            return {"content": [_of_chat(token) for token in tokens], "refusal": None}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.chance for token in tokens],
            "top_logprobs": [_by_text(token) for token in tokens] if choice.alternatives else None,
            "text_offset": [token.offset for token in tokens],
        }


def _by_text(token: Token) -> dict[str, float] | None:
    """Of two tokens with one text the likelier; None where nothing came before."""
    return dict(reversed(token.likeliest)) if token.chance is not None else None


def _of_chat(token: Token) -> dict[str, Any]:
    def one(text: str, chance: float) -> dict[str, Any]:
        byte = _BYTE.fullmatch(text)
        return {"token": text, "logprob": chance, "bytes": [int(byte[1], 16)] if byte else list(text.encode())}

    assert token.chance is not None
    return {**one(token.text, token.chance), "top_logprobs": [one(*other) for other in token.likeliest]}


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens; a prompt is counted once, however many choices there are of it."""
    prompts = {id(choice.prompt): len(choice.prompt) for choice in choices}
    given, said = sum(prompts.values()), sum(choice.said_tokens for choice in choices)
    return {"prompt_tokens": given, "completion_tokens": said, "total_tokens": given + said}

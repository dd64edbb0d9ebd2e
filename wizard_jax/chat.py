"""Conversations as ids, both ways: what is trained on, and what generation starts from, come from the same lines.

A conversation in the format `vicuna`, its ids as pieces, and which of them are trained:

    <s> A chat ... questions. USER: Hi ASSISTANT: Hello! </s> USER: Bye ASSISTANT: See you. </s>
     -            -           -   -  -     -       T     T      -   -      -        T   T    T

The ids of an unfinished conversation, whose last turn is the user's, are a prefix of the ids of every
conversation that goes on from there. Special tokens come from the format alone: "</s>" in a turn is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_gen.records import Turn
from wizard_jax.chat_formats import CHAT_FORMATS, ChatError, ChatFormat, Piece, Special, fill, get_format
from wizard_jax.tokenizer import Tokenizer

__all__ = [
    "CHAT_FORMATS",
    "ChatError",
    "ChatFormat",
    "Encoded",
    "check_tokenizer",
    "encode_conversation",
    "encode_prompt",
    "end_id",
    "get_format",
    "segments",
    "special_id",
]


class Encoded(NamedTuple):
    """A conversation for training. tokens: int32 [n]; trained: bool [n], true where the token is learnt."""

    tokens: np.ndarray
    trained: np.ndarray


class _Exchange(NamedTuple):
    """What is given up to where the assistant speaks, and what it says (None: yet to be said)."""

    given: list[Piece]
    said: list[Piece] | None
    is_empty: bool


def check_tokenizer(chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
    """Raises ChatError: the tokenizer lacks special tokens that the format is made of."""
    if tokenizer.bos_id is None and chat_format.has_bos:
        without = ", ".join(item.name for item in CHAT_FORMATS.values() if not item.has_bos)
        raise ChatError(
            f"the {chat_format.name} format begins with BOS, and this tokenizer has none: use a format without "
            f"({without}), or name its bos_token in the tokenizer_config.json beside it"
        )
    missing = [name for name in chat_format.special_tokens if tokenizer.special_id(name) is None]
    if missing:
        raise ChatError(
            f"the {chat_format.name} format needs the special tokens {', '.join(missing)}, which this tokenizer does "
            "not have: use the tokenizer that the format came with, or another chat format"
        )


def end_id(chat_format: ChatFormat, tokenizer: Tokenizer) -> int:
    """The id that ends an answer, at which generation stops. Raises ChatError: the tokenizer lacks it."""
    check_tokenizer(chat_format, tokenizer)
    return special_id(chat_format.end, tokenizer=tokenizer)


def encode_conversation(turns: Sequence[Turn], *, chat_format: ChatFormat, tokenizer: Tokenizer) -> Encoded:
    """The ids of a whole conversation, of which the answers, each with the token that ends it, are trained.

    An empty answer is not: it would teach to say nothing.

    Raises:
      ChatError: turns that do not alternate, no answer at the end, a system turn that has no place, or a tokenizer
        without the format's special tokens.
    """
    check_tokenizer(chat_format, tokenizer)
    exchanges = _exchanges(turns, chat_format=chat_format)
    if exchanges[-1].said is None:
        raise ChatError("the conversation ends with a user turn that nobody answers")
    tokens: list[int] = []
    trained: list[bool] = []
    for exchange in exchanges:
        given, said = _encode(exchange, tokenizer=tokenizer)
        tokens += given + said
        trained += [False] * len(given) + [not exchange.is_empty] * len(said)
    return Encoded(np.array(tokens, np.int32), np.array(trained, np.bool_))


def encode_prompt(turns: Sequence[Turn], *, chat_format: ChatFormat, tokenizer: Tokenizer) -> np.ndarray:
    """The ids (int32 [n]) after which the assistant speaks: a prefix of those of `encode_conversation`.

    Raises:
      ChatError: turns that do not alternate, no user turn at the end, a system turn that has no place, or a tokenizer
        without the format's special tokens.
    """
    check_tokenizer(chat_format, tokenizer)
    exchanges = _exchanges(turns, chat_format=chat_format)
    if exchanges[-1].said is not None:
        raise ChatError("the conversation ends with an assistant turn: there is nothing to answer")
    tokens: list[int] = []
    for exchange in exchanges:
        given, said = _encode(exchange, tokenizer=tokenizer)
        tokens += given + said
    return np.array(tokens, np.int32)


def segments(turns: Sequence[Turn], *, chat_format: ChatFormat) -> list[str]:
    """The conversation as text, cut where special tokens stand: what the tokenizer sees, and is trained on."""
    texts = [""]
    for given, said, _ in _exchanges(turns, chat_format=chat_format):
        for piece in (*given, *(said or ())):
            if isinstance(piece, Special):
                texts.append("")
            else:
                texts[-1] += piece
    return [text for text in texts if text]


def _encode(exchange: _Exchange, *, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of what is given and of what is said.

    The text around the end of what is given is tokenized as one string, as it will be seen. Where a piece would span
    that end, the string is cut there: generation starts after exactly these ids, so nothing else may be trained on.
    """
    given = [_encode_piece(piece, tokenizer=tokenizer) for piece in exchange.given]
    ids = [token for part in given for token in part]
    if exchange.said is None:
        return ids, []
    last, (first, *rest) = exchange.given[-1], exchange.said
    if isinstance(last, str) and isinstance(first, str):
        whole = tokenizer.encode(last + first)
        fits = whole[: len(given[-1])] == given[-1]
        said = whole[len(given[-1]) :] if fits else tokenizer.encode_continuation(first)
    else:
        said = _encode_piece(first, tokenizer=tokenizer)
    return ids, [*said, *(token for piece in rest for token in _encode_piece(piece, tokenizer=tokenizer))]


def _encode_piece(piece: Piece, *, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(piece) if isinstance(piece, str) else [special_id(piece, tokenizer=tokenizer)]


def special_id(special: Special, *, tokenizer: Tokenizer) -> int:
    """The id of a special token of a format that `check_tokenizer` has let pass."""
    own = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    token = own[special.token] if special.token in own else tokenizer.special_id(special.token)
    assert token is not None, f"{special.token}: check_tokenizer was not called"
    return token


def _exchanges(turns: Sequence[Turn], *, chat_format: ChatFormat) -> list[_Exchange]:
    system, rest = _split_system(turns, chat_format=chat_format)
    exchanges = []
    for index in range(0, len(rest), 2):
        user = rest[index].content
        if index:
            given = fill(chat_format.later + chat_format.ask, user=user)
        elif system is None or chat_format.first_with_system is None:
            given = fill(chat_format.first + chat_format.ask, user=user)
        else:
            given = fill(chat_format.first_with_system + chat_format.ask, user=user, system=system)
        if index + 1 == len(rest):
            exchanges.append(_Exchange(given, None, is_empty=True))
        else:
            answer = rest[index + 1].content
            said = fill(chat_format.answer, assistant=answer)
            exchanges.append(_Exchange(given, said, is_empty=not answer.strip()))
    return exchanges


def _split_system(turns: Sequence[Turn], *, chat_format: ChatFormat) -> tuple[str | None, list[Turn]]:
    """The system turn's text, if there is one, and the turns after it, which are checked to alternate."""
    system, rest = None, list(turns)
    if rest and rest[0].role == "system":
        if chat_format.first_with_system is None:
            able = [item.name for item in CHAT_FORMATS.values() if item.first_with_system is not None]
            raise ChatError(
                f"the {chat_format.name} format has no place for a system turn: "
                f"use {' or '.join(able)}, or leave the system turn out"
            )
        system, rest = rest[0].content, rest[1:]
    for index, turn in enumerate(rest):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise ChatError(
                f"turn {index + len(turns) - len(rest)} is the {turn.role}'s where the {expected}'s is due: "
                "turns must go user, assistant, user, ..., after one system turn at most"
            )
    if not rest:
        raise ChatError("the conversation has no user turn")
    return system, rest

"""The chat formats, both ways: what is trained on, and what generation starts from, come from the same lines.

A conversation in the format `vicuna`, its ids as pieces, and which of them are trained:

    <s> A chat ... questions. USER: Hi ASSISTANT: Hello! </s> USER: Bye ASSISTANT: See you. </s>
     -            -           -   -  -     -       T     T      -   -      -        T   T    T

The ids of an unfinished conversation, whose last turn is the user's, are a prefix of the ids of every
conversation that goes on from there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from configs.errors import UserError
from data_gen.records import Turn
from wizard_jax.tokenizer import Tokenizer


class ChatError(UserError):
    """A conversation or a format's name that cannot be rendered."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How turns become text: preamble, then for each exchange `user` text `ask`, `lead` answer EOS."""

    name: str
    system: Literal["replaces_preamble", "refused"]
    preamble: str
    after_preamble: str
    user: str
    ask: str
    """Ends what generation starts from."""
    lead: str
    """What stands before an answer, and is written by the model with it."""

    @property
    def template(self) -> str:
        """The same text as a Jinja chat template, as Hugging Face tokenizers carry it."""
        refuse = f"The {self.name} format has no place for a system turn."
        system = (
            "{%- set preamble = messages[0]['content'] -%}"
            if self.system == "replaces_preamble"
            else f"{{{{- raise_exception({json.dumps(refuse)}) -}}}}"
        )
        return (
            f"{{%- set preamble = {json.dumps(self.preamble)} -%}}"
            "{%- set turns = messages -%}"
            "{%- if messages[0]['role'] == 'system' -%}"
            f"{system}{{%- set turns = messages[1:] -%}}"
            "{%- endif -%}"
            f"{{{{- bos_token + preamble + {json.dumps(self.after_preamble)} -}}}}"
            "{%- for turn in turns -%}"
            "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
            "{{- raise_exception('Turns must go user, assistant, user, ...') -}}"
            "{%- elif turn['role'] == 'user' -%}"
            f"{{{{- {json.dumps(self.user)} + turn['content'] -}}}}"
            "{%- if add_generation_prompt or not loop.last -%}"
            f"{{{{- {json.dumps(self.ask)} -}}}}"
            "{%- endif -%}"
            "{%- else -%}"
            f"{{{{- {json.dumps(self.lead)} + turn['content'] + eos_token -}}}}"
            "{%- endif -%}"
            "{%- endfor -%}"
        )


CHAT_FORMATS: Mapping[str, ChatFormat] = MappingProxyType(
    {
        chat_format.name: chat_format
        for chat_format in (
            # WizardLM 13B, 30B and 70B, after Vicuna v1.1.
            ChatFormat(
                name="vicuna",
                system="replaces_preamble",
                preamble="A chat between a curious user and an artificial intelligence assistant. "
                "The assistant gives helpful, detailed, and polite answers to the user's questions.",
                after_preamble=" ",
                user="USER: ",
                ask=" ASSISTANT:",
                lead=" ",
            ),
            # Stanford Alpaca without an input; WizardCoder and WizardMath.
            ChatFormat(
                name="alpaca",
                system="refused",
                preamble="Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.",
                after_preamble="\n\n",
                user="### Instruction:\n",
                ask="\n\n### Response:\n",
                lead="",
            ),
            # WizardLM 7B.
            ChatFormat(
                name="wizardlm_7b",
                system="refused",
                preamble="",
                after_preamble="",
                user="",
                ask="\n\n### Response:\n",
                lead="",
            ),
        )
    }
)


def get_format(name: str) -> ChatFormat:
    """Raises ChatError: there is no such format; names the nearest."""
    if name in CHAT_FORMATS:
        return CHAT_FORMATS[name]
    near = difflib.get_close_matches(name.lower(), CHAT_FORMATS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ChatError(f"unknown chat format {name!r}: {hint}There are {', '.join(CHAT_FORMATS)}.")


class Encoded(NamedTuple):
    """A conversation for training. tokens: int32 [n]; trained: bool [n], true where the token is learnt."""

    tokens: np.ndarray
    trained: np.ndarray


class _Exchange(NamedTuple):
    """The text between two EOS: what is given, and what the assistant says (None: yet to be said)."""

    given: str
    answer: str | None


def encode_conversation(turns: Sequence[Turn], *, chat_format: ChatFormat, tokenizer: Tokenizer) -> Encoded:
    """The ids of a whole conversation, of which the answers, each with its EOS, are trained.

    An empty answer is not: it would teach to say nothing.

    Raises:
      ChatError: turns that do not alternate, no answer at the end, or a system turn that has no place.
    """
    exchanges = _exchanges(turns, chat_format=chat_format)
    if exchanges[-1].answer is None:
        raise ChatError("the conversation ends with a user turn that nobody answers")
    tokens, trained = [tokenizer.bos_id], [False]
    for exchange in exchanges:
        given, said = _encode(exchange, tokenizer=tokenizer)
        tokens += given + said
        trained += [False] * len(given) + [bool((exchange.answer or "").strip())] * len(said)
    return Encoded(np.array(tokens, np.int32), np.array(trained, np.bool_))


def encode_prompt(turns: Sequence[Turn], *, chat_format: ChatFormat, tokenizer: Tokenizer) -> np.ndarray:
    """The ids (int32 [n]) after which the assistant speaks: a prefix of those of `encode_conversation`.

    Raises:
      ChatError: turns that do not alternate, no user turn at the end, or a system turn that has no place.
    """
    exchanges = _exchanges(turns, chat_format=chat_format)
    if exchanges[-1].answer is not None:
        raise ChatError("the conversation ends with an assistant turn: there is nothing to answer")
    tokens = [tokenizer.bos_id]
    for exchange in exchanges:
        given, said = _encode(exchange, tokenizer=tokenizer)
        tokens += given + said
    return np.array(tokens, np.int32)


def segments(turns: Sequence[Turn], *, chat_format: ChatFormat) -> list[str]:
    """The conversation as text, cut where an EOS id stands: what the tokenizer sees, and is trained on."""
    return [given + (answer or "") for given, answer in _exchanges(turns, chat_format=chat_format)]


def _encode(exchange: _Exchange, *, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of what is given and, with EOS, of what is said.

    The text is tokenized as one string, as it will be seen. Where a piece would span the end of what is
    given (no tokenizer that keeps to words has one), the string is cut there: generation starts after
    exactly these ids, so nothing else may be trained on.
    """
    given = tokenizer.encode(exchange.given)
    if exchange.answer is None:
        return given, []
    whole = tokenizer.encode(exchange.given + exchange.answer)
    fits = whole[: len(given)] == given
    said = whole[len(given) :] if fits else tokenizer.encode_continuation(exchange.answer)
    return given, [*said, tokenizer.eos_id]


def _exchanges(turns: Sequence[Turn], *, chat_format: ChatFormat) -> list[_Exchange]:
    preamble, rest = chat_format.preamble, list(turns)
    if rest and rest[0].role == "system":
        if chat_format.system == "refused":
            able = [item.name for item in CHAT_FORMATS.values() if item.system == "replaces_preamble"]
            raise ChatError(
                f"the {chat_format.name} format has no place for a system turn: "
                f"use {' or '.join(able)}, or leave the system turn out"
            )
        preamble, rest = rest[0].content, rest[1:]
    for index, turn in enumerate(rest):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise ChatError(
                f"turn {index + len(turns) - len(rest)} is the {turn.role}'s where the {expected}'s is due: "
                "turns must go user, assistant, user, ..., after one system turn at most"
            )
    if not rest:
        raise ChatError("the conversation has no user turn")
    exchanges = []
    for index in range(0, len(rest), 2):
        start = preamble + chat_format.after_preamble if index == 0 else ""
        answers = [chat_format.lead + turn.content for turn in rest[index + 1 : index + 2]]
        given = start + chat_format.user + rest[index].content + chat_format.ask
        exchanges.append(_Exchange(given, answers[0] if answers else None))
    return exchanges

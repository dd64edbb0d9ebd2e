"""From a request's body to what the engine is asked, and from what it says to the choices of the answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_gen.records import Turn
from wizard_jax.generate.engine import Ask, Chances, Said, Tokens
from wizard_jax.generate.sampling import Sampling
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.text import TextStream, token_text
from wizard_jax.serve.requests import ChatBody, Refused, TextBody


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer with its log probability (None: the first of a text) and the likeliest in its place."""

    text: str
    chance: float | None
    likeliest: tuple[tuple[str, float], ...]
    offset: int


@dataclass(kw_only=True)
class Choice:
    """One continuation of one prompt, as far as it has come."""

    index: int
    prompt: Tokens
    ask: Ask | None
    """None: the prompt is all."""
    is_scored: bool = False
    """Whether the prompt's own log probabilities are wanted, with the answer's."""
    stream: TextStream
    speaker: Speaker
    alternatives: int | None
    """Likeliest tokens to show; None: no log probabilities."""
    echo: str = ""
    ended: str = ""
    said_tokens: int = 0
    text: str = ""
    """What can be shown so far."""
    tokens: list[Token] = field(default_factory=list)
    """All that came; those that begin within `text` can be shown."""
    shown: int = 0

    def hear(self, said: Said) -> tuple[str, list[Token]]:
        """What can be shown now that could not before."""
        before = len(self.stream.offsets)
        new = self.stream.push(said.tokens)
        read = len(self.stream.offsets) - before
        self.said_tokens += read
        if self.stream.stopped or said.ended:
            self.ended = "stop" if self.stream.stopped else said.ended
            new += self.stream.finish()
        if said.chances is not None and self.alternatives is not None:
            chances = said.chances.first(read)
            offsets = [len(self.echo) + offset for offset in self.stream.offsets[before:]]
            self.tokens += listed(
                said.tokens[:read], chances, offsets, alternatives=self.alternatives, speaker=self.speaker
            )
        self.text += new
        return new, self._showable()

    def _showable(self) -> list[Token]:
        end = len(self.echo) + len(self.text)
        is_whole = bool(self.ended) and not self.stream.stopped
        count = len(self.tokens) if is_whole else sum(token.offset < end for token in self.tokens)
        new, self.shown = self.tokens[self.shown : count], max(count, self.shown)
        return new


def listed(
    tokens: Tokens, chances: Chances, offsets: Sequence[int], *, alternatives: int, speaker: Speaker
) -> list[Token]:
    """Tokens with their log probabilities, as an answer shows them."""
    made = []
    for index, token in enumerate(tokens.tolist()):
        chosen = float(chances.chosen[index])
        best = [
            (token_text(speaker.tokenizer, int(other)), float(chance))
            for other, chance in zip(
                chances.likeliest[index, :alternatives], chances.of_likeliest[index, :alternatives], strict=True
            )
            if np.isfinite(chance)
        ]
        made.append(
            Token(
                text=token_text(speaker.tokenizer, token),
                chance=chosen if np.isfinite(chosen) else None,
                likeliest=tuple(best),
                offset=offsets[index],
            )
        )
    return made


def echoed(choice: Choice, chances: Chances) -> list[Token]:
    """The prompt's own tokens, whose texts stand one after the other in `choice.echo`."""
    assert choice.alternatives is not None
    stream = TextStream(choice.speaker.tokenizer)
    stream.push(choice.prompt)
    return listed(choice.prompt, chances, stream.offsets, alternatives=choice.alternatives, speaker=choice.speaker)


def chat_choices(body: ChatBody, speaker: Speaker, *, length: int) -> list[Choice]:
    """Raises Refused: two limits, or no place for the prompt; UserError: turns that the chat format can not write."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused("max_tokens and max_completion_tokens are the same: give one", param="max_tokens")
    roles = {"developer": "system"}
    turns = [Turn(roles.get(one.role, one.role), one.text) for one in body.messages]  # type: ignore[arg-type]
    prompt = speaker.prompt_of_turns(turns)
    most = body.max_completion_tokens or body.max_tokens
    _check_length(len(prompt), most or 1, length=length, param="messages")
    sampling = _sampling(body, most=most or length - len(prompt))
    alternatives = body.top_logprobs if body.logprobs else None
    return [
        Choice(
            index=index,
            prompt=prompt,
            ask=Ask(prompt=prompt, sampling=sampling, place=index, ends=speaker.ends, chances=body.logprobs),
            stream=TextStream(speaker.tokenizer, stop=body.stop),
            speaker=speaker,
            alternatives=alternatives,
        )
        for index in range(body.n)
    ]


def text_choices(body: TextBody, speaker: Speaker, *, length: int) -> list[Choice]:
    """For each prompt in turn its `n` choices. Raises Refused: no place for a prompt, or token ids of no token."""
    if body.max_tokens == 0 and not body.echo:
        raise Refused("max_tokens is 0, which leaves nothing to say: it goes with echo: true", param="max_tokens")
    if body.echo and body.stream:
        raise Refused("echo is not supported with stream: true: take one of them", param="echo")
    sampling = _sampling(body, most=max(body.max_tokens, 1))
    made: list[Choice] = []
    for number, given in enumerate(body.prompt):
        prompt = _prompt(given, speaker)
        _check_length(len(prompt), body.max_tokens, length=length, param="prompt")
        echo = "" if not body.echo else given if isinstance(given, str) else speaker.tokenizer.decode(given)
        for index in range(number * body.n, (number + 1) * body.n):
            ask = Ask(
                prompt=prompt, sampling=sampling, place=index, ends=speaker.ends, chances=body.logprobs is not None
            )
            made.append(
                Choice(
                    index=index,
                    prompt=prompt,
                    ask=ask if body.max_tokens else None,
                    is_scored=body.echo and body.logprobs is not None,
                    stream=TextStream(speaker.tokenizer, context=prompt.tolist(), stop=body.stop),
                    speaker=speaker,
                    alternatives=body.logprobs,
                    echo=echo,
                )
            )
    return made


def _prompt(given: Any, speaker: Speaker) -> Tokens:
    if isinstance(given, str):
        return speaker.prompt_of_text(given)
    vocabulary = speaker.config.vocab_size
    wrong = [token for token in given if not 0 <= token < vocabulary]
    if wrong:
        raise Refused(f"prompt: there is no token {wrong[0]}; this model has 0 to {vocabulary - 1}", param="prompt")
    return np.array(given, np.int32)


def _sampling(body: ChatBody | TextBody, *, most: int) -> Sampling:
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return Sampling(
        max_new_tokens=most,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        seed=seed,
    )


def _check_length(prompt: int, most: int, *, length: int, param: str) -> None:
    if not prompt:
        raise Refused("the prompt has no tokens, and there is no beginning-of-text token to put there", param=param)
    if prompt + most > length:
        raise Refused(
            f"the prompt has {prompt} tokens and the answer may have {most}, which is more than the {length} that this "
            "server takes together: shorten one of them",
            param=param,
            code="context_length_exceeded",
        )


def with_echo(choice: Choice, chances: Chances) -> None:
    """Puts the prompt's tokens before the answer's."""
    choice.tokens[:0] = echoed(choice, chances)
    choice.shown = len(choice.tokens)

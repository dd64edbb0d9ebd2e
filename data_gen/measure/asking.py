"""Asking a model for a measure: one request, and either the text of its reply or the reason why there is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from data_gen.llm.chat import Ambiguous, ChatModel, ChatRequest, Message, NotSent, Permanent, RequestKey

T = TypeVar("T")


class Heard(NamedTuple):
    """A reply's text, or why there is none that can be used."""

    text: str
    problem: str = ""
    replied: bool = True
    """Whether there was a reply at all: one that can not be used may be asked for anew, with another key."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The model that is asked, and how.

    `name` is what its server calls it. A judge is asked at temperature 0, so that it says the same the next time.
    """

    model: ChatModel
    name: str
    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048
    """Thinking counts as output, so a short reply still needs room."""


async def ask(prompt: str, *, key: RequestKey, judge: Judge) -> Heard:
    """One request; a failure of this request is a problem to report, never a value.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    request = ChatRequest(
        key=key,
        model=judge.name,
        messages=(Message("user", prompt),),
        temperature=judge.temperature,
        top_p=judge.top_p,
        max_tokens=judge.max_tokens,
        # 31 bits: the largest seed that every provider takes.
        seed=keyed_number(judge.seed, key.lineage, key.round, key.purpose) % 2**31,
    )
    try:
        reply = await judge.model.complete(request)
    except Permanent as error:
        if error.scope == "run":
            raise
        return Heard("", f"refused for good: {error}", replied=False)
    except (NotSent, Ambiguous) as error:
        return Heard("", f"given up: {error}", replied=False)
    match reply.finish_reason:
        case "stop":
            return Heard(reply.text)
        case "length":
            return Heard("", f"cut off at max_tokens = {judge.max_tokens}")
        case "filtered":
            return Heard("", "the provider withheld the reply")
        case "unreadable":
            return Heard("", "the provider's success held no text")


async def together(requests: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order, all waited for at once; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(request) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def keyed_number(seed: int, *key: str | int) -> int:
    """A number of 64 bits that follows from the seed and the key alone."""
    digest = hashlib.sha256(json.dumps([seed, *key]).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")

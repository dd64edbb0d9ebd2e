"""One call is one HTTP request, whatever goes wrong: the client libraries' own retries, redirects and offers to go on
are off. This is what notices a release of theirs that turns one of them on again."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

import pytest
from clients import EVERY, Open, gemini_on_vertex, openai
from loopback import Scripted, http

from data_gen.config import Faults, Simulated
from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct


def asking(what: object) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed {what}", 1, "answer"),
        model="m",
        messages=(Message("user", f"why? {what}"),),
        temperature=0.7,
        top_p=0.9,
        max_tokens=64,
        seed=1,
    )


GO_ON = json.dumps(
    {
        "candidates": [
            {
                "content": {"parts": [{"text": "because"}]},
                "finishReason": "CONTINUATION",
                "continuationToken": "eA==",
            }
        ],
        "choices": [{"message": {"content": "because"}, "finish_reason": "length"}],
    }
).encode()

ANSWERS: dict[str, bytes | None] = {
    "429": http(429, {"error": {"message": "slow down", "code": 429, "status": "RESOURCE_EXHAUSTED"}}),
    "429 that says when": http(429, b"", retry_after="0", x_should_retry="true", retry_after_ms="1"),
    "503": http(503, b"", retry_after="0", x_should_retry="true"),
    "500": http(500, {"error": {"message": "oh", "code": 500, "status": "INTERNAL"}}, x_should_retry="true"),
    "408": http(408, b""),
    "409": http(409, b"", x_should_retry="true"),
    "drop": None,
    "an answer cut off": http(200, b"x" * 1000)[:-500],
    "no HTTP at all": b"SSH-2.0-OpenSSH_9.6\r\n",
    "moved for good": http(308, b"", location="/v1/elsewhere"),
    "moved for now": http(302, b"", location="/v1/elsewhere"),
    "an offer to go on": http(200, GO_ON),
    "nonsense": http(200, b"<html>"),
}


@EVERY
def test_one_call_is_one_request_whatever_is_answered(client: Open) -> None:
    came: Counter[str] = Counter()

    def answer(body: Any) -> bytes | None:
        name = re.search(r"why\? (.+?)!", json.dumps(body))
        assert name is not None
        came[name[1]] += 1
        return ANSWERS[name[1]]

    async def run() -> None:
        async with Scripted(answer) as server, client(server.base_url) as chat:
            calls = (chat.complete(asking(f"{name}!")) for name in ANSWERS for _ in range(2))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(o, ChatReply | NotSent | Ambiguous | Permanent) for o in outcomes), outcomes

    asyncio.run(run())
    assert came == dict.fromkeys(ANSWERS, 2)


@EVERY
def test_60_calls_are_60_requests_to_a_provider_that_misbehaves_in_every_way(client: Open) -> None:
    kinds = ("rate_limited", "server_error", "dropped", "malformed", "filtered", "truncated")

    async def run() -> int:
        faults = Faults(**dict.fromkeys(kinds, 0.15))
        async with SimulatedServer(Simulated(faults=faults), conduct=Conduct(latency_seconds=0.0)) as server:
            async with client(server.address) as chat:
                calls = (chat.complete(asking(i)) for i in range(60))
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert len({type(outcome) for outcome in outcomes}) == 3
            return server.requests

    assert asyncio.run(run()) == 60


@pytest.mark.parametrize("client", [openai, gemini_on_vertex])
def test_150_calls_at_once_are_all_on_the_wire_at_once(client: Open) -> None:
    """A client that let only some hundred connections through would make `concurrency` a promise that it breaks."""

    async def run() -> int:
        async with Scripted(http(200, GO_ON), gather=150) as server:
            async with client(server.base_url) as chat:
                replies = await asyncio.gather(*(chat.complete(asking(i)) for i in range(150)))
            assert {reply.text for reply in replies} == {"because"}
            return len(server.heads)

    assert asyncio.run(run()) == 150

"""What holds for every client of a hosted model: how each failure is classed, and what a wait for an answer may cost.

What only one provider says stands in that provider's own tests.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from clients import EVERY, Open
from loopback import Scripted, http

from data_gen.llm.chat import Ambiguous, ChatError, ChatRequest, Message, NotSent, Permanent, RequestKey

ERROR = {"error": {"message": "no", "code": None, "status": "X", "type": "x", "param": None}}

CLASSED: dict[str, tuple[bytes | None, ChatError]] = {
    "429": (http(429, ERROR), NotSent("", rate_limited=True)),
    "429 after 7": (http(429, b"[]", retry_after="7"), NotSent("", retry_after=7.0, rate_limited=True)),
    "503": (http(503, b"down"), NotSent("")),
    "dropped": (None, Ambiguous("")),
    "cut off": (http(200, b"{}" * 100)[:-10], Ambiguous("")),
    "500": (http(500, ERROR), Ambiguous("")),
    "502": (http(502, b"<html>"), Ambiguous("")),
    "504": (http(504, b""), Ambiguous("")),
    "400": (http(400, ERROR), Permanent("", scope="unclear")),
    "a proxy's 400": (http(400, b"<html>"), Permanent("", scope="unclear")),
    "413": (http(413, ERROR), Permanent("", scope="request")),
    "401": (http(401, ERROR), Permanent("", scope="run")),
    "403": (http(403, b"<html>"), Permanent("", scope="run")),
    "404": (http(404, ERROR), Permanent("", scope="run")),
    "moved": (http(307, b"", location="http://127.0.0.1:9/v1"), Permanent("", scope="run")),
}


def asking() -> ChatRequest:
    return ChatRequest(
        key=RequestKey("seed-1", 1, "answer"),
        model="m",
        messages=(Message("system", "be brief"), Message("user", "why?")),
        temperature=0.7,
        top_p=0.9,
        max_tokens=64,
        seed=12,
    )


@EVERY
@pytest.mark.parametrize(("answer", "expected"), CLASSED.values(), ids=CLASSED)
def test_each_failure_is_classed_and_cost_exactly_one_request(
    client: Open, answer: bytes | None, expected: ChatError
) -> None:
    async def run() -> ChatError:
        async with Scripted(answer) as server, client(server.base_url) as chat:
            with pytest.raises(type(expected)) as failure:
                await chat.complete(asking())
            assert len(server.heads) == 1
            return failure.value

    failure = asyncio.run(run())
    assert type(failure) is type(expected)
    assert vars(failure) == vars(expected)


@EVERY
def test_a_server_that_is_not_there_was_not_sent_anything(client: Open) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused

        async def run() -> None:
            async with client(f"http://127.0.0.1:{taken.getsockname()[1]}") as chat:
                await chat.complete(asking())

        with pytest.raises(NotSent, match=r"127\.0\.0\.1"):
            asyncio.run(run())


@EVERY
def test_an_answer_that_takes_too_long_may_have_been_paid(client: Open) -> None:
    async def run() -> int:
        async with Scripted(http(200, {}), delay=1.0) as server:
            async with client(server.base_url, timeout_seconds=0.2) as chat:
                with pytest.raises(Ambiguous):
                    await chat.complete(asking())
            return len(server.heads)

    assert asyncio.run(run()) == 1

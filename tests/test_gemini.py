"""The real client library against a loopback server: one request a call, every failure classed, nothing invented."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Scripted, http

from data_gen.config import Gemini
from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.gemini import FINISH_REASONS, NOT_BLOCKED, GeminiChat, generate_body, read_response

Platform = Literal["vertex", "ai_studio"]


def asking(text: str = "why?") -> ChatRequest:
    return ChatRequest(
        key=RequestKey("seed-1", 1, "answer"),
        model="gemini-2.5-flash",
        messages=(
            Message("system", "be brief"),
            Message("user", "hello"),
            Message("assistant", "hi"),
            Message("user", text),
        ),
        temperature=0.0,
        top_p=0.9,
        max_tokens=64,
        seed=12,
    )


USAGE = {
    "promptTokenCount": 70,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 300,
    "cachedContentTokenCount": 50,
    "totalTokenCount": 390,
    "trafficType": "ON_DEMAND",
}
GOOD: dict[str, Any] = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "be"}, {"text": "cause"}]},
            "finishReason": "STOP",
            "avgLogprobs": -0.2,
        }
    ],
    "usageMetadata": USAGE,
    "modelVersion": "gemini-2.5-flash-001",
    "responseId": "x",
}


def good(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def candidate(**changes: object) -> bytes:
    return good(candidates=[{"content": {"parts": [{"text": "because"}]}, "finishReason": "STOP", **changes}])


def error(message: str = "no", status: str = "X", *details: dict[str, object]) -> dict[str, object]:
    return {"error": {"code": 400, "message": message, "status": status, "details": list(details)}}


def wait(delay: object) -> dict[str, object]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def ask(
    answer: bytes | None,
    *,
    platform: Platform = "vertex",
    thinking_budget: int | None = None,
) -> tuple[ChatReply | Exception, Scripted]:
    async def run() -> tuple[ChatReply | Exception, Scripted]:
        async with Scripted(answer) as server:
            config = Gemini(
                model="gemini-2.5-flash",
                platform=platform,
                project="a-project",
                base_url=server.base_url,
                timeout_seconds=5.0,
                thinking_budget=thinking_budget,
            )
            async with GeminiChat(config) as chat:
                try:
                    return await chat.complete(asking()), server
                except (NotSent, Ambiguous, Permanent) as failure:
                    return failure, server

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("platform", "path", "shown"),
    [
        (
            "vertex",
            "/projects/a-project/locations/global/publishers/google/models/gemini-2.5-flash:generateContent",
            "Authorization: Bearer unused",
        ),
        ("ai_studio", "/models/gemini-2.5-flash:generateContent", "x-goog-api-key: unused"),
    ],
)
def test_the_request_says_what_it_should_and_the_reply_what_it_said(platform: Platform, path: str, shown: str) -> None:
    reply, server = ask(http(200, GOOD), platform=platform, thinking_budget=0)
    assert reply == ChatReply(
        text="because",
        finish_reason="stop",
        model="gemini-2.5-flash-001",
        input_tokens=70,
        output_tokens=320,
        cached_tokens=50,
    )
    assert path in server.heads[0].split("\r\n")[0]
    assert shown in server.heads[0]
    assert server.bodies == [
        {
            "contents": [
                {"role": "user", "parts": [{"text": "hello"}]},
                {"role": "model", "parts": [{"text": "hi"}]},
                {"role": "user", "parts": [{"text": "why?"}]},
            ],
            "systemInstruction": {"parts": [{"text": "be brief"}]},
            "generationConfig": {
                "temperature": 0.0,
                "topP": 0.9,
                "maxOutputTokens": 64,
                "seed": 12,
                "thinkingConfig": {"thinkingBudget": 0},
            },
        }
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=4),
    st.text(),
    st.floats(0, 2),
    st.none() | st.integers(-1, 2**15),
    st.sampled_from(["vertex", "ai_studio"]),
)
@settings(max_examples=10)
def test_a_line_of_a_batch_file_says_what_is_said_online(
    turns: list[tuple[Any, str]], last: str, temperature: float, thinking_budget: int | None, platform: Platform
) -> None:
    async def run() -> None:
        async with Scripted(http(200, GOOD)) as server:
            config = Gemini(model="m", platform=platform, base_url=server.base_url, thinking_budget=thinking_budget)
            messages = (*(Message(role, text) for role, text in turns), Message("user", last))
            request = replace(asking(), messages=messages, temperature=temperature)
            async with GeminiChat(config) as chat:
                await chat.complete(request)
        assert server.bodies == [json.loads(json.dumps(generate_body(request, config)))]

    asyncio.run(run())


CLASSED: list[tuple[str, bytes | None, Callable[[Exception], bool]]] = [
    (
        "429, told in the body",
        http(429, error("slow", "RESOURCE_EXHAUSTED", {"reason": "R"}, wait("12.5s"))),
        lambda e: isinstance(e, NotSent) and e.retry_after == 12.5,
    ),
    (
        "429, told twice",
        http(429, [error("slow", "RESOURCE_EXHAUSTED", wait("3s"))], retry_after="30"),
        lambda e: isinstance(e, NotSent) and e.retry_after == 30.0,
    ),
    (
        "429, told nonsense",
        http(429, error("slow", "RESOURCE_EXHAUSTED", wait(["3s"]), wait("soons"), wait("-1s")), retry_after="?"),
        lambda e: isinstance(e, NotSent) and e.retry_after is None,
    ),
    ("an error that is no UTF-8", http(500, b'{"error": "\xff"}'), lambda e: isinstance(e, Ambiguous)),
    ("an error too deep to parse", http(500, b"[" * 200_000), lambda e: isinstance(e, Ambiguous)),
    ("an error that is no gzip", http(500, b"x", content_encoding="gzip"), lambda e: isinstance(e, Ambiguous)),
    (
        "too long",
        http(400, error("The input token count (9) exceeds the maximum number of tokens allowed (8).")),
        lambda e: getattr(e, "scope", "") == "request",
    ),
    (
        "a bad key",
        http(400, error("API key not valid", "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"})),
        lambda e: getattr(e, "scope", "") == "run",
    ),
    ("a place", http(400, error("location", "FAILED_PRECONDITION")), lambda e: getattr(e, "scope", "") == "run"),
    (
        "thinking",
        http(400, error("Budget 0 is invalid. This model only works in thinking mode.")),
        lambda e: getattr(e, "scope", "") == "run" and "change llm.thinking_budget" in str(e),
    ),
]


@pytest.mark.parametrize(("answer", "right"), [case[1:] for case in CLASSED], ids=[case[0] for case in CLASSED])
def test_each_failure_of_its_own_is_classed_and_cost_exactly_one_request(
    answer: bytes | None, right: Callable[[Exception], bool]
) -> None:
    failure, server = ask(answer)
    assert isinstance(failure, Exception)
    assert right(failure), repr(failure)
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"<html>It works</html>"),
        http(200, b"[]"),
        http(200, b"[" * 200_000),
        http(200, b"\xff\xfe"),
        http(200, b"no gzip", content_encoding="gzip"),
        http(204, b""),
        http(200, good(candidates=[{"finishReason": 7, "content": "because", "index": "first"}])),
    ],
    ids=lambda answer: repr(answer[-20:]),
)
def test_a_malformed_success_over_http_is_a_reply(answer: bytes) -> None:
    reply, server = ask(answer)
    assert isinstance(reply, ChatReply)
    assert (reply.text, reply.finish_reason) == ("", "unreadable")
    assert len(server.heads) == 1


def test_an_encoded_body_and_half_a_character_are_read_as_they_are() -> None:
    reply, _ = ask(
        http(200, gzip.compress(candidate(content={"parts": [{"text": "a\ud83d"}]})), content_encoding="gzip")
    )
    assert isinstance(reply, ChatReply)
    assert reply.text == "a\ud83d"


def test_an_offer_to_go_on_is_not_taken_up() -> None:
    reply, server = ask(http(200, candidate(finishReason="CONTINUATION", continuationToken="eA==")))
    assert isinstance(reply, ChatReply)
    assert reply.finish_reason == "length"
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"<html>It works</html>",
        b"\xff\xfe\x00",
        b'{"candidates": [{"content"',
        b"[" * 200_000,
        b'{"candidates": ' + b"9" * 5000 + b"}",
        good(candidates=None),
        good(candidates=[]),
        good(candidates={}),
        good(candidates=[None]),
        candidate(content=None),
        candidate(content="because"),
        candidate(content={"parts": None}),
        candidate(content={"parts": "because"}),
        candidate(content={"parts": [None]}),
        candidate(content={"parts": [{"text": 7}]}),
        candidate(content={"parts": [{"text": "a"}, {"functionCall": {"name": "f"}}]}),
        candidate(finishReason=None),
        candidate(finishReason=7),
        candidate(finishReason=["STOP"]),
        candidate(finishReason="BRAND_NEW"),
        good(candidates=[], promptFeedback={"blockReason": "BLOCKED_REASON_UNSPECIFIED"}),
        good(candidates=[], promptFeedback={"blockReason": 7}),
        good(candidates=[], promptFeedback="SAFETY"),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_success_without_text_is_unreadable_and_never_an_exception(body: bytes) -> None:
    reply = read_response(body, model="m")
    assert (reply.text, reply.finish_reason) == ("", "unreadable")
    assert reply.model in ("m", "gemini-2.5-flash-001")


@pytest.mark.parametrize(
    ("body", "text", "finish_reason"),
    [
        (candidate(finishReason="MAX_TOKENS"), "because", "length"),
        (candidate(finishReason="MAX_TOKENS", content={"role": "model"}), "", "length"),
        (good(candidates=[{"finishReason": "MAX_TOKENS"}]), "", "length"),
        (candidate(finishReason="MAX_TOKENS", content={"parts": [{"text": "hm", "thought": True}]}), "", "length"),
        (candidate(finishReason="SAFETY"), "", "filtered"),
        (candidate(finishReason="SAFETY", content=None), "", "filtered"),
        (candidate(content={"role": "model"}), "", "stop"),
        (candidate(content={"parts": [{"text": ""}]}), "", "stop"),
        (candidate(content={"parts": [{"text": "a", "thought": False, "thoughtSignature": "eA=="}]}), "a", "stop"),
    ],
)
def test_how_a_reply_ended_is_kept(body: bytes, text: str, finish_reason: str) -> None:
    reply = read_response(body, model="m")
    assert (reply.text, reply.finish_reason) == (text, finish_reason)
    assert (reply.input_tokens, reply.output_tokens) == (70, 320)


@pytest.mark.parametrize("reason", list(types.FinishReason), ids=lambda reason: reason.value)
def test_every_finish_reason_that_the_library_knows_is_mapped(reason: types.FinishReason) -> None:
    expected = FINISH_REASONS[reason.value]
    reply = read_response(candidate(finishReason=reason.value), model="m")
    assert reply.finish_reason == expected
    assert bool(reply.text) == (expected in ("stop", "length"))


@pytest.mark.parametrize("reason", list(types.BlockedReason), ids=lambda reason: reason.value)
def test_every_reason_to_block_a_prompt_that_the_library_knows_is_mapped(reason: types.BlockedReason) -> None:
    body = json.dumps({"promptFeedback": {"blockReason": reason.value}, "usageMetadata": {"promptTokenCount": 7}})
    reply = read_response(body.encode(), model="m")
    assert reply.finish_reason == ("unreadable" if reason.value in NOT_BLOCKED else "filtered")
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("", 7, 0)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (0, 0, 0)),
        ([], (0, 0, 0)),
        ({}, (0, 0, 0)),
        ({"promptTokenCount": -1, "candidatesTokenCount": -5, "thoughtsTokenCount": -5}, (0, 0, 0)),
        ({"promptTokenCount": "7", "candidatesTokenCount": 2.5, "cachedContentTokenCount": True}, (0, 0, 0)),
        ({"promptTokenCount": True, "candidatesTokenCount": 10**30}, (0, 0, 0)),
        ({"promptTokenCount": 7, "candidatesTokenCount": 2}, (7, 2, 0)),
        ({"promptTokenCount": 7, "thoughtsTokenCount": 40}, (7, 40, 0)),
        ({"promptTokenCount": 7, "candidatesTokenCount": 2, "cachedContentTokenCount": 9}, (7, 2, 7)),
        ({"promptTokenCount": 7, "totalTokenCount": 57}, (7, 50, 0)),
        ({"promptTokenCount": 7, "candidatesTokenCount": 2, "totalTokenCount": -57}, (7, 2, 0)),
    ],
)
def test_paid_tokens_are_counted_and_nonsense_is_none(usage: object, tokens: tuple[int, int, int]) -> None:
    reply = read_response(good(usageMetadata=usage), model="m")
    assert (reply.input_tokens, reply.output_tokens, reply.cached_tokens) == tokens

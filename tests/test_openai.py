"""The real client library against a loopback server: one request a call, every failure classed, nothing invented."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from google.auth.exceptions import RefreshError
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Scripted, http

from configs.errors import UserError
from data_gen.config import OpenAICompatible, Simulated
from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.openai import OpenAIChat, chat_body, read_completion
from data_gen.llm.server import SimulatedServer


def asking(text: str = "why?") -> ChatRequest:
    return ChatRequest(
        key=RequestKey("seed-1", 1, "answer"),
        model="some-model",
        messages=(Message("system", "be brief"), Message("user", text)),
        temperature=0.7,
        top_p=0.9,
        max_tokens=64,
        seed=12,
    )


GOOD: dict[str, Any] = {
    "model": "some-model-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "because"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


def error(message: str = "no", code: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}


def ask(
    answer: bytes | None,
    *,
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
) -> tuple[ChatReply | Exception, Scripted]:
    async def run() -> tuple[ChatReply | Exception, Scripted]:
        async with Scripted(answer) as server:
            config = OpenAICompatible(
                model="some-model",
                base_url=f"{server.base_url}/v1",
                api_key_env="NO_SUCH_KEY",
                timeout_seconds=5.0,
                token_limit=token_limit,
            )
            async with OpenAIChat(config) as chat:
                try:
                    return await chat.complete(asking()), server
                except (NotSent, Ambiguous, Permanent) as failure:
                    return failure, server

    return asyncio.run(run())


def test_the_request_says_what_it_should_and_the_reply_what_it_said() -> None:
    reply, server = ask(http(200, GOOD))
    assert reply == ChatReply(
        text="because", finish_reason="stop", model="some-model-2026", input_tokens=7, output_tokens=2
    )
    assert server.bodies == [chat_body(asking(), OpenAICompatible(model="some-model"))]
    assert server.bodies == [
        {
            "model": "some-model",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 64,
            "seed": 12,
        }
    ]


VLLM = "'max_tokens' is too large: 64. This model's maximum context length is {} tokens and your request has 4090."


@pytest.mark.parametrize(
    ("named", "other"), [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")]
)
def test_a_server_that_calls_the_limit_of_tokens_otherwise_is_told_so(
    named: Literal["max_tokens", "max_completion_tokens"], other: str
) -> None:
    _, server = ask(http(200, GOOD), token_limit=named)
    assert (server.bodies[0][named], other in server.bodies[0]) == (64, False)
    text = f"Unsupported parameter: '{named}' is not supported with this model. Use '{other}' instead."
    failure, _ = ask(http(400, error(text)), token_limit=named)
    assert getattr(failure, "scope", "") == "run"
    assert str(failure).endswith(f"set llm.token_limit={other}")


CLASSED: list[tuple[str, bytes | None, Callable[[Exception], bool]]] = [
    ("no quota", http(429, error(code="insufficient_quota")), lambda e: isinstance(e, Permanent) and e.scope == "run"),
    ("422", http(422, error()), lambda e: getattr(e, "scope", "") == "unclear"),
    ("filter", http(400, error(code="content_filter")), lambda e: getattr(e, "scope", "") == "request"),
    ("too long", http(400, error(code="context_length_exceeded")), lambda e: getattr(e, "scope", "") == "request"),
    ("vLLM", http(400, error(VLLM.format(4096))), lambda e: getattr(e, "scope", "") == "request"),
    ("vLLM's limit", http(400, error(VLLM.format(64))), lambda e: getattr(e, "scope", "") == "run"),
    ("parameter", http(400, error(code="unsupported_parameter")), lambda e: getattr(e, "scope", "") == "run"),
]


@pytest.mark.parametrize(("answer", "right"), [case[1:] for case in CLASSED], ids=[case[0] for case in CLASSED])
def test_each_failure_of_its_own_is_classed_and_cost_exactly_one_request(
    answer: bytes | None, right: Callable[[Exception], bool]
) -> None:
    failure, server = ask(answer)
    assert isinstance(failure, Exception)
    assert right(failure), repr(failure)
    assert len(server.heads) == 1


def good(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def choice(**changes: object) -> bytes:
    return good(choices=[{"message": {"content": "because"}, "finish_reason": "stop", **changes}])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"<html>It works</html>",
        b"\xff\xfe\x00",
        b'{"choices": [{"message"',
        b"[" * 200_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
        good(choices=None),
        good(choices=[]),
        good(choices={}),
        good(choices=[None]),
        choice(message=None),
        choice(message="because"),
        choice(message={}),
        choice(message={"content": None}),
        choice(message={"content": 7}),
        choice(message={"content": ["because"]}),
        choice(finish_reason=None),
        choice(finish_reason=7),
        choice(finish_reason=["stop"]),
        choice(finish_reason="tool_calls"),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_success_without_text_is_unreadable_and_never_an_exception(body: bytes) -> None:
    reply = read_completion(body, model="m")
    assert (reply.text, reply.finish_reason) == ("", "unreadable")
    assert reply.model in ("m", "some-model-2026")


def test_a_malformed_success_over_http_is_a_reply() -> None:
    reply, server = ask(http(200, b"<html>It works</html>", content_type="text/html"))
    assert reply == ChatReply(text="", finish_reason="unreadable", model="some-model")
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("body", "text", "finish_reason"),
    [
        (choice(finish_reason="length"), "because", "length"),
        (choice(finish_reason="length", message={"content": None}), "", "length"),
        (choice(finish_reason="content_filter"), "", "filtered"),
        (choice(finish_reason="content_filter", message=None), "", "filtered"),
        (choice(message={"content": None, "refusal": "I can not"}), "", "filtered"),
        (choice(finish_reason="eos"), "because", "stop"),
        (choice(message={"content": ""}), "", "stop"),
    ],
)
def test_how_a_reply_ended_is_kept(body: bytes, text: str, finish_reason: str) -> None:
    reply = read_completion(body, model="m")
    assert (reply.text, reply.finish_reason) == (text, finish_reason)
    assert (reply.input_tokens, reply.output_tokens) == (7, 2)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (0, 0)),
        ([], (0, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": -5}, (0, 0)),
        ({"prompt_tokens": "7", "completion_tokens": 2.5}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": 10**30}, (0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": 2}, (7, 2)),
        # Reasoning inside completion_tokens (OpenAI), and beside it.
        ({"prompt_tokens": 7, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 40}}, (7, 50)),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 10,
                "total_tokens": 57,
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            (7, 50),
        ),
    ],
)
def test_paid_tokens_are_counted_and_nonsense_is_none(usage: object, tokens: tuple[int, int]) -> None:
    reply = read_completion(good(usage=usage), model="m")
    assert (reply.input_tokens, reply.output_tokens) == tokens


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        ({"cached_tokens": 5}, 5),
        ({"cached_tokens": 8}, 7),  # more than there were
        ({"cached_tokens": -5}, 0),
        ({"cached_tokens": "5"}, 0),
        ({}, 0),
        ([5], 0),
        (None, 0),
    ],
)
def test_tokens_from_the_cache_are_part_of_the_input(details: object, cached: int) -> None:
    reply = read_completion(good(usage={**GOOD["usage"], "prompt_tokens_details": details}), model="m")
    assert (reply.input_tokens, reply.cached_tokens) == (7, cached)


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1),
    st.floats(0, 2),
    st.sampled_from(["max_tokens", "max_completion_tokens"]),
)
@settings(max_examples=25)
def test_a_line_of_a_batch_file_says_what_is_said_online(
    turns: list[tuple[Any, str]], temperature: float, token_limit: Any
) -> None:
    async def run() -> None:
        async with Scripted(http(200, GOOD)) as server:
            config = OpenAICompatible(
                model="m", base_url=server.base_url, api_key_env="NO_SUCH_KEY", token_limit=token_limit
            )
            messages = tuple(Message(role, text) for role, text in turns)
            request = replace(asking(), messages=messages, temperature=temperature)
            async with OpenAIChat(config) as chat:
                await chat.complete(request)
        assert server.bodies == [json.loads(json.dumps(chat_body(request, config)))]

    asyncio.run(run())


def over_google(base_url: str, token: Callable[[], Awaitable[str]] | None = None) -> OpenAIChat:
    return OpenAIChat(OpenAICompatible(model="google/m", base_url=base_url, credentials="google"), token=token)


def test_google_credentials_give_each_request_the_token_of_the_moment_and_no_message_shows_it() -> None:
    tokens = iter(["TOKEN-1", "TOKEN-2"])

    async def token() -> str:
        return next(tokens)

    async def run() -> list[str]:
        async with (
            Scripted(http(401, error("bad TOKEN-1 or TOKEN-2"))) as server,
            over_google(server.base_url, token) as chat,
        ):
            for shown in (r"bad \*\*\* or TOKEN-2", r"bad TOKEN-1 or \*\*\*"):
                with pytest.raises(Permanent, match=shown):
                    await chat.complete(asking())
            return server.heads

    first, second = asyncio.run(run())
    assert "Bearer TOKEN-1" in first
    assert "Bearer TOKEN-2" in second


@pytest.mark.parametrize(("retryable", "kind"), [(True, NotSent), (False, Permanent)])
def test_without_a_token_nothing_is_sent(retryable: bool, kind: type[Exception]) -> None:
    async def token() -> str:
        raise RefreshError("invalid_grant", retryable=retryable)

    async def run() -> int:
        async with Scripted(http(200, GOOD)) as server, over_google(server.base_url, token) as chat:
            with pytest.raises(kind, match="no Google access token: invalid_grant"):
                await chat.complete(asking())
            return len(server.heads)

    assert asyncio.run(run()) == 0


def test_a_server_on_this_machine_gets_no_google_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    monkeypatch.setenv("OPENAI_API_KEY", "CANARY-19c")

    async def run() -> str:
        async with Scripted(http(200, GOOD)) as server, over_google(server.base_url) as chat:
            await chat.complete(asking())
            return server.heads[0]

    head = asyncio.run(run())
    assert "Bearer unused" in head
    assert "CANARY" not in head


def test_google_credentials_that_are_missing_or_would_travel_in_the_clear_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    with pytest.raises(UserError, match="gcloud auth application-default login"):
        over_google("https://aiplatform.googleapis.com/v1")
    with pytest.raises(UserError, match="https:// only"):
        over_google("http://llm.example/v1")


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIZARD_TEST_KEY", raising=False)
    config = OpenAICompatible(model="m", base_url="https://llm.example/v1", api_key_env="WIZARD_TEST_KEY")
    with pytest.raises(UserError, match="WIZARD_TEST_KEY is not set"):
        OpenAIChat(config)


@pytest.mark.parametrize("key", ["sk-\u043a\u043b\u044e\u0447", "sk-a\nsk-b", "sk-a\tb"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIZARD_TEST_KEY", key)
    config = OpenAICompatible(model="m", base_url="https://llm.example/v1", api_key_env="WIZARD_TEST_KEY")
    with pytest.raises(UserError, match="WIZARD_TEST_KEY holds") as refused:
        OpenAIChat(config)
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    "base_url", ["", "llm.example/v1", "ftp://llm.example", "http://", "http://[::1", "http://h:x"]
)
def test_an_address_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(UserError, match="base_url"):
        OpenAIChat(OpenAICompatible(model="m", base_url=base_url))


def test_the_key_goes_to_the_server_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_SUCH_KEY", "CANARY-19c")
    failure, server = ask(http(401, error("Incorrect API key provided: CANARY-19c")))
    assert "Bearer CANARY-19c" in server.heads[0]
    assert "CANARY" not in str(failure)
    assert "***" in str(failure)


def test_the_client_library_is_imported_only_by_those_who_use_it() -> None:
    program = "import sys, data_gen.llm.openai; sys.exit('openai' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_half_a_character_in_a_prompt_does_not_stop_the_run() -> None:
    async def run() -> ChatReply:
        async with SimulatedServer(Simulated()) as server:
            config = OpenAICompatible(model="m", base_url=server.base_url, api_key_env="NO_SUCH_KEY")
            async with OpenAIChat(config) as chat:
                return await chat.complete(asking("half of a pair: \ud83d"))

    assert asyncio.run(run()).finish_reason == "stop"

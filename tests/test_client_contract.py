"""What holds for every client of a hosted model: how each failure is classed, and what a wait for an answer may cost.

What only one provider says stands in that provider's own tests.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clients import EVERY, Open
from loopback import Scripted, http

from configs.errors import UserError
from data_gen.config import Gemini, OpenAIBatch, OpenAICompatible, Price, VertexBatch
from data_gen.llm.chat import Ambiguous, ChatError, ChatModel, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.gemini import GeminiChat
from data_gen.llm.openai import OpenAIChat
from data_gen.llm.stack import prepare

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
    "408": (http(408, ERROR), Ambiguous("")),
    "409": (http(409, ERROR), Ambiguous("")),
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


# --- the setting that a message names


def openai(**changes: Any) -> OpenAICompatible:
    settings = {"base_url": "https://llm.example/v1", "api_key_env": "NO_SUCH_KEY", "price": Price(input=0, output=0)}
    return OpenAICompatible(model="m", **{**settings, **changes})


def gemini(**changes: Any) -> Gemini:
    return Gemini(model="m", price=Price(input=0, output=0), **changes)


BUCKET = VertexBatch(bucket="gs://my-bucket")
MISTAKES = [
    (openai(), "judge.api_key_env"),
    (openai(base_url="llm.example"), "judge.base_url = "),
    (openai(base_url="http://llm.example", credentials="google"), "judge.base_url = "),
    (openai(batch=OpenAIBatch()), "judge.api_key_env"),
    (openai(batch=OpenAIBatch(), base_url="llm.example"), "judge.base_url = "),
    (openai(batch=OpenAIBatch(), credentials="google"), "judge = @Gemini with judge.batch = @VertexBatch, or judge.b"),
    (gemini(), "judge.project="),
    (gemini(platform="ai_studio", api_key_env="NO_SUCH_KEY"), "judge.api_key_env"),
    (gemini(base_url="llm.example"), "judge.base_url = "),
    (gemini(base_url="http://llm.example"), "judge.base_url = "),
    (gemini(project="../p"), "judge.project = "),
    (gemini(batch=BUCKET), "judge.project="),
    (gemini(batch=BUCKET, platform="ai_studio"), "judge.platform=vertex"),
    (gemini(batch=BUCKET, base_url="http://llm.example"), "judge.base_url = "),
    (gemini(batch=VertexBatch(bucket="my-bucket")), "judge.batch.bucket = "),
    (
        gemini(batch=replace(BUCKET, storage_base_url="http://llm.example"), base_url="http://127.0.0.1:9"),
        "judge.batch.storage_base_url = ",
    ),
]


@pytest.mark.parametrize(("provider", "told"), MISTAKES)
def test_what_is_wrong_with_a_judge_is_told_by_the_setting_where_it_stands(
    provider: OpenAICompatible | Gemini, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "user.json").write_text(json.dumps({**user, "quota_project_id": "q"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud, which would be asked for its project
    for variable in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError) as refused:
        prepare({"judge": provider})
    assert told in str(refused.value)
    assert "llm." not in str(refused.value).replace("llm.example", "")


def test_a_setting_that_the_server_does_not_take_is_named_where_it_stands() -> None:
    async def told(message: str, client: Callable[[str], AbstractAsyncContextManager[ChatModel]]) -> str:
        async with Scripted(http(400, {"error": {"message": message}})) as server, client(server.base_url) as chat:
            with pytest.raises(Permanent) as failure:
                await chat.complete(asking())
            return str(failure.value)

    def by_openai(address: str) -> OpenAIChat:
        return OpenAIChat(openai(base_url=address), setting="judge")

    def by_gemini(address: str) -> GeminiChat:
        return GeminiChat(gemini(base_url=address), setting="judge")

    limit = asyncio.run(told("'max_tokens' is not supported. Use 'max_completion_tokens' instead.", by_openai))
    assert limit.endswith("set judge.token_limit=max_completion_tokens")
    assert asyncio.run(told("Budget 0 is invalid.", by_gemini)).endswith("change judge.thinking_budget")

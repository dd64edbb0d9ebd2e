"""Gemini's wire format: what Google's own client reads from it, and what it is told that went wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from google import genai
from google.auth.credentials import Credentials
from google.genai import errors, types
from google.oauth2.credentials import Credentials as Token
from raw_http import exchange, post, served

from data_gen.config import Faults, Simulated
from data_gen.llm.chat import ChatRequest, Message, RequestKey
from data_gen.llm.server import SimulatedServer, gemini_wire
from data_gen.llm.server.service import Conduct
from data_gen.llm.simulated import NAME, SimulatedChatModel

# Of the client that Google's library makes of aiohttp, where no other is given to it.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

VERTEX = "/v1beta1/projects/p/locations/global/publishers/google/models/gemini-x:generateContent"
AI_STUDIO = "/v1beta/models/gemini-x:generateContent"
PATHS = (VERTEX, VERTEX.replace("v1beta1", "v1"), AI_STUDIO, AI_STUDIO.replace("v1beta", "v1"))


def client(server: SimulatedServer, platform: str) -> genai.Client:
    options = types.HttpOptions(base_url=server.address, retry_options=types.HttpRetryOptions(attempts=1))
    if platform == "ai_studio":
        return genai.Client(api_key="unused", http_options=options)
    token: Credentials = Token(token="unused")
    return genai.Client(vertexai=True, project="p", location="global", credentials=token, http_options=options)


def asked(text: str = "Why?", **settings: object) -> dict[str, object]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": settings}


def generate(
    prompts: list[str], *, platform: str = "vertex", calls: str = "async", faults: Faults | None = None, **settings: Any
) -> tuple[list[types.GenerateContentResponse | errors.APIError], SimulatedServer]:
    """What Google's client makes of the answers."""
    config = types.GenerateContentConfig(**settings)

    async def run() -> tuple[list[types.GenerateContentResponse | errors.APIError], SimulatedServer]:
        outcomes: list[types.GenerateContentResponse | errors.APIError] = []
        async with SimulatedServer(
            Simulated(faults=faults or Faults()), conduct=Conduct(latency_seconds=0.0)
        ) as server:
            google = client(server, platform)
            for prompt in prompts:
                given: dict[str, Any] = {"model": "gemini-x", "contents": prompt, "config": config}
                try:
                    if calls == "async":
                        outcomes.append(await google.aio.models.generate_content(**given))
                    else:
                        outcomes.append(await asyncio.to_thread(google.models.generate_content, **given))
                except errors.APIError as error:
                    outcomes.append(error)
            await google.aio.aclose()
            google.close()
            return outcomes, server

    return asyncio.run(run())


def said_in_process(prompt: str, *, system: str, seed: int) -> tuple[str, int, int]:
    request = ChatRequest(
        key=RequestKey("elsewhere", 3, "judge"),
        model="any",
        messages=(Message("system", system), Message("user", prompt)),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=seed,
    )
    reply = asyncio.run(SimulatedChatModel(Simulated()).complete(request))
    return reply.text, reply.input_tokens, reply.output_tokens


@pytest.mark.parametrize("calls", ["sync", "async"])
@pytest.mark.parametrize("platform", ["vertex", "ai_studio"])
def test_googles_client_reads_what_the_model_in_process_says(platform: str, calls: str) -> None:
    (answer,), server = generate(
        ["Write a poem."],
        platform=platform,
        calls=calls,
        system_instruction="be brief",
        seed=5,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=64,
    )
    text, tokens_in, tokens_out = said_in_process("Write a poem.", system="be brief", seed=5)
    assert isinstance(answer, types.GenerateContentResponse)
    assert answer.text == text
    assert answer.model_version == NAME
    assert answer.response_id
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    usage = answer.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count) == (tokens_in, tokens_out)
    assert usage.total_token_count == tokens_in + tokens_out
    assert usage.thoughts_token_count is None
    assert usage.traffic_type == (types.TrafficType.ON_DEMAND if platform == "vertex" else None)
    assert (server.requests, server.full_replies, server.limited) == (1, 1, 0)


@pytest.mark.parametrize("budget", [1, 200, -1])
def test_a_thinking_budget_is_thought_with_and_counted(budget: int) -> None:
    prompts = [f"Why {i}?" for i in range(20)]
    answers, _ = generate(prompts, thinking_config=types.ThinkingConfig(thinking_budget=budget))
    usages = [answer.usage_metadata for answer in answers if isinstance(answer, types.GenerateContentResponse)]
    assert len(usages) == 20
    for usage in usages:
        assert usage is not None
        assert usage.thoughts_token_count is not None
        assert 1 <= usage.thoughts_token_count <= (budget if budget > 0 else 1024)
        parts = (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count)
        assert usage.total_token_count == sum(part or 0 for part in parts)
    without, _ = generate(prompts[:1], thinking_config=types.ThinkingConfig(thinking_budget=0))
    assert isinstance(without[0], types.GenerateContentResponse)
    assert without[0].usage_metadata is not None
    assert without[0].usage_metadata.thoughts_token_count is None


def test_what_is_cut_off_withheld_or_empty_comes_in_each_of_geminis_ways() -> None:
    prompts = [f"Why {i}?" for i in range(200)]
    answers, server = generate(prompts, faults=Faults(truncated=0.2, filtered=0.5, empty=0.2))
    ways: Counter[str] = Counter()
    for answer in answers:
        assert isinstance(answer, types.GenerateContentResponse)
        if answer.prompt_feedback is not None:
            assert answer.candidates is None
            ways[f"blocked: {answer.prompt_feedback.block_reason}"] += 1
            continue
        assert answer.candidates is not None
        (candidate,) = answer.candidates
        assert candidate.finish_reason is not None
        has_text = candidate.content is not None and bool(candidate.content.parts)
        ways[f"{candidate.finish_reason.value}{'' if has_text else ' without text'}"] += 1
    assert server.full_replies == 200
    assert set(ways) == {
        "STOP",
        "STOP without text",
        "MAX_TOKENS",
        *(f"blocked: BlockedReason.{reason}" for reason in ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST")),
        *(f"{reason} without text" for reason in ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII")),
    }


@pytest.mark.parametrize("platform", ["vertex", "ai_studio"])
def test_googles_client_names_what_was_refused_and_asks_once(platform: str) -> None:
    prompts = [f"Why {i}?" for i in range(30)]
    limited, server = generate(prompts, platform=platform, faults=Faults(rate_limited=1.0))
    assert (server.requests, server.full_replies, server.limited) == (30, 0, 30)
    waits = set()
    for error in limited:
        assert isinstance(error, errors.ClientError)
        assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
        details = error.details["error"].get("details", [])
        waits.add((error.response.headers.get("retry-after"), *(detail["retryDelay"] for detail in details)))
    assert waits == {(None,), ("1", "1s") if platform == "ai_studio" else ("1",)}
    failed, server = generate(prompts, platform=platform, faults=Faults(server_error=1.0))
    assert server.requests == 30
    assert {(error.code, error.status) for error in failed if isinstance(error, errors.ServerError)} == {
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
    }


def test_malformed_bodies_are_answered_with_success_and_counted() -> None:
    raw = b"".join(post(asked(f"Why {i}?"), path=VERTEX) for i in range(100))
    answers, server = served(raw, faults=Faults(malformed=1.0))
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == 8
    assert server.full_replies == 100


def said(body: Any) -> tuple[str, str]:
    """(text, how it ended) of a response, in OpenAI's words."""
    (candidate,) = body.get("candidates", [{}])
    text = "".join(part["text"] for part in candidate.get("content", {}).get("parts", []))
    ends = {"STOP": "stop", "MAX_TOKENS": "length"}
    return text, ends.get(candidate.get("finishReason"), "content_filter")


def test_both_formats_say_the_same_of_the_same_request_and_so_does_a_batch() -> None:
    settings = {"seed": 9, "thinkingConfig": {"thinking_budget": 50}}
    texts = [f"Why {i}?" for i in range(40)]

    async def run() -> Counter[str]:
        ends: Counter[str] = Counter()
        async with SimulatedServer(Simulated(faults=Faults(truncated=0.3, filtered=0.3))) as server:
            for text in texts:
                in_openai = {"model": NAME, "messages": [{"role": "user", "content": text}], "seed": 9}
                raw = post(asked(text, **settings), path=VERTEX) + post(in_openai)
                (_, _, gemini), (_, _, openai) = await exchange(server, raw)
                batched = await gemini_wire.answer_one(asked(text, **settings), service=server.service, model="m")
                assert batched == (200, json.loads(gemini))
                (choice,) = json.loads(openai)["choices"]
                assert said(json.loads(gemini)) == (choice["message"]["content"], choice["finish_reason"])
                ends[choice["finish_reason"]] += 1
            refused, body = await gemini_wire.answer_one({}, service=server.service, model="m")
            assert refused == body["error"]["code"] == 400
        return ends

    assert set(asyncio.run(run())) == {"stop", "length", "content_filter"}


@pytest.mark.parametrize("path", PATHS)
def test_a_conversation_is_read_in_camel_and_in_snake_case(path: str) -> None:
    contents = [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {"role": "model", "parts": [{"text": "c"}]},
        {"parts": [{"text": "d"}]},
    ]
    system = {"parts": [{"text": "be brief"}]}
    camel = {"contents": contents, "systemInstruction": system, "generationConfig": {"maxOutputTokens": 5, "topP": 1}}
    snake = {"contents": contents, "system_instruction": system, "generation_config": {"max_output_tokens": 5}}
    answers, _ = served(post(camel, path=path) + post(snake, path=path))
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[0][2] == answers[1][2]
    messages = gemini_wire.read_request(camel, model="m").request.messages
    assert [(message.role, message.content) for message in messages] == [
        ("system", "be brief"),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", "d"),
    ]


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (post(asked(), path=VERTEX.replace(":generate", ":streamGenerate")), (404, "NOT_FOUND"), "there is no"),
        (f"GET {AI_STUDIO} HTTP/1.1\r\n\r\n".encode(), (405, "UNIMPLEMENTED"), "use POST"),
        (post(b"{", path=VERTEX), (400, "INVALID_ARGUMENT"), "no JSON"),
        (post([], path=VERTEX), (400, "INVALID_ARGUMENT"), "no JSON object"),
        (post({}, path=VERTEX), (400, "INVALID_ARGUMENT"), "contents"),
        (post(asked() | {"tools": []}, path=VERTEX), (400, "INVALID_ARGUMENT"), 'Unknown name "tools"'),
        (post(asked(stopSequences=["x"]), path=VERTEX), (400, "INVALID_ARGUMENT"), 'Unknown name "stopSequences"'),
        (post(asked() | {"generationConfig": 3}, path=VERTEX), (400, "INVALID_ARGUMENT"), "generationConfig"),
        (post(asked(temperature=2.5), path=VERTEX), (400, "INVALID_ARGUMENT"), "temperature"),
        (post(asked(topP=-1), path=VERTEX), (400, "INVALID_ARGUMENT"), "topP"),
        (post(asked(maxOutputTokens=0), path=VERTEX), (400, "INVALID_ARGUMENT"), "maxOutputTokens"),
        (post(asked(seed=2**31), path=VERTEX), (400, "INVALID_ARGUMENT"), "seed"),
        (post(asked(candidateCount=2), path=VERTEX), (400, "INVALID_ARGUMENT"), "candidateCount"),
        (post(asked(thinkingConfig={"thinkingBudget": -2}), path=VERTEX), (400, "INVALID_ARGUMENT"), "thinkingBudget"),
        (post({"contents": [{"role": "user", "parts": []}]}, path=VERTEX), (400, "INVALID_ARGUMENT"), "contents[0]"),
        (post({"contents": ["Why?"]}, path=VERTEX), (400, "INVALID_ARGUMENT"), "contents[0]"),
        (
            post({"contents": [{"role": "judge", "parts": [{"text": "?"}]}]}, path=VERTEX),
            (400, "INVALID_ARGUMENT"),
            "contents[0].role",
        ),
        (
            post({"contents": [{"parts": [{"inlineData": {}}]}]}, path=VERTEX),
            (400, "INVALID_ARGUMENT"),
            "nothing else is simulated",
        ),
    ],
)
def test_a_bad_request_gets_googles_error_object(raw: bytes, status: tuple[int, str], says: str) -> None:
    ((got, headers, body),), server = served(raw)
    problem = json.loads(body)["error"]
    assert (got, problem["status"]) == status
    assert problem["code"] == got
    assert says in problem["message"]
    assert headers["connection"] == "close"
    assert (server.requests, server.full_replies) == (0, 0)

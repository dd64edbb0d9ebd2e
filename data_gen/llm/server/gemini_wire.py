"""Gemini's `:generateContent`, both ways, as Vertex AI and as AI Studio speak it.

What the simulated model withholds comes back in one of the ways in which Gemini withholds it, drawn by content: the
prompt is blocked and there are no candidates, or a candidate ends for a reason and has no text.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.server.fields import number, read_json, whole
from data_gen.llm.server.http import Handler, HttpAnswer, HttpRequest, Refused, Route
from data_gen.llm.server.service import Failed, Service, content_digest

Platform = Literal["vertex", "ai_studio"]

_PATHS: tuple[tuple[str, Platform], ...] = (
    ("/v1beta1/projects/{project}/locations/{location}/publishers/google/models/{model}:generateContent", "vertex"),
    ("/v1/projects/{project}/locations/{location}/publishers/google/models/{model}:generateContent", "vertex"),
    ("/v1beta/models/{model}:generateContent", "ai_studio"),
    ("/v1/models/{model}:generateContent", "ai_studio"),
)
_FIELDS = ("contents", "systemInstruction", "generationConfig", "safetySettings", "labels")
_SETTINGS = ("temperature", "topP", "topK", "maxOutputTokens", "seed", "thinkingConfig", "candidateCount")
_THINKING = ("thinkingBudget", "includeThoughts")
_MOST_FREE_THOUGHTS = 1024
_STATUSES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}
_BLOCK_REASONS = ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST")
_WITHHOLDING_REASONS = ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII")
_MALFORMED = (
    b"<html><body><h1>It works!</h1></body></html>",
    b'{"candidates": null, "usageMetadata": null}',
    b'{"candidates": [{"content": {"parts": [{"text": 7}]}}], "usageMetadata": {"promptTokenCount": -1}}',
    b'{"candidates": [{"content": {"role": "model"}, "finishReason": "A_REASON_OF_TOMORROW"}]}',
    b'{"candidates": {"content": "The answer is"}}',
    b'{"candidates": [{"content": {"role": "model", "parts": [{"text": "The answer is',
    b"[]",
    b"",
)


@dataclass(frozen=True)
class Asked:
    request: ChatRequest
    thinking_budget: int
    """Tokens; 0 for none, -1 leaves it to the model."""


def routes(service: Service) -> tuple[Route, ...]:
    def answering(platform: Platform) -> Handler:
        async def generate_content(http: HttpRequest) -> HttpAnswer | None:
            asked = read_request(read_json(http.body), model=http.parameters["model"])
            served = await service.serve(asked.request)
            if isinstance(served, Failed):
                return _failure(served, service=service, platform=platform)
            body = json.dumps(generated(served.reply, asked=asked, platform=platform)).encode()
            return HttpAnswer(body=body, when_sent=service.count_full_reply)

        return generate_content

    return tuple(Route("POST", path, answering(platform), refusal=refusal) for path, platform in _PATHS)


async def answer_one(
    body: Any, *, service: Service, model: str, platform: Platform = "vertex"
) -> tuple[int, dict[str, Any]]:
    """(status, body) for one request of a batch: the reply that it would have online, without the faults of a wire."""
    try:
        asked = read_request(body, model=model)
    except Refused as refused:
        return refused.status, error_object(refused.status, refused.message)
    return 200, generated(await service.reply(asked.request), asked=asked, platform=platform)


def refusal(refused: Refused) -> HttpAnswer:
    body = error_object(refused.status, refused.message)
    return HttpAnswer(status=refused.status, body=json.dumps(body).encode())


def error_object(code: int, message: str, *, details: tuple[Mapping[str, str], ...] = ()) -> dict[str, Any]:
    """An error in the form of all of Google's APIs."""
    error = {"code": code, "message": message, "status": _STATUSES.get(code, "INVALID_ARGUMENT")}
    return {"error": {**error, "details": list(details)} if details else error}


def read_request(body: Any, *, model: str) -> Asked:
    """The request in a body that was read as JSON.

    Raises:
      Refused: it is none, or wants what is not simulated.
    """
    asked = _object(body, _FIELDS, where="the body")
    settings = _object(asked.get("generationConfig", {}), _SETTINGS, where="generationConfig")
    thinking = _object(settings.get("thinkingConfig", {}), _THINKING, where="thinkingConfig")
    if whole(settings, "candidateCount", default=1, least=1) != 1:
        raise Refused(400, "candidateCount must be 1")
    request = ChatRequest(
        key=RequestKey("", 0, "answer"),
        model=model,
        messages=_messages(asked),
        temperature=number(settings, "temperature", default=1.0, least=0.0, most=2.0),
        top_p=number(settings, "topP", default=1.0, least=0.0, most=1.0),
        max_tokens=whole(settings, "maxOutputTokens", default=2048, least=1, below=2**31),
        seed=whole(settings, "seed", default=0, least=-(2**31), below=2**31),
    )
    return Asked(request, whole(thinking, "thinkingBudget", default=0, least=-1, below=2**31))


def _object(value: object, names: tuple[str, ...], *, where: str) -> dict[str, Any]:
    """An object of the request, its names in camel case: Google takes them in snake case as well, and clients mix."""
    if not isinstance(value, dict):
        raise Refused(400, f"{where} is no JSON object")
    named = {_camel_case(name): inner for name, inner in value.items() if inner is not None}
    if strange := sorted(named.keys() - names):
        raise Refused(400, f'Unknown name "{strange[0]}" at {where}; simulated are {", ".join(names)}')
    return named


@functools.lru_cache(maxsize=256)
def _camel_case(name: str) -> str:
    return re.sub("_([a-z])", lambda letter: letter[1].upper(), name)


def _messages(asked: dict[str, Any]) -> tuple[Message, ...]:
    contents = asked.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Refused(400, "contents must be a list with at least one content")
    messages = []
    if "systemInstruction" in asked:
        messages.append(Message("system", _text(asked["systemInstruction"], where="systemInstruction")))
    for position, content in enumerate(contents):
        text = _text(content, where=f"contents[{position}]")
        role = content.get("role", "user")
        if role not in ("user", "model"):
            raise Refused(400, f"contents[{position}].role must be user or model")
        messages.append(Message("assistant" if role == "model" else "user", text))
    return tuple(messages)


def _text(content: object, *, where: str) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts:
        raise Refused(400, f"{where}.parts must be a list with at least one part")
    texts = [part.get("text") if isinstance(part, dict) and len(part) == 1 else None for part in parts]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) != len(parts):
        raise Refused(400, f"{where}.parts may hold text, and nothing else is simulated")
    return "".join(said)


def generated(reply: ChatReply, *, asked: Asked, platform: Platform) -> dict[str, Any]:
    """A reply as a GenerateContentResponse, for the wire and for a line of a batch's results."""
    digest, budget = content_digest(asked.request), asked.thinking_budget
    draws = random.Random(digest) if budget or reply.finish_reason == "filtered" else None
    thoughts = draws.randint(1, budget if budget > 0 else _MOST_FREE_THOUGHTS) if draws and budget else 0
    counts = {
        "promptTokenCount": reply.input_tokens,
        "candidatesTokenCount": reply.output_tokens,
        "thoughtsTokenCount": thoughts,
        "cachedContentTokenCount": reply.cached_tokens,
    }
    usage: dict[str, Any] = {name: count for name, count in counts.items() if count or name == "promptTokenCount"}
    usage["totalTokenCount"] = reply.input_tokens + reply.output_tokens + thoughts
    if platform == "vertex":
        usage["trafficType"] = "ON_DEMAND"
    said: dict[str, Any] = {"role": "model", "parts": [{"text": reply.text}]} if reply.text else {"role": "model"}
    answer: dict[str, Any] = {
        "candidates": [
            {"content": said, "finishReason": "MAX_TOKENS" if reply.finish_reason == "length" else "STOP", "index": 0}
        ],
        "usageMetadata": usage,
        "modelVersion": reply.model,
        "responseId": digest.hex()[:22],
    }
    if draws and reply.finish_reason == "filtered":
        if draws.random() < 0.5:
            del answer["candidates"]
            answer["promptFeedback"] = {"blockReason": draws.choice(_BLOCK_REASONS)}
        else:
            answer["candidates"] = [{"finishReason": draws.choice(_WITHHOLDING_REASONS), "index": 0}]
    return answer


def _failure(failed: Failed, *, service: Service, platform: Platform) -> HttpAnswer | None:
    if failed.fault == "malformed":
        return HttpAnswer(body=failed.draws.choice(_MALFORMED), when_sent=service.count_full_reply)
    if failed.fault == "dropped":
        return None
    if failed.fault == "server_error":
        code = failed.draws.choice((500, 503))
        return refusal(Refused(code, "The simulated server failed on purpose."))
    headers = {} if failed.retry_after is None else {"retry-after": failed.retry_after}
    retry_info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{failed.retry_after}s"}
    says_when = platform == "ai_studio" and re.fullmatch(r"[\d.]+", failed.retry_after or "")
    body = error_object(429, "Resource exhausted.", details=(retry_info,) if says_when else ())
    return HttpAnswer(status=429, body=json.dumps(body).encode(), headers=headers)

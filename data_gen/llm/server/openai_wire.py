"""OpenAI's chat completions, both ways: a body becomes a `ChatRequest`, and a reply or a fault a body."""

from __future__ import annotations

import json
import time
from typing import Any

from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.server.fields import number, read_json, whole
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Refused, Route
from data_gen.llm.server.service import Failed, Service
from data_gen.llm.simulated import NAME

_MALFORMED = (
    b"<html><body><h1>It works!</h1></body></html>",
    b'{"id": "chatcmpl-0", "object": "chat.completion", "choices": null}',
    b'{"choices": [{"index": 0, "message": {"role": "assistant"}, "finish_reason": "stop"}]}',
    b'{"choices": [{"message": {"content": 7}, "finish_reason": ["stop"]}], "usage": {"prompt_tokens": -1}}',
    b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "The answer is',
    b"",
)
_MODEL_LIST = json.dumps(
    {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "simulation"}]}
).encode()


def routes(service: Service) -> tuple[Route, ...]:
    async def models(_: HttpRequest) -> HttpAnswer:
        return HttpAnswer(body=_MODEL_LIST)

    async def chat_completions(http: HttpRequest) -> HttpAnswer | None:
        served = await service.serve(read_request(read_json(http.body)))
        if isinstance(served, Failed):
            return _failure(served, service=service)
        body = json.dumps(completion(served.reply, number=served.arrival)).encode()
        return HttpAnswer(body=body, when_sent=service.count_full_reply)

    return (
        Route("GET", "/v1/models", models, refusal=refusal),
        Route("POST", "/v1/chat/completions", chat_completions, refusal=refusal),
    )


async def answer_one(asked: Any, *, service: Service, number: int) -> tuple[int, dict[str, Any]]:
    """(status, body) for one request of a batch: the reply that it would have online, without the faults of a wire."""
    try:
        reply = await service.reply(read_request(asked))
    except Refused as refused:
        return refused.status, error_object(refused.message, param=refused.param)
    return 200, completion(reply, number=number)


def refusal(refused: Refused) -> HttpAnswer:
    return HttpAnswer(
        status=refused.status, body=json.dumps(error_object(refused.message, param=refused.param)).encode()
    )


def error_object(message: str, *, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def read_request(asked: Any) -> ChatRequest:
    """The request in a body that was read as JSON.

    Raises:
      Refused: it is none, or wants what is not simulated.
    """
    if not isinstance(asked, dict):
        raise Refused(400, "the body is no JSON object")
    for name in ("stream", "tools", "functions"):
        if asked.get(name):
            raise Refused(400, f"{name} is not supported", param=name)
    if asked.get("n", 1) != 1:
        raise Refused(400, "n must be 1", param="n")
    if not isinstance(asked.get("model"), str):
        raise Refused(400, "model must be a string", param="model")
    most = asked.get("max_completion_tokens", asked.get("max_tokens"))
    return ChatRequest(
        key=RequestKey("", 0, "answer"),
        model=asked["model"],
        messages=_messages(asked.get("messages")),
        temperature=number(asked, "temperature", default=1.0, least=0.0, most=2.0),
        top_p=number(asked, "top_p", default=1.0, least=0.0, most=1.0),
        max_tokens=whole({"max_tokens": most}, "max_tokens", default=2048, least=1),
        seed=whole(asked, "seed", default=0, least=-(2**63)),
    )


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Refused(400, "messages must be a list with at least one message", param="messages")
    messages = []
    for position, message in enumerate(value):
        match message:
            case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
                messages.append(Message(role, content))
            case _:
                raise Refused(400, f"messages[{position}] needs a role and a content string", param="messages")
    return tuple(messages)


def completion(reply: ChatReply, *, number: int) -> dict[str, Any]:
    """A reply as a chat completion, for the wire and for a line of a batch's results; `number` goes into its id."""
    finish_reason = "content_filter" if reply.finish_reason == "filtered" else reply.finish_reason
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": finish_reason}
        ],
        "usage": {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        },
    }


def _failure(failed: Failed, *, service: Service) -> HttpAnswer | None:
    if failed.fault == "malformed":
        return HttpAnswer(body=failed.draws.choice(_MALFORMED), when_sent=service.count_full_reply)
    if failed.fault == "rate_limited":
        headers = {} if failed.retry_after is None else {"retry-after": failed.retry_after}
        body = json.dumps(error_object("too many requests", kind="rate_limit_error")).encode()
        return HttpAnswer(status=429, body=body, headers=headers)
    if failed.fault == "server_error":
        body = json.dumps(error_object("the simulated server failed on purpose")).encode()
        return HttpAnswer(status=failed.draws.choice((500, 503)), body=body)
    return None

"""Gemini, on Vertex AI or AI Studio, through the `google-genai` client library.

Its retries, redirects and continuations are off: one call here is one HTTP request. The library is given an HTTP
client of ours, which it then uses alone (its other one, aiohttp, sends a request again after a dropped connection),
and is asked for the response as it came: it parses bodies strictly, and a reply that it can not parse is paid for too.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

from configs.errors import UserError
from data_gen.config import Gemini
from data_gen.llm.chat import Ambiguous, ChatError, ChatReply, ChatRequest, FinishReason, Permanent
from data_gen.llm.google_token import application_default, refused
from data_gen.llm.wire import (
    is_here,
    key_from_environment,
    readable,
    refusal,
    retry_after,
    token_count,
    unanswered,
    well_formed,
    without,
)

FINISH_REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",  # cut off, with an offer to go on that would be one more request
    "SAFETY": "filtered",
    "RECITATION": "filtered",
    "BLOCKLIST": "filtered",
    "PROHIBITED_CONTENT": "filtered",
    "SPII": "filtered",
    "LANGUAGE": "filtered",  # a language that the model does not serve: asking again changes nothing
    "MODEL_ARMOR": "filtered",
    "IMAGE_SAFETY": "filtered",
    "IMAGE_PROHIBITED_CONTENT": "filtered",
    "IMAGE_RECITATION": "filtered",
    "ESCALATION": "filtered",
    "PUP_LIMITED_DISABLED": "filtered",
    # Neither an end nor a refusal: what text there is can not be trusted to be whole.
    "FINISH_REASON_UNSPECIFIED": "unreadable",
    "OTHER": "unreadable",
    "MALFORMED_FUNCTION_CALL": "unreadable",
    "MALFORMED_RESPONSE": "unreadable",
    "MISSING_THOUGHT_SIGNATURE": "unreadable",
    "UNEXPECTED_TOOL_CALL": "unreadable",
    "TOO_MANY_TOOL_CALLS": "unreadable",
    "NO_IMAGE": "unreadable",
    "IMAGE_OTHER": "unreadable",
}
"""How a reply ended, by the name that the API gives it; a name that is not here is "unreadable"."""

NOT_BLOCKED = ("", "BLOCKED_REASON_UNSPECIFIED")
"""Values of promptFeedback.blockReason that say nothing; under any other the prompt was withheld: "filtered"."""

_WRONG_FOR_EVERY_REQUEST = ("API_KEY_INVALID", "API_KEY_EXPIRED", "FAILED_PRECONDITION", "SERVICE_DISABLED")
TOO_LONG = re.compile(r"token count.{0,80}exceeds|exceeds the maximum number of tokens|too many (input )?tokens", re.I)
_BAD_SETTING = {
    "{setting}.thinking_budget": re.compile(r"thinking|budget \d+ is invalid", re.I),
    "the setting": re.compile(r"supported range", re.I),
}
_NAMES = {
    "model": re.compile(r"[\w.@-]+(/[\w.@-]+)*"),
    "location": re.compile(r"[a-z0-9-]+"),
    "project": re.compile(r"[a-z0-9.:-]*"),
}

_heard: ContextVar[list[Any]] = ContextVar("_heard")
"""The HTTP responses of the call under way in this task."""


def generate_body(request: ChatRequest, config: Gemini) -> dict[str, Any]:
    """The JSON that asks for a reply, the same online and in a line of a batch file."""
    system = [{"text": well_formed(m.content)} for m in request.messages if m.role == "system"]
    generation: dict[str, Any] = {
        "temperature": request.temperature,
        "topP": request.top_p,
        "maxOutputTokens": request.max_tokens,
        "seed": request.seed,
    }
    if config.thinking_budget is not None:
        generation["thinkingConfig"] = {"thinkingBudget": config.thinking_budget}
    return {
        "contents": [
            {"role": "model" if m.role == "assistant" else "user", "parts": [{"text": well_formed(m.content)}]}
            for m in request.messages
            if m.role != "system"
        ],
        **({"systemInstruction": {"parts": system}} if system else {}),
        "generationConfig": generation,
    }


@dataclass(frozen=True)
class _Access:
    """Arguments of the library's client that say who asks, and the key among them that no message may show."""

    arguments: Mapping[str, Any]
    key: str = ""


class GeminiChat:
    """A `ChatModel` over HTTP. Leave its `async with` in the event loop that used it.

    A server on this machine (`base_url`) is shown neither credentials nor key. `setting` is where in the config the
    provider stands.

    Raises:
      UserError: no credentials, project or key, an address that is none or not https, or a name that is none.
    """

    def __init__(self, config: Gemini, *, setting: str = "llm") -> None:
        loopback = is_here(config.base_url, setting=f"{setting}.base_url")
        for name, pattern in _NAMES.items():
            if not pattern.fullmatch(getattr(config, name)) or ".." in getattr(config, name):
                raise UserError(f"{setting}.{name} = {getattr(config, name)!r}: that is no name of a {name}")
        access = _access(config, loopback=loopback, setting=setting)
        from google import genai  # takes seconds, so only those who talk to it pay for it
        from google.auth.exceptions import GoogleAuthError
        from google.genai import errors, types

        httpx = _http_library()
        self._config = config
        self._setting = setting
        self._where = config.base_url or {"vertex": "Vertex AI", "ai_studio": "AI Studio"}[config.platform]
        self._access = access
        self._types = types
        self._no_token = GoogleAuthError
        # The library's own errors, and those of parsing an error's body, when a response was heard all the same.
        self._failures = (httpx.HTTPError, errors.APIError, ValueError, RecursionError)
        self._http = httpx.AsyncClient(
            event_hooks={"response": [_hear]},
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not loopback,  # a proxy from the environment can not reach a server on this machine
        )
        self._client = genai.Client(
            **access.arguments,
            http_options=types.HttpOptions(
                base_url=config.base_url or None,
                timeout=max(1, round(config.timeout_seconds * 1000)),
                retry_options=types.HttpRetryOptions(attempts=1),
                httpx_async_client=self._http,
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        self._client.close()
        await self._http.aclose()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """One HTTP request.

        Raises:
          NotSent: no connection, no token just now, 429, 503 or 529; after the longer of Retry-After and retryDelay.
          Ambiguous: a time-out, a dropped connection, 408, 409, 499, any other 5xx.
          Permanent: for this request, 413 and a 400 for its length; for the run, 401, 403, 404, no token, a bad key or
            setting, a project or place that is not served; unclear, any other 400 and 422.
        """
        body = generate_body(request, self._config)
        heard: list[Any] = []
        _heard.set(heard)
        try:
            async with asyncio.timeout(self._config.timeout_seconds):  # the client's own limit starts anew at each read
                await self._client.aio.models.generate_content(
                    model=request.model,
                    contents=body["contents"],
                    config=self._types.GenerateContentConfig(
                        should_return_http_response=True,
                        http_options=self._types.HttpOptions(extra_body=body),  # goes over the library's own
                    ),
                )
        except TimeoutError as error:
            raise Ambiguous(f"no answer within {self._config.timeout_seconds:g} s") from error
        except self._no_token as error:
            raise refused(error, secrets=self._secrets) from None
        except self._failures as error:
            if not heard and isinstance(error, ValueError | RecursionError):
                raise
            failure = self._failure(error, heard)
            if failure is not None:
                raise failure from None  # what the library says may hold the key
        return read_response(without(_content(heard[-1]), secrets=self._secrets), model=request.model)

    def _failure(self, error: Exception, heard: list[Any]) -> ChatError | None:
        """What went wrong; None for a success whose body the library could not make out."""
        kind = type(error).__name__
        if not heard or kind in ("RemoteProtocolError", "ReadError", "ReadTimeout"):
            message = self._readable(f"{self._where}: {kind}: {error}")
            return unanswered(kind, message)
        response = heard[-1]
        return None if response.is_success else self._status_error(response)

    def _status_error(self, response: Any) -> ChatError:
        status = response.status_code
        told = _read_error(_content(response))
        message = self._readable(f"{self._where} answered {status} {told.message}")
        if status == 400:
            if TOO_LONG.search(told.message):
                return Permanent(message, scope="request")
            for setting, complaint in _BAD_SETTING.items():
                if complaint.search(told.message):
                    return Permanent(f"{message}; change {setting.format(setting=self._setting)}", scope="run")
            if any(name in _WRONG_FOR_EVERY_REQUEST for name in told.names):
                return Permanent(message, scope="run")
        waits = [retry_after(response.headers.get("retry-after"), now=time.time()), told.retry_delay]
        wait = max((seconds for seconds in waits if seconds is not None), default=None)
        return refusal(status, message, retry_after=wait)

    def _readable(self, message: str) -> str:
        return readable(message, secrets=self._secrets)

    @property
    def _secrets(self) -> list[str]:
        """The key, or the token of the moment."""
        return [self._access.key, getattr(self._access.arguments.get("credentials"), "token", None) or ""]


async def _hear(response: Any) -> None:
    _heard.get().append(response)


def _http_library() -> Any:
    """What `google-genai` speaks HTTP with: httpx, and httpx2 where only that is installed."""
    try:
        return importlib.import_module("httpx")
    except ModuleNotFoundError:
        return importlib.import_module("httpx2")


def _content(response: Any) -> bytes:
    """The body; empty if its encoding was not what its header says."""
    try:
        return bytes(response.content)
    except RuntimeError:  # it was never decoded
        return b""


# --- who asks


def _access(config: Gemini, *, loopback: bool, setting: str) -> _Access:
    if config.platform == "ai_studio":
        name = f"{setting}.api_key_env"
        key = "unused" if loopback else key_from_environment(config.api_key_env, where="AI Studio", setting=name)
        return _Access({"vertexai": False, "api_key": key}, key=key)
    place = {"vertexai": True, "location": config.location}
    if loopback:
        from google.oauth2.credentials import Credentials

        nobody = Credentials(token="unused")  # type: ignore[no-untyped-call]
        return _Access({**place, "project": config.project or "unused", "credentials": nobody})
    found = application_default()
    project = config.project or found.project
    if not project:
        raise UserError(f"the Google credentials name no project; write {setting}.project=...")
    return _Access({**place, "project": project, "credentials": found.credentials})


# --- what comes back


def read_response(body: bytes, *, model: str) -> ChatReply:
    """The reply in the body of a success; one that holds no text is paid for too, and comes back "unreadable".

    Thoughts are no text, and are billed as output.
    """
    response = _object(_parsed(body))
    text, finish_reason = _first_candidate(response)
    usage = _object(response.get("usageMetadata"))
    paid_in = token_count(usage.get("promptTokenCount"))
    told = token_count(usage.get("candidatesTokenCount")) + token_count(usage.get("thoughtsTokenCount"))
    tools = token_count(usage.get("toolUsePromptTokenCount"))
    by_difference = token_count(usage.get("totalTokenCount")) - paid_in - tools
    reported = response.get("modelVersion")
    return ChatReply(
        text=text,
        finish_reason=finish_reason,
        model=well_formed(reported) if isinstance(reported, str) and reported else model,
        input_tokens=paid_in,
        output_tokens=max(told, by_difference),
        cached_tokens=min(token_count(usage.get("cachedContentTokenCount")), paid_in),
    )


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_candidate(response: Mapping[str, Any]) -> tuple[str, FinishReason]:
    blocked = _object(response.get("promptFeedback")).get("blockReason")
    if isinstance(blocked, str) and blocked not in NOT_BLOCKED:
        return "", "filtered"
    match response.get("candidates"):
        case [{"finishReason": str(name), **candidate}, *_] if name in FINISH_REASONS:
            finish_reason = FINISH_REASONS[name]
        case _:
            return "", "unreadable"
    if finish_reason in ("filtered", "unreadable"):
        return "", finish_reason
    match candidate.get("content"):
        case {"parts": [*parts]} if (text := _text(parts)) is not None:
            return text, finish_reason
        case dict(content) if "parts" not in content:
            return "", finish_reason  # an empty list is left out of the JSON
        case None if finish_reason == "length":
            return "", "length"  # all tokens went into thoughts
        case _:
            return "", "unreadable"


def _text(parts: list[object]) -> str | None:
    """The text of all parts but thoughts; None if a part is of another kind."""
    texts = []
    for part in parts:
        match part:
            case {"thought": True}:
                continue
            case {"text": str(text)}:
                texts.append(text)
            case _:
                return None
    return "".join(texts)


@dataclass(frozen=True)
class _Told:
    """What an error's body says: its message, its status and reasons, and how long to wait."""

    message: str
    names: tuple[object, ...] = ()
    retry_delay: float | None = None


def _read_error(body: bytes) -> _Told:
    """A google.rpc.Status in an error's body, as far as there is one."""
    parsed = _parsed(body)
    if isinstance(parsed, list) and len(parsed) == 1:
        parsed = parsed[0]
    error = _object(_object(parsed).get("error"))
    message = error.get("message")
    listed = error.get("details")
    details = [_object(detail) for detail in listed] if isinstance(listed, list) else []
    delays = (detail.get("retryDelay") for detail in details)
    delay = next((delay for delay in delays if isinstance(delay, str) and delay.endswith("s")), None)
    return _Told(
        message=message if isinstance(message, str) else body[:1000].decode("utf-8", "replace"),
        names=(error.get("status"), *(detail.get("reason") for detail in details)),
        retry_delay=retry_after(delay.removesuffix("s") if delay else None, now=0.0),
    )

"""Any server that speaks the OpenAI chat-completions protocol, through the `openai` client library.

Its own retries and redirects are off: one call here is one HTTP request, and `pacing.py` sees every failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from configs.errors import UserError
from data_gen.config import OpenAICompatible
from data_gen.llm.chat import Ambiguous, ChatError, ChatReply, ChatRequest, FinishReason, NotSent, Permanent
from data_gen.llm.google_token import GoogleToken, application_default, refused
from data_gen.llm.wire import (
    is_loopback,
    key_from_environment,
    readable,
    refusal,
    retry_after,
    token_count,
    unanswered,
    well_formed,
    without,
)

if TYPE_CHECKING:
    import openai

_FINISH_REASONS: Mapping[object, FinishReason] = {
    "stop": "stop",
    "eos": "stop",  # some open servers name the end of the text
    "length": "length",
    "content_filter": "filtered",
}
_WRONG_FOR_EVERY_REQUEST = (
    "insufficient_quota",  # a 429 that no waiting mends
    "invalid_api_key",
    "model_not_found",
    "unsupported_parameter",
    "unsupported_value",
)
_WRONG_FOR_THIS_REQUEST = (
    "content_filter",  # Azure
    "content_policy_violation",
    "invalid_prompt",  # OpenAI: the prompt was flagged
    "context_length_exceeded",
    "exceed_context_size_error",  # llama.cpp, as the type
)

_CONNECTIONS = 8  # of one client


def chat_body(request: ChatRequest, config: OpenAICompatible) -> dict[str, Any]:
    """The JSON that asks for a reply, the same online and in a line of a batch file."""
    return {
        "model": request.model,
        "messages": [{"role": m.role, "content": well_formed(m.content)} for m in request.messages],
        "temperature": request.temperature,
        "top_p": request.top_p,
        config.token_limit: request.max_tokens,
        "seed": request.seed,
    }


def http_library() -> Any:
    """What the `openai` library speaks HTTP with: httpx, or httpx2."""
    import openai  # takes seconds, so only those who talk to a server pay for it

    return importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])


def key_for(config: OpenAICompatible, *, loopback: bool, setting: str) -> str:
    """The key that the server is shown; "" if it is on this machine, and there is none. Raises `UserError`."""
    if loopback and not os.environ.get(config.api_key_env, "").strip():
        return ""
    return key_from_environment(config.api_key_env, where=config.base_url, setting=f"{setting}.api_key_env")


class OpenAIChat:
    """A `ChatModel` over HTTP. Leave its `async with` in the event loop that used it.

    A server on this machine is never shown anyone's Google token, and needs no key. `token` stands in for the
    token of the application-default credentials. `setting` is where in the config the provider stands.

    Raises:
      UserError: the address is not one, the key's environment variable is not set or holds no key, or there are no
        Google credentials.
    """

    def __init__(
        self, config: OpenAICompatible, *, token: Callable[[], Awaitable[str]] | None = None, setting: str = "llm"
    ) -> None:
        loopback = is_loopback(config.base_url, setting=f"{setting}.base_url")
        self._config = config
        self._setting = setting
        self._secret = ""
        api_key = token or self._api_key(loopback=loopback)
        import openai
        from google.auth.exceptions import GoogleAuthError

        self._openai = openai
        self._no_token = GoogleAuthError

        library = http_library()
        self._raw = library.Response
        certificates = library.create_ssl_context(trust_env=not loopback)  # 50 ms, so all clients share it

        def client() -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(
                api_key=self._remembering(api_key) if callable(api_key) else api_key,
                base_url=config.base_url,
                max_retries=0,
                timeout=config.timeout_seconds,
                # A proxy from the environment can not reach a server on this machine.
                http_client=openai.DefaultAsyncHttpxClient(
                    follow_redirects=False, trust_env=not loopback, verify=certificates
                ),
            )

        self._new_client = client
        self._clients = [client()]
        self._busy = [0]  # requests under way, by client

    def _api_key(self, *, loopback: bool) -> str | Callable[[], Awaitable[str]]:
        config = self._config
        if config.credentials == "google":
            if loopback:
                return "unused"
            if not config.base_url.startswith("https://"):
                where = f"{self._setting}.base_url = {config.base_url!r}"
                raise UserError(f"{where}: Google credentials travel over https:// only")
            return GoogleToken(application_default().credentials)
        self._secret = key_for(config, loopback=loopback, setting=self._setting)
        return self._secret or "unused"

    def _remembering(self, token: Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
        """`token`, kept so that no message shows it."""

        async def fetch() -> str:
            self._secret = await token()
            return self._secret

        return fetch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        for client in self._clients:
            await client.close()

    @contextlib.contextmanager
    def _client(self) -> Iterator[openai.AsyncOpenAI]:
        """The first client that has not its fill of requests under way; another one where all have.

        The library looks at every idle connection of a client before each request (58 looks, and a third of all CPU,
        with 64 places on a fast server), so a client gets few.
        """
        index = next((index for index, busy in enumerate(self._busy) if busy < _CONNECTIONS), len(self._busy))
        if index == len(self._busy):
            self._clients.append(self._new_client())
            self._busy.append(0)
        self._busy[index] += 1
        try:
            yield self._clients[index]
        finally:
            self._busy[index] -= 1

    async def complete(self, request: ChatRequest) -> ChatReply:
        """One HTTP request.

        Raises:
          NotSent: no connection, no token just now, 429, 503 or 529.
          Ambiguous: a time-out, a dropped connection, 408, 409, 499, any other 5xx.
          Permanent: for this request, a 400 that names its content or length, and 413; for the run, 401, 403, 404,
            no token, no quota, a parameter that the model does not take; unclear, any other 400 and 422.
        """
        try:
            async with asyncio.timeout(self._config.timeout_seconds):  # the client's own limit starts anew at each read
                body = chat_body(request, self._config)
                with self._client() as client:
                    # Not by `chat.completions`: the way through the library's types is a tenth of a request's CPU.
                    response = await client.post("/chat/completions", cast_to=self._raw, body=body)
        except TimeoutError as error:
            raise Ambiguous(f"no answer within {self._config.timeout_seconds:g} s") from error
        except self._openai.APIStatusError as error:
            raise self._status_error(error, request) from None  # what the library says may hold the key
        except self._openai.APIConnectionError as error:
            raise self._connection_error(error) from None
        except self._no_token as error:
            raise refused(error, secrets=[self._secret]) from None
        return read_completion(without(response.content, secrets=[self._secret]), model=request.model)

    def _connection_error(self, error: openai.APIConnectionError) -> ChatError:
        cause = type(error.__cause__).__name__  # by name: the library's HTTP client is httpx or httpx2
        message = self._readable(f"{self._config.base_url}: {cause}: {error.__cause__}")
        return unanswered(cause, message)

    def _status_error(self, error: openai.APIStatusError, request: ChatRequest) -> ChatError:
        status = error.status_code
        message = self._readable(f"{self._config.base_url} answered {status}: {error.message}")
        other = "max_completion_tokens" if self._config.token_limit == "max_tokens" else "max_tokens"
        if status in (400, 422) and re.search(rf"\buse\W+{other}\b", error.message, re.IGNORECASE):
            return Permanent(f"{message}; set {self._setting}.token_limit={other}", scope="run")
        wait = retry_after(error.response.headers.get("retry-after"), now=time.time())
        told = {"code": error.code, "type": error.type, "message": error.message}
        return classed(status, message, told, max_tokens=request.max_tokens, wait=wait)

    def _readable(self, message: str) -> str:
        return readable(message, secrets=[self._secret])


def classed(
    status: int, message: str, told: Mapping[str, Any], *, max_tokens: int = 0, wait: float | None = None
) -> NotSent | Ambiguous | Permanent:
    """What an error in OpenAI's format means. A proxy, or a setting that the server does not take, says 400 as well."""
    names = (told.get("code"), told.get("type"))
    if names[0] in _WRONG_FOR_EVERY_REQUEST:
        return Permanent(message, scope="run")
    failure = refusal(status, message, retry_after=wait)
    if isinstance(failure, Permanent) and failure.scope == "unclear":
        context = re.search(r"maximum context length is (\d+)", str(told.get("message")))  # vLLM gives it no code
        if context and int(context[1]) <= max_tokens:
            return Permanent(message, scope="run")
        if context or any(name in _WRONG_FOR_THIS_REQUEST for name in names):
            return Permanent(message, scope="request")
    return failure


def read_completion(body: bytes, *, model: str) -> ChatReply:
    """The reply in the body of a success; one that holds no text is paid for too, and comes back "unreadable"."""
    try:
        completion: Any = json.loads(body)
    except (ValueError, RecursionError):
        completion = None
    if not isinstance(completion, dict):
        completion = {}
    text, finish_reason = _first_choice(completion.get("choices"))
    reported = completion.get("model")
    usage = _usage(completion.get("usage"))
    return ChatReply(
        text=text,
        finish_reason=finish_reason,
        model=well_formed(reported) if isinstance(reported, str) and reported else model,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _first_choice(choices: object) -> tuple[str, FinishReason]:
    match choices:
        case [{"finish_reason": "content_filter"}, *_] | [{"message": {"refusal": str(), "content": None}}, *_]:
            return "", "filtered"
        case [{"message": {"content": str(text)}, "finish_reason": str(reason)}, *_] if reason in _FINISH_REASONS:
            return text, _FINISH_REASONS[reason]
        case [{"message": {"content": None}, "finish_reason": "length"}, *_]:
            return "", "length"  # all tokens went into reasoning
        case _:
            return "", "unreadable"


@dataclass(frozen=True)
class _Usage:
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


def _usage(usage: object) -> _Usage:
    """What is billed. Reasoning is billed as output; some servers leave it out of completion_tokens."""
    if not isinstance(usage, dict):
        return _Usage()
    paid_in = token_count(usage.get("prompt_tokens"))
    reasoning = _detail(usage.get("completion_tokens_details"), "reasoning_tokens")
    cached = _detail(usage.get("prompt_tokens_details"), "cached_tokens")
    by_difference = token_count(usage.get("total_tokens")) - paid_in
    paid_out = max(token_count(usage.get("completion_tokens")), reasoning, by_difference)
    return _Usage(paid_in, paid_out, min(cached, paid_in))


def _detail(details: object, name: str) -> int:
    return token_count(details.get(name)) if isinstance(details, dict) else 0

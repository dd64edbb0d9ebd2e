"""Any server that speaks the OpenAI chat-completions protocol, through the `openai` client library.

Its own retries and redirects are off: one call here is one HTTP request, and `pacing.py` sees every failure.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import math
import os
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from configs.errors import UserError
from data_gen.config import OpenAICompatible
from data_gen.llm.chat import Ambiguous, ChatError, ChatReply, ChatRequest, FinishReason, NotSent, Permanent, Scope

if TYPE_CHECKING:
    import openai

_LONGEST_WAIT_SECONDS = 600.0
_MOST_TOKENS = 2**53  # a count beyond this is nonsense, and more than SQLite's integers hold at 2**63
_MESSAGE_CHARS = 300

_FINISH_REASONS: Mapping[object, FinishReason] = {
    "stop": "stop",
    "eos": "stop",  # some open servers name the end of the text
    "length": "length",
    "content_filter": "filtered",
}
_NEVER_CONNECTED = ("ConnectError", "ConnectTimeout", "PoolTimeout")
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


class OpenAIChat:
    """A `ChatModel` over HTTP. Close it (`async with`, or `close()`) in the event loop that used it.

    Raises:
      UserError: the address is not one, or the key's environment variable is not set or holds no key.
    """

    def __init__(self, config: OpenAICompatible) -> None:
        loopback = _is_loopback(config.base_url)
        self._key = os.environ.get(config.api_key_env, "unused" if loopback else "").strip()
        if not self._key:
            raise UserError(
                f"no key for {config.base_url}: the environment variable {config.api_key_env} is not set; "
                f"export {config.api_key_env}=..., or name another variable in llm.api_key_env"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"{config.api_key_env} holds characters that no key has, such as a line break inside or a letter with "
                f"an accent; export {config.api_key_env}=... anew"
            )
        import openai  # takes seconds, so only those who talk to a server pay for it

        self._config = config
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout_seconds,
            # A proxy from the environment can not reach a server on this machine.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not loopback),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """One HTTP request.

        Raises:
          NotSent: no connection, 429, 503 or 529.
          Ambiguous: a time-out, a dropped connection, any other 5xx.
          Permanent: for this request, a 400 that names its content or length, and 413; for the run, 401, 403, 404,
            no quota, a parameter that the model does not take; unclear, any other 400 and 422.
        """
        limit: Any = {self._config.token_limit: request.max_tokens}
        messages: Any = [{"role": m.role, "content": _well_formed(m.content)} for m in request.messages]
        try:
            async with asyncio.timeout(self._config.timeout_seconds):  # the client's own limit starts anew at each read
                response = await self._client.chat.completions.with_raw_response.create(
                    model=request.model,
                    messages=messages,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=request.seed,
                    **limit,
                )
        except TimeoutError as error:
            raise Ambiguous(f"no answer within {self._config.timeout_seconds:g} s") from error
        except self._openai.APIStatusError as error:
            raise self._status_error(error, request) from error
        except self._openai.APIConnectionError as error:
            raise self._connection_error(error) from error
        return read_completion(response.content, model=request.model)

    def _connection_error(self, error: openai.APIConnectionError) -> ChatError:
        cause = type(error.__cause__).__name__  # by name: the library's HTTP client is httpx or httpx2
        message = self._readable(f"{self._config.base_url}: {cause}: {error.__cause__}")
        return NotSent(message) if cause in _NEVER_CONNECTED else Ambiguous(message)

    def _status_error(self, error: openai.APIStatusError, request: ChatRequest) -> ChatError:
        status = error.status_code
        message = self._readable(f"{self._config.base_url} answered {status}: {error.message}")
        other = "max_completion_tokens" if self._config.token_limit == "max_tokens" else "max_tokens"
        if status in (400, 422) and re.search(rf"\buse\W+{other}\b", error.message, re.IGNORECASE):
            return Permanent(f"{message}; set llm.token_limit={other}", scope="run")
        if error.code in _WRONG_FOR_EVERY_REQUEST:
            return Permanent(message, scope="run")
        if status in (429, 503, 529):
            wait = retry_after(error.response.headers.get("retry-after"), now=time.time())
            return NotSent(message, retry_after=wait, rate_limited=status == 429)
        if status >= 500 or status == 408:
            return Ambiguous(message)
        if status not in (400, 413, 422):
            return Permanent(message, scope="run")
        return Permanent(message, scope="request" if status == 413 else _scope(error, max_tokens=request.max_tokens))

    def _readable(self, message: str) -> str:
        return " ".join(message.replace(self._key, "***").split())[:_MESSAGE_CHARS]


def _scope(error: openai.APIStatusError, *, max_tokens: int) -> Scope:
    """Whom a 400 or 422 concerns. A proxy, or a setting that the server does not take, says 400 as well."""
    context = re.search(r"maximum context length is (\d+)", error.message)  # vLLM gives it no code
    if context and int(context[1]) <= max_tokens:
        return "run"
    is_named = error.code in _WRONG_FOR_THIS_REQUEST or error.type in _WRONG_FOR_THIS_REQUEST
    return "request" if context or is_named else "unclear"


def retry_after(header: str | None, *, now: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date; None for anything else, at most ten minutes."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
        except (ValueError, OverflowError):
            return None
    return min(seconds, _LONGEST_WAIT_SECONDS) if seconds >= 0 and math.isfinite(seconds) else None


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
    input_tokens, output_tokens = _usage(completion.get("usage"))
    return ChatReply(
        text=text,
        finish_reason=finish_reason,
        model=_well_formed(reported) if isinstance(reported, str) and reported else model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
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


def _usage(usage: object) -> tuple[int, int]:
    """(input, output) tokens. Reasoning is billed as output; some servers leave it out of completion_tokens."""
    if not isinstance(usage, dict):
        return 0, 0
    paid_in = _count(usage.get("prompt_tokens"))
    details = usage.get("completion_tokens_details")
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    by_difference = _count(usage.get("total_tokens")) - paid_in
    return paid_in, max(_count(usage.get("completion_tokens")), reasoning, by_difference)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value <= _MOST_TOKENS else 0


def _well_formed(text: str) -> str:
    """JSON allows lone surrogates, UTF-8 and so every file does not."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _is_loopback(base_url: str) -> bool:
    """Whether the address is on this machine; raises `UserError` if it is none."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        bad = parts.scheme not in ("http", "https") or not host or parts.port == 0
    except ValueError:
        bad, host = True, ""
    if bad:
        raise UserError(f"llm.base_url = {base_url!r} is no address; write one such as http://127.0.0.1:8000/v1")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Bodies of requests in OpenAI's format, read strictly: what is not understood is refused, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic_core
from pydantic import Field

from wizard_jax.generate.engine import MOST_ALTERNATIVES

MOST_STOPS = 16
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "suffix": ("",),
        "best_of": (1,),
        "store": (False,),
        "metadata": ({},),
        "parallel_tool_calls": (True, False),
        "service_tier": ("auto", "default"),
    }
)
"""Fields that are not served, and values of them that change no answer. null is such a value of any field."""
NEUTRAL_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = MappingProxyType({"annotations": ([],), "tool_calls": ([],)})
"""The same of messages: the answers of OpenAI's clients have them, and come back as what was said before."""


class Refused(Exception):
    """A request that is not answered, in OpenAI's words: its HTTP status, a message, and the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers; there is none here


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Body(_Strict):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    """Not OpenAI's, but common; 0 and -1: all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MOST_STOPS)] = []
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""
    """Who asks; it changes nothing."""


class ChatBody(_Body):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0


class TextBody(_Body):
    """Of /v1/completions; `prompt` is a list of texts or of lists of token ids."""

    prompt: Annotated[list[Any], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool = False


_B = TypeVar("_B", ChatBody, TextBody)


def read_body(body: bytes, kind: type[_B]) -> _B:
    """Raises Refused: no JSON object, or a field that is wrong, missing or not served."""
    try:
        raw = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(f"the body is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise Refused("the body must be a JSON object")
    fields = _telling(raw, NEUTRAL)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_telling(one, NEUTRAL_IN_MESSAGES) if isinstance(one, dict) else one for one in messages]
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if kind is TextBody and "prompt" in fields:
        fields["prompt"] = _prompts(fields["prompt"])
    try:
        read = kind.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _refusal(error) from None
    if isinstance(read, ChatBody) and read.top_logprobs and not read.logprobs:
        raise Refused("top_logprobs goes with logprobs: true", param="top_logprobs")
    if not read.stream and "stream_options" in fields:
        raise Refused("stream_options goes with stream: true", param="stream_options")
    return read


def _telling(fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Those that are not null and not neutral."""

    def is_neutral(name: str, value: object) -> bool:
        return any(type(value) in (type(one), float) and value == one for one in neutral.get(name, ()))

    return {name: value for name, value in fields.items() if value is not None and not is_neutral(name, value)}


def _prompts(prompt: Any) -> list[Any]:
    """A list whose members are texts or lists of token ids. Raises Refused."""
    many: list[Any] = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if all(isinstance(one, str) or _are_ids(one) for one in many):
        return many
    raise Refused("prompt must be a text, a list of token ids, or a list of either, and not empty", param="prompt")


def _are_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def _refusal(error: pydantic.ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    field = str(first["loc"][0]) if first["loc"] else None
    match first["type"]:
        case "extra_forbidden":
            message = f"{param} is not supported by this server: leave it out"
            return Refused(message, param=field if len(first["loc"]) == 1 else param, code="unsupported_parameter")
        case "missing":
            return Refused(f"{param} is missing", param=param)
    return Refused(f"{param}: {first['msg']}", param=param)

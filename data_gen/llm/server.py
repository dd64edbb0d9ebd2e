"""The simulated model over HTTP, in the wire format of OpenAI's chat completions: what `wizard simulate-llm` serves.

    async with SimulatedServer(Simulated()) as server:
        model = OpenAIChat(OpenAICompatible(model="simulated-llm", base_url=server.base_url))

What a reply says, and its faults of content, come from `SimulatedChatModel`; here are the faults of the wire. Each
is drawn from the server's seed, the request's content and how often that request has come before, so neither order
nor concurrency changes what becomes of a request, and asking again may help.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from configs.errors import UserError
from data_gen.config import Faults, Simulated
from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.simulated import NAME, SimulatedChatModel

_MOST_HEAD_BYTES = 16 * 1024
_MOST_BODY_BYTES = 8 * 1024 * 1024
_SLOW_FACTOR = 10
_REASONS = MappingProxyType(
    {
        200: "OK",
        400: "Bad Request",
        404: "Not Found",
        405: "Method Not Allowed",
        411: "Length Required",
        413: "Content Too Large",
        429: "Too Many Requests",
        431: "Request Header Fields Too Large",
        500: "Internal Server Error",
        503: "Service Unavailable",
    }
)
_MALFORMED = (
    b"<html><body><h1>It works!</h1></body></html>",
    b'{"id": "chatcmpl-0", "object": "chat.completion", "choices": null}',
    b'{"choices": [{"index": 0, "message": {"role": "assistant"}, "finish_reason": "stop"}]}',
    b'{"choices": [{"message": {"content": 7}, "finish_reason": ["stop"]}], "usage": {"prompt_tokens": -1}}',
    b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "The answer is',
    b"",
)

WireFault = Literal["malformed", "rate_limited", "server_error", "dropped"]


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


_MODEL_LIST = _Answer(
    200, b'{"object": "list", "data": [{"id": "%s", "object": "model", "owned_by": "simulation"}]}' % NAME.encode()
)


class _Refused(Exception):
    """A request that is answered with an error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.answer = _Answer(status, _error_body(message, param=param))


@dataclass(frozen=True)
class _Http:
    method: str
    path: str
    keep_alive: bool
    body: bytes


class SimulatedServer:
    """A server on 127.0.0.1 while the `async with` lasts.

    `requests` counts the chat requests that were read; `full_replies` those answered whole with a success, which is
    what a provider would bill, whatever the body holds. An answer takes `latency_seconds`, a slow one ten times that.
    Above `requests_per_second` (a token bucket that holds one second) the answer is 429.

    Raises:
      UserError: on entering, if the port is taken.
    """

    def __init__(
        self,
        config: Simulated,
        *,
        port: int = 0,
        seed: int = 0,
        requests_per_second: float | None = None,
        latency_seconds: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = 0
        self.full_replies = 0
        self._faults = config.faults
        self._model = SimulatedChatModel(config)
        self.port = port
        self._seed = seed
        self._latency = latency_seconds
        self._bucket = _Bucket(requests_per_second, clock) if requests_per_second else None
        self._arrivals: Counter[bytes] = Counter()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, limit=_MOST_HEAD_BYTES, backlog=1024
            )
        except (OSError, OverflowError) as error:
            raise UserError(f"port {self.port} of 127.0.0.1: {error}; choose another with --port") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request after another on a connection, until either side closes it."""
        try:
            keep_alive = True
            while keep_alive:
                try:
                    http = await _read_http(reader)
                    if http is None:
                        return
                    keep_alive = http.keep_alive
                    answer = await self._answer(http)
                    if answer is None:
                        return
                except _Refused as refused:
                    answer = refused.answer
                    keep_alive = False  # its body may be unread
                writer.write(_as_bytes(answer, keep_alive=keep_alive))
                await writer.drain()
                self.full_replies += answer.status == 200 and answer is not _MODEL_LIST
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client went away
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, http: _Http) -> _Answer | None:
        """What to send back; None drops the connection."""
        path = http.path.split("?", 1)[0].rstrip("/")
        if path == "/v1/models":
            if http.method != "GET":
                raise _Refused(405, f"{http.method} {path} is not supported; use GET")
            return _MODEL_LIST
        if path != "/v1/chat/completions":
            raise _Refused(404, f"there is no {path}; see /v1/models and /v1/chat/completions")
        if http.method != "POST":
            raise _Refused(405, f"{http.method} {path} is not supported; use POST")
        request = _read_request(http.body)
        self.requests += 1
        if self._bucket and (wait := self._bucket.take()):
            return _limited({"retry-after": f"{wait:.3f}"})
        content = hashlib.sha256(repr((request.messages, request.seed)).encode("utf-8", "surrogatepass")).digest()
        self._arrivals[content] += 1
        draws = random.Random(b"%d %d " % (self._seed, self._arrivals[content]) + content)
        fault, slow = _drawn(self._faults, draws), draws.random() < self._faults.slow
        if self._latency:
            await asyncio.sleep(self._latency * (_SLOW_FACTOR if slow else 1))
        if fault is not None:
            return _faulty(fault, draws)
        return _completion(await self._model.complete(request), arrival=self.requests)


def run_server(
    *,
    port: int,
    faults: Faults,
    seed: int = 0,
    requests_per_second: float | None = None,
    latency_seconds: float = 0.01,
    say: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM or Ctrl-C; `say` gets the address once it listens, and the counts at the end.

    Raises:
      UserError: the port is taken.
    """

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = SimulatedServer(
            Simulated(faults=faults),
            port=port,
            seed=seed,
            requests_per_second=requests_per_second,
            latency_seconds=latency_seconds,
        )
        async with server:
            say(f"{NAME} listens on {server.base_url} (Ctrl-C stops it)")
            await stop.wait()
        say(f"{server.requests} requests, {server.full_replies} answered in full")

    asyncio.run(serve())


class _Bucket:
    """A token bucket that holds at most one second's worth, and one token at least."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._most = max(1.0, rate)
        self._tokens = self._most
        self._at = clock()

    def take(self) -> float:
        """0 for a request that may pass, else the seconds until the next token."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate


async def _read_http(reader: asyncio.StreamReader) -> _Http | None:
    """The next request; None when the client has closed the connection between two requests."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise _Refused(431, f"the headers are longer than {_MOST_HEAD_BYTES} bytes") from error
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = request_line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise _Refused(400, "the first line is no HTTP/1.1 request line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" in headers:
        raise _Refused(411, "send the body with a Content-Length, not in chunks")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _Refused(400, "the Content-Length is no number")
    if len(length) > 9 or int(length) > _MOST_BODY_BYTES:
        raise _Refused(413, f"the body is longer than {_MOST_BODY_BYTES} bytes")
    body = await reader.readexactly(int(length))
    default = "keep-alive" if words[2] == "HTTP/1.1" else "close"
    keep_alive = headers.get("connection", default).lower() == "keep-alive"
    return _Http(words[0], words[1], keep_alive, body)


def _as_bytes(answer: _Answer, *, keep_alive: bool) -> bytes:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "connection": "keep-alive" if keep_alive else "close",
        **answer.headers,
    }
    lines = [f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body


def _read_request(body: bytes) -> ChatRequest:
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "the body is no JSON") from error
    if not isinstance(asked, dict):
        raise _Refused(400, "the body is no JSON object")
    for name in ("stream", "tools", "functions"):
        if asked.get(name):
            raise _Refused(400, f"{name} is not supported", param=name)
    if asked.get("n", 1) != 1:
        raise _Refused(400, "n must be 1", param="n")
    if not isinstance(asked.get("model"), str):
        raise _Refused(400, "model must be a string", param="model")
    most = asked.get("max_completion_tokens", asked.get("max_tokens"))
    return ChatRequest(
        key=RequestKey("", 0, "answer"),
        model=asked["model"],
        messages=_messages(asked.get("messages")),
        temperature=_number(asked, "temperature", default=1.0, least=0.0, most=2.0),
        top_p=_number(asked, "top_p", default=1.0, least=0.0, most=1.0),
        max_tokens=_whole({"max_tokens": most}, "max_tokens", default=2048, least=1),
        seed=_whole(asked, "seed", default=0, least=-(2**63)),
    )


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Refused(400, "messages must be a list with at least one message", param="messages")
    messages = []
    for position, message in enumerate(value):
        match message:
            case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
                messages.append(Message(role, content))
            case _:
                raise _Refused(400, f"messages[{position}] needs a role and a content string", param="messages")
    return tuple(messages)


def _number(asked: Mapping[str, object], name: str, *, default: float, least: float, most: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _Refused(400, f"{name} must be a number from {least:g} to {most:g}", param=name)
    return value


def _whole(asked: Mapping[str, object], name: str, *, default: int, least: int) -> int:
    value = default if asked.get(name) is None else asked[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise _Refused(400, f"{name} must be a whole number, at least {least}", param=name)
    return value


def _drawn(faults: Faults, draws: random.Random) -> WireFault | None:
    kinds: tuple[WireFault, ...] = ("malformed", "rate_limited", "server_error", "dropped")
    draw = draws.random()
    for kind in kinds:
        draw -= getattr(faults, kind)
        if draw < 0:
            return kind
    return None


def _faulty(fault: WireFault, draws: random.Random) -> _Answer | None:
    if fault == "malformed":
        return _Answer(200, draws.choice(_MALFORMED))
    if fault == "rate_limited":
        return _limited({"retry-after": "1"} if draws.random() < 0.5 else {})
    if fault == "server_error":
        return _Answer(draws.choice((500, 503)), _error_body("the simulated server failed on purpose"))
    return None


def _limited(headers: Mapping[str, str]) -> _Answer:
    return _Answer(429, _error_body("too many requests", kind="rate_limit_error"), headers)


def _error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": None}}).encode()


def _completion(reply: ChatReply, *, arrival: int) -> _Answer:
    finish_reason = "content_filter" if reply.finish_reason == "filtered" else reply.finish_reason
    body = {
        "id": f"chatcmpl-{arrival}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
        },
    }
    return _Answer(200, json.dumps(body).encode())

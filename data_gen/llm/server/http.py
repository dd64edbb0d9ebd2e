"""HTTP/1.1 on a socket, as little as the simulated server needs, and the routes by which a request finds its handler.

    Route("POST", "/v1/{resource}:generateContent", handler)    # handler: async (HttpRequest) -> HttpAnswer | None

A handler sees the query, the headers and the whole body, also of one that came in chunks; None drops the connection.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

MOST_HEAD_BYTES = 16 * 1024
MOST_BODY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """One request. Names of headers are in lower case; `parameters` are those of the route's path, decoded."""

    method: str
    path: str
    """Without the query, as it was sent: %2F is still told from a slash."""
    query: Mapping[str, str]
    """Decoded; of a name that is given twice, the last value."""
    headers: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside Content-Length and Connection; the Content-Type is JSON unless one is given."""
    when_sent: Callable[[], None] | None = None
    """Called once the whole answer was handed to the connection: what counts as paid for is counted here."""


Handler = Callable[[HttpRequest], Awaitable[HttpAnswer | None]]


class Refused(Exception):
    """A request that is answered with an error object; how that looks is its route's affair."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


@dataclass(frozen=True)
class Route:
    """(method, path) -> handler. In `path`, {name} stands for one segment or a part of it, {name...} for any text."""

    method: str
    path: str
    handler: Handler
    refusal: Callable[[Refused], HttpAnswer] = field(kw_only=True)
    """Writes what the handler raised in the error format of this route."""
    most_body_bytes: int = field(default=MOST_BODY_BYTES, kw_only=True)

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        text = re.sub(r"\\\{(\w+)\\\.\\\.\\\.\\\}", r"(?P<\1>.+)", re.escape(self.path))
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", text))


@dataclass(frozen=True)
class Found:
    route: Route
    request: HttpRequest


def find_route(routes: Sequence[Route], request: HttpRequest) -> Found:
    """The first route that fits, and the request with the parameters of its path.

    Raises:
      Refused: 404, no route has this path; 405, those that have it take another method.
    """
    path = request.path if request.path == "/" else request.path.rstrip("/")
    methods = []
    for route in routes:
        if matched := route.pattern.fullmatch(path):
            if route.method == request.method:
                parameters = {name: unquote(text) for name, text in matched.groupdict().items()}
                return Found(route, replace(request, parameters=parameters) if parameters else request)
            methods.append(route.method)
    if methods:
        raise Refused(405, f"{request.method} {path} is not supported; use {' or '.join(dict.fromkeys(methods))}")
    raise Refused(404, f"there is no {path}; there is {', '.join(dict.fromkeys(route.path for route in routes))}")


def nearest_route(routes: Sequence[Route], path: str) -> Route:
    """The first of those whose path begins most like `path`: what none of them answers is refused in its format."""

    def shared(route: Route) -> int:
        return next((at for at, (a, b) in enumerate(zip(route.path, path, strict=False)) if a != b), len(path))

    return max(routes, key=shared)


async def read_head(reader: asyncio.StreamReader) -> HttpRequest | None:
    """The next request, its body unread; None when the client has closed the connection between two requests.

    Raises:
      Refused: it is no HTTP/1.1, or its headers are too long.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise Refused(431, f"the headers are longer than {MOST_HEAD_BYTES} bytes") from error
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = request_line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(400, "the first line is no HTTP/1.1 request line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if words[2] == "HTTP/1.0":
        headers.setdefault("connection", "close")
    path, _, query = words[1].partition("?")
    parsed = dict(parse_qsl(query, keep_blank_values=True))
    return HttpRequest(method=words[0], path=path, query=parsed, headers=headers)


def keeps_alive(request: HttpRequest) -> bool:
    return request.headers.get("connection", "keep-alive").lower() == "keep-alive"


async def read_body(
    request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, most: int
) -> HttpRequest:
    """The request with its body, `most` bytes at the most.

    Raises:
      Refused: the body is longer, or is framed in a way that is not understood.
    """
    coding = request.headers.get("transfer-encoding", "identity").lower()
    length = request.headers.get("content-length", "0")
    if coding not in ("identity", "chunked"):
        raise Refused(501, f"Transfer-Encoding {coding} is not supported; use chunked, or a Content-Length")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "the Content-Length is no number")
    if len(length) > 12 or int(length) > most:
        raise Refused(413, f"the body is longer than {most} bytes")
    if request.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if coding == "chunked":
        return replace(request, body=await _read_chunks(reader, most=most))
    return replace(request, body=await reader.readexactly(int(length))) if length != "0" else request


async def _read_chunks(reader: asyncio.StreamReader, *, most: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        digits = (await _read_line(reader)).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", digits):
            raise Refused(400, "a chunk begins with no length")
        size = int(digits, 16)
        if size == 0:
            while await _read_line(reader):
                pass  # trailers
            return b"".join(parts)
        total += size
        if total > most:
            raise Refused(413, f"the body is longer than {most} bytes")
        parts.append(await reader.readexactly(size))
        if await reader.readexactly(2) != b"\r\n":
            raise Refused(400, "a chunk is longer than the length it begins with")


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n"))[:-2]
    except asyncio.LimitOverrunError as error:
        raise Refused(400, "a chunk begins with no length") from error


@functools.cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"


def as_bytes(answer: HttpAnswer, *, keep_alive: bool) -> bytes:
    """The answer as it goes over the wire."""
    headers = {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "connection": "keep-alive" if keep_alive else "close",
        **answer.headers,
    }
    lines = [_status_line(answer.status), *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body

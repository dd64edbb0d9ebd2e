"""HTTP/1.1, as little of it as the simulated server needs, and the routes by which a request finds its handler.

    Route("POST", "/v1/{resource}:generateContent", handler)    # handler: async (HttpRequest) -> HttpAnswer | None

A handler sees the query, the headers and the whole body, also of one that came in chunks; None drops the connection.
Nothing here touches a socket: what reads is a generator that yields where it needs more bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
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


def find_route(routes: Sequence[Route], *, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The first route that fits, and the parameters of its path, decoded.

    Raises:
      Refused: 404, no route has this path; 405, those that have it take another method.
    """
    path = path if path == "/" else path.rstrip("/")
    methods = []
    for route in routes:
        if matched := route.pattern.fullmatch(path):
            if route.method == method:
                return route, {name: unquote(text) for name, text in matched.groupdict().items()}
            methods.append(route.method)
    if methods:
        raise Refused(405, f"{method} {path} is not supported; use {' or '.join(dict.fromkeys(methods))}")
    raise Refused(404, f"there is no {path}; there is {', '.join(dict.fromkeys(route.path for route in routes))}")


def nearest_route(routes: Sequence[Route], path: str) -> Route:
    """The first of those whose path begins most like `path`: what none of them answers is refused in its format."""

    def shared(route: Route) -> int:
        return next((at for at, (a, b) in enumerate(zip(route.path, path, strict=False)) if a != b), len(path))

    return max(routes, key=shared)


class Incoming:
    """What has arrived on a connection and is not yet read, and the requests in it.

    `received` is added to from outside; `continued` is called for a client that waits to be told to send its body.
    """

    def __init__(self, routes: Sequence[Route], *, continued: Callable[[], object]) -> None:
        self.received = bytearray()
        self.refusing = routes[0]
        """The route in whose format the request is refused, if it is."""
        self._routes = routes
        self._continued = continued

    def next_request(self) -> Generator[None, None, Found]:
        """Yields whenever it needs more bytes, and returns a whole request.

        Raises:
          Refused: it is no HTTP/1.1, no route takes it, or it is too long.
        """
        self.refusing = self._routes[0]
        try:
            head = yield from self._up_to(b"\r\n\r\n", most=MOST_HEAD_BYTES)
        except _TooLong as error:
            raise Refused(431, f"the headers are longer than {MOST_HEAD_BYTES} bytes") from error
        request_line, *lines = head.decode("latin-1").split("\r\n")
        words = request_line.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise Refused(400, "the first line is no HTTP/1.1 request line")
        method, (path, _, query) = words[0], words[1].partition("?")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if words[2] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        try:
            self.refusing, parameters = find_route(self._routes, method=method, path=path)
        except Refused:
            self.refusing = nearest_route(self._routes, path)
            raise
        body = yield from self._body(headers, most=self.refusing.most_body_bytes)
        request = HttpRequest(
            method=method,
            path=path,
            query=dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            headers=headers,
            parameters=parameters,
            body=body,
        )
        return Found(self.refusing, request)

    def _body(self, headers: Mapping[str, str], *, most: int) -> Generator[None, None, bytes]:
        coding = headers.get("transfer-encoding", "identity").lower()
        length = headers.get("content-length", "0")
        if coding not in ("identity", "chunked"):
            raise Refused(501, f"Transfer-Encoding {coding} is not supported; use chunked, or a Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "the Content-Length is no number")
        if len(length) > 12 or int(length) > most:
            raise Refused(413, f"the body is longer than {most} bytes")
        if headers.get("expect", "").lower() == "100-continue":
            self._continued()
        if coding == "chunked":
            return (yield from self._chunks(most=most))
        return (yield from self._exactly(int(length)))

    def _chunks(self, *, most: int) -> Generator[None, None, bytes]:
        parts: list[bytes] = []
        total = 0
        while True:
            try:
                digits = (yield from self._up_to(b"\r\n", most=MOST_HEAD_BYTES)).partition(b";")[0].strip()
                if re.fullmatch(rb"0+", digits):
                    while (yield from self._up_to(b"\r\n", most=MOST_HEAD_BYTES)):
                        pass  # trailers
                    return b"".join(parts)
            except _TooLong as error:
                raise Refused(400, "a chunk begins with no length") from error
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", digits):
                raise Refused(400, "a chunk begins with no length")
            total += int(digits, 16)
            if total > most:
                raise Refused(413, f"the body is longer than {most} bytes")
            parts.append((yield from self._exactly(int(digits, 16))))
            if (yield from self._exactly(2)) != b"\r\n":
                raise Refused(400, "a chunk is longer than the length it begins with")

    def _up_to(self, mark: bytes, *, most: int) -> Generator[None, None, bytes]:
        looked_at = 0
        while (end := self.received.find(mark, looked_at)) < 0:
            looked_at = max(0, len(self.received) - len(mark) + 1)
            if looked_at > most:
                raise _TooLong
            yield
        if end > most:
            raise _TooLong
        text = bytes(self.received[:end])
        del self.received[: end + len(mark)]
        return text

    def _exactly(self, length: int) -> Generator[None, None, bytes]:
        while len(self.received) < length:
            yield
        text = bytes(self.received[:length])
        del self.received[:length]
        return text


class _TooLong(Exception):
    pass


def keeps_alive(request: HttpRequest) -> bool:
    return request.headers.get("connection", "keep-alive").lower() == "keep-alive"


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

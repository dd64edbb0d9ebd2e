"""The simulated model over HTTP, in the wire formats of hosted ones: what `wizard simulate-llm` serves.

async with SimulatedServer(Simulated()) as server:
    model = OpenAIChat(OpenAICompatible(model="simulated-llm", base_url=server.base_url))
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from configs.errors import UserError
from data_gen.config import Faults, Simulated
from data_gen.llm.server import openai_wire
from data_gen.llm.server.http import (
    MOST_HEAD_BYTES,
    HttpAnswer,
    Refused,
    Route,
    as_bytes,
    find_route,
    keeps_alive,
    read_body,
    read_head,
)
from data_gen.llm.server.service import Service
from data_gen.llm.simulated import NAME

Format = Callable[[Service], Sequence[Route]]
"""A wire format: its routes, answering from a service."""

FORMATS: tuple[Format, ...] = (openai_wire.routes,)
"""What is served. Of two routes that fit a request, the first answers."""


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
        formats: Sequence[Format] = FORMATS,
    ) -> None:
        self.service = Service(
            config,
            seed=seed,
            requests_per_second=requests_per_second,
            latency_seconds=latency_seconds,
            clock=clock,
        )
        self.port = port
        self._routes = tuple(route for form in formats for route in form(self.service))
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def requests(self) -> int:
        return self.service.requests

    @property
    def full_replies(self) -> int:
        return self.service.full_replies

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base."""
        return f"{self.address}/v1"

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, limit=MOST_HEAD_BYTES, backlog=1024
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
                refusal: Callable[[Refused], HttpAnswer] = openai_wire.refusal
                try:
                    head = await read_head(reader)
                    if head is None:
                        return
                    found = find_route(self._routes, head)
                    refusal = found.route.refusal
                    request = await read_body(found.request, reader, writer, most=found.route.most_body_bytes)
                    keep_alive = keeps_alive(request)
                    answer: HttpAnswer | None = await found.route.handler(request)
                    if answer is None:
                        return
                except Refused as refused:
                    answer = refusal(refused)
                    keep_alive = False  # its body may be unread
                writer.write(as_bytes(answer, keep_alive=keep_alive))
                await writer.drain()
                if answer.when_sent is not None:
                    answer.when_sent()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client went away
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


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

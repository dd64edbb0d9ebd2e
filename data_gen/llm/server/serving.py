"""The simulated model over HTTP, in the wire formats of hosted ones: what `wizard simulate-llm` serves.

async with SimulatedServer(Simulated()) as server:
    model = OpenAIChat(OpenAICompatible(model="simulated-llm", base_url=server.base_url))
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Self

from configs.errors import UserError
from data_gen.config import Simulated
from data_gen.llm.server import gemini_wire, openai_batches, openai_wire, vertex_batches
from data_gen.llm.server.connection import Connection
from data_gen.llm.server.http import Route
from data_gen.llm.server.service import ORDINARY, Conduct, Service
from data_gen.llm.simulated import NAME

Format = Callable[[Service], Sequence[Route]]
"""A wire format: its routes, answering from a service."""

FORMATS: tuple[Format, ...] = (
    openai_wire.routes,
    gemini_wire.routes,
    openai_batches.routes,
    vertex_batches.routes,
)
"""What is served."""


class SimulatedServer:
    """A server on 127.0.0.1 while the `async with` lasts; how it behaves is said at `service.Conduct`.

    `requests` counts the chat requests that were read; `full_replies` those answered whole with a success, which is
    what a provider would bill, whatever the body holds; `limited` those answered with 429. Each of `formats` adds
    routes; of two that fit a request, the first answers.

    Raises:
      UserError: a rate or a latency that is none; on entering, if the port is taken.
    """

    def __init__(
        self,
        config: Simulated,
        *,
        port: int = 0,
        conduct: Conduct = ORDINARY,
        formats: Sequence[Format] = FORMATS,
    ) -> None:
        self.service = Service(config, conduct)
        self.port = port
        self._routes = tuple(route for form in formats for route in form(self.service))
        self._connections: set[Connection] = set()

    @property
    def requests(self) -> int:
        return self.service.requests

    @property
    def full_replies(self) -> int:
        return self.service.full_replies

    @property
    def limited(self) -> int:
        return self.service.limited

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base; a Gemini client takes `address`."""
        return f"{self.address}/v1"

    async def __aenter__(self) -> Self:
        def connection() -> Connection:
            return Connection(self._routes, open_ones=self._connections)

        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(connection, "127.0.0.1", self.port, backlog=1024)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {self.port} of 127.0.0.1: {error}; choose another with --port") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))
        await self._server.wait_closed()


def run_server(
    *, port: int, config: Simulated, conduct: Conduct = ORDINARY, say: Callable[[str], None] = print
) -> None:
    """Serves until SIGTERM or Ctrl-C; `say` gets the addresses once it listens, and the counts at the end.

    Raises:
      UserError: the port is taken, or a rate or a latency is none.
    """

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with SimulatedServer(config, port=port, conduct=conduct) as server:
            say(f"{NAME} listens on {server.base_url} (OpenAI) and {server.address} (Gemini); Ctrl-C stops it")
            await stop.wait()
        say(f"{server.requests} requests, {server.full_replies} answered in full, {server.limited} over the limit")

    asyncio.run(serve())

"""The simulated model over HTTP in a thread of the test, which counts what became of every single request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_gen.config import Faults, Simulated
from data_gen.llm.server import SimulatedServer, openai_wire
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Route
from data_gen.llm.server.service import Conduct, Service


@dataclass
class Asked:
    """Requests by the seed that each of a run has for its own: how often each came, and was answered in full."""

    came: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    prompts: dict[int, str] = field(default_factory=dict)
    """The last message of each."""
    open: int = 0
    """That are being answered now."""

    def routes(self, service: Service) -> Sequence[Route]:
        """OpenAI's format, counted."""
        models, chat = openai_wire.routes(service)

        async def counted(http: HttpRequest) -> HttpAnswer | None:
            body = json.loads(http.body)
            seed = body["seed"]
            self.prompts[seed] = body["messages"][-1]["content"]
            self.came[seed] += 1
            self.open += 1
            try:
                answer = await chat.handler(http)
            finally:
                self.open -= 1
            if answer is None or answer.when_sent is None:
                return answer
            when_sent = answer.when_sent

            def count() -> None:
                when_sent()
                self.answered[seed] += 1

            return replace(answer, when_sent=count)

        return models, replace(chat, handler=counted)


@dataclass(frozen=True)
class Served:
    server: SimulatedServer
    asked: Asked


@contextlib.contextmanager
def serving(faults: Faults | None = None, *, asked: Asked | None = None, **conduct: Any) -> Iterator[Served]:
    """Serves while it is entered; `conduct` is what `Conduct` takes, `asked` one that answers otherwise."""
    asked = asked or Asked()
    server = SimulatedServer(Simulated(faults=faults or Faults()), formats=[asked.routes], conduct=Conduct(**conduct))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        try:
            yield Served(server, asked)
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""A journal with batch jobs of a real service behind it, and requests that lineages wait for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

from batch_provider import free

from data_gen.llm.batch import BatchChat
from data_gen.llm.batch_openai import OpenAIBatchService
from data_gen.llm.batch_service import Limits
from data_gen.llm.batch_vertex import VertexBatchService
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.llm.journal import Journal
from data_gen.llm.standstill import Standstill


@dataclass
class Open:
    batch: BatchChat
    journal: Journal
    standstill: Standstill

    async def ask_all(self, requests: list[ChatRequest]) -> list[ChatReply | BaseException]:
        model = self.journal.wrap(self.batch, saves="none")

        async def one(request: ChatRequest) -> ChatReply:
            with self.standstill.lineage():
                return await model.complete(request)

        return await asyncio.gather(*map(one, requests), return_exceptions=True)


@contextlib.asynccontextmanager
async def opened_over(
    service: OpenAIBatchService | VertexBatchService, *, path: Path, limits: Limits
) -> AsyncIterator[Open]:
    """Open until left; no wait takes longer than 10 ms."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    standstill = Standstill(settle_seconds=0.02)
    async with (
        service,
        Journal.open(path / "journal.sqlite") as journal,
        BatchChat(service, journal=journal, account=free(), standstill=standstill, limits=limits, sleep=sleep) as batch,
    ):
        yield Open(batch, journal, standstill)
    await asyncio.sleep(0.05)  # the server sees the client's connections end


def run(body: Awaitable[None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(120):
            await body

    asyncio.run(within())

"""One process after another on one journal, with batch jobs of a provider in memory that answer ten requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from batch_provider import Provider, free

from data_gen.config import OpenAIBatch, Simulated
from data_gen.llm.batch import BatchChat
from data_gen.llm.batch_service import LostJobs
from data_gen.llm.budget import Account
from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.llm.standstill import Standstill

LIMITS = OpenAIBatch(poll_seconds=0.01)
REQUESTS = [
    ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model="m",
        messages=(Message("user", f"Name {number} primes."),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )
    for number in range(10)
]


class Opened:
    """A journal and a batch model of one process."""

    def __init__(self, journal: Journal, batch: BatchChat, standstill: Standstill) -> None:
        self.journal, self.batch, self._standstill = journal, batch, standstill
        self._model = journal.wrap(batch, saves="none")

    async def ask(self, request: ChatRequest) -> ChatReply:
        with self._standstill.lineage():
            return await self._model.complete(request)

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        return await asyncio.gather(*map(self.ask, requests))


@contextlib.asynccontextmanager
async def process(
    path: Path, provider: Provider, *, lost_jobs: LostJobs = "stop", account: Account | None = None
) -> AsyncIterator[Opened]:
    standstill = Standstill(settle_seconds=0.01)
    account = account or free()
    account.ledger.while_waiting = standstill.standing
    async with (
        asyncio.timeout(30),
        Journal.open(path / "journal.sqlite") as journal,
        BatchChat(
            provider,
            journal=journal,
            account=account,
            standstill=standstill,
            limits=LIMITS,
            lost_jobs=lost_jobs,
        ) as batch,
    ):
        yield Opened(journal, batch, standstill)


async def begun(path: Path, provider: Provider, *, account: Account | None = None) -> None:
    """A process that is told to stop while it waits for its job."""
    provider.looks_until_done = 10**9
    async with process(path, provider, account=account) as held:
        asking = asyncio.create_task(held.ask_all(REQUESTS))
        while not provider.looked:  # noqa: ASYNC110 -- what is waited for knows of no event
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    provider.looks_until_done = 0


async def online() -> list[ChatReply]:
    return [await SimulatedChatModel(Simulated()).complete(request) for request in REQUESTS]

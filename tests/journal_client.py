"""A process with a journal, for the tests to kill or to starve: `python journal_client.py hold|fill PATH`."""

from __future__ import annotations

import asyncio
import resource
import sys

from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import JournalError


def asking(number: int) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 0, "answer"),
        model="simulated-llm",
        messages=(Message("user", f"question {number}"),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


class LongAnswers:
    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(text="x" * 4000, finish_reason="stop", model=request.model)


async def hold(path: str) -> None:
    """Keeps the journal open."""
    async with Journal.open(path):
        print("open", flush=True)
        await asyncio.sleep(60)


async def fill(path: str) -> None:
    """Fills a disk: the kernel lets no file of this process grow beyond 400 kB."""
    async with Journal.open(path) as journal:
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, unlimited))
        model = journal.wrap(journal.marked(LongAnswers()))
        outcomes = []
        for start in range(0, 512, 64):
            batch = (model.complete(asking(i)) for i in range(start, start + 64))
            outcomes += await asyncio.gather(*batch, return_exceptions=True)
        kinds = [type(outcome).__name__ for outcome in outcomes]
        print(kinds.count("ChatReply"), kinds.count("JournalError"), len(kinds))
        print(next(outcome for outcome in outcomes if isinstance(outcome, JournalError)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))


if __name__ == "__main__":
    job, path = sys.argv[1:]
    asyncio.run({"hold": hold, "fill": fill}[job](path))

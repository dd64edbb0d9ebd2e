"""A process with a journal, for the tests to kill: `python journal_client.py hold|ask|fill PATH ...`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from dataclasses import dataclass

from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.journal_file import JournalError
from data_gen.llm.openai import read_completion
from data_gen.llm.pacing import Pacing


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


@dataclass
class PlainHttp:
    """The real client library takes seconds to import, and here only the journal is looked at."""

    port: int

    async def complete(self, request: ChatRequest) -> ChatReply:
        messages = [{"role": "user", "content": request.messages[0].content}]
        asked = json.dumps({"model": request.model, "messages": messages, "seed": request.seed}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(asked)}\r\n\r\n"
        writer.write(head.encode() + asked)
        answer_head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert answer_head.startswith(b"HTTP/1.1 200"), answer_head
        return read_completion(body, model=request.model)


class LongAnswers:
    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(text="x" * 4000, finish_reason="stop", model=request.model)


async def hold(path: str) -> None:
    """Keeps the journal open."""
    async with Journal.open(path):
        print("open", flush=True)
        await asyncio.sleep(60)


async def ask(path: str, port: int, count: int) -> None:
    """Asks `count` questions, 16 at once, and prints the journal's counts."""
    async with Journal.open(path) as journal:
        model = Pacing(journal.wrap(PlainHttp(port)), concurrency=16, max_attempts=3)
        print("go", flush=True)
        await asyncio.gather(*(model.complete(asking(i)) for i in range(count)))
        print(journal.asked, journal.cached, journal.possibly_paid_twice, flush=True)


async def fill(path: str) -> None:
    """Fills a disk: the kernel lets no file of this process grow beyond 400 kB."""
    async with Journal.open(path) as journal:
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, unlimited))
        model = journal.wrap(LongAnswers())
        outcomes = []
        for start in range(0, 512, 64):
            batch = (model.complete(asking(i)) for i in range(start, start + 64))
            outcomes += await asyncio.gather(*batch, return_exceptions=True)
        kinds = [type(outcome).__name__ for outcome in outcomes]
        print(kinds.count("ChatReply"), kinds.count("JournalError"), len(kinds))
        print(next(outcome for outcome in outcomes if isinstance(outcome, JournalError)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))


if __name__ == "__main__":
    job, path, *numbers = sys.argv[1:]
    asyncio.run({"hold": hold, "ask": ask, "fill": fill}[job](path, *map(int, numbers)))

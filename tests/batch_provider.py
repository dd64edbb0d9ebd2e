"""A provider's batch interface in memory, which outlives the clients that talk to it and fails as it is told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import BinaryIO, Literal

from data_gen.config import Budget, OpenAIBatch, OpenAICompatible, Price, Simulated
from data_gen.llm.batch_join import Result, fingerprint
from data_gen.llm.batch_service import Gone, JobState, Line
from data_gen.llm.budget import Account, Ledger
from data_gen.llm.chat import (
    NOTHING,
    Ambiguous,
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    RequestKey,
    Spent,
)
from data_gen.llm.pricing import Prices
from data_gen.llm.simulated import SimulatedChatModel


@dataclass
class Job:
    label: str
    lines: list[tuple[str, ChatRequest]]
    """(key, request) as they stand in the job's file."""
    looks: int = 0
    phase: Literal["complete", "cut short", "failed"] = "complete"
    results: list[Result] = field(default_factory=list)


@dataclass
class Provider:
    """A `BatchService`. `tamper` changes the results of a job when they are first read."""

    echoes_keys: bool = True
    looks_until_done: int = 2
    submit_failures: list[tuple[Literal["before", "after", "hang after"], ChatError]] = field(default_factory=list)
    lags: int = 0
    """So many looks for a job that is there do not find it yet."""
    look_failures: list[ChatError] = field(default_factory=list)
    broken_downloads: int = 0
    """So many downloads end in the middle."""
    results_gone: int = 0
    """So many downloads end in the middle for good."""
    endings: list[JobState] = field(default_factory=list)
    """How the next jobs end; complete, once there is nothing left here."""
    share: dict[str, float] = field(default_factory=dict)
    """Fault of the results -> share of the lines that have it: "missing", "duplicated", "swapped"."""
    jobs: dict[str, Job] = field(default_factory=dict)
    looked: int = 0
    address: str = "memory"

    def line(self, request: ChatRequest, *, key: str) -> Line:
        sent = {"messages": [asdict(m) for m in request.messages], "seed": request.seed, "model": request.model}
        text = json.dumps({"request": sent, "key": key}).encode() + b"\n"
        return Line(text, fingerprint(sent))

    async def find(self, label: str) -> str | None:
        await self._look()
        found = next((name for name, job in self.jobs.items() if job.label == label), None)
        if found is not None and self.lags:
            self.lags -= 1
            return None
        return found

    async def submit(self, label: str, *, model: str, lines: BinaryIO) -> str:
        await asyncio.sleep(0)
        when, failure = self.submit_failures.pop(0) if self.submit_failures else (None, None)
        if when == "before":
            assert failure
            raise failure
        read = [json.loads(line) for line in lines]
        assert all(line["request"]["model"] == model for line in read)
        name = f"job-{len(self.jobs)}"
        self.jobs[name] = Job(label, [(line["key"], _request(line["request"])) for line in read])
        if when == "hang after":
            await asyncio.Event().wait()
        if failure:
            raise failure
        return name

    async def state(self, name: str) -> JobState:
        await self._look()
        if name not in self.jobs:
            raise Gone(f"404: there is no {name}")
        job = self.jobs[name]
        job.looks += 1
        if job.looks <= self.looks_until_done:
            return JobState("running")
        if job.looks == self.looks_until_done + 1 and self.endings:
            ending = self.endings.pop(0)
            job.phase = ending.phase if ending.phase != "running" else "complete"
            return ending
        return JobState(job.phase)

    async def results(self, name: str) -> AsyncGenerator[Result, None]:
        job = self.jobs[name]
        if not job.results:
            job.results = await self._answered(job)
        for position, result in enumerate(job.results):
            if self.broken_downloads and position == len(job.results) // 2:
                self.broken_downloads -= 1
                raise Ambiguous("the connection was dropped")
            if self.results_gone and position == len(job.results) // 2:
                self.results_gone -= 1
                raise Gone("404: there is no such file")
            yield result

    async def _look(self) -> None:
        await asyncio.sleep(0)
        self.looked += 1
        if self.look_failures:
            raise self.look_failures.pop(0)

    async def _answered(self, job: Job) -> list[Result]:
        rng = random.Random(job.label)
        lines = job.lines if job.phase == "complete" else job.lines[: len(job.lines) // 2]
        results = []
        for key, request in lines:
            echo = self.line(request, key=key).echo
            reply: ChatReply | ChatError = await SimulatedChatModel(Simulated()).complete(request)
            if request.messages[-1].content.startswith("error 503"):
                reply = NotSent("503")
            if request.messages[-1].content.startswith("error 400"):
                reply = Permanent("the prompt was flagged", scope="request")
            results.append(Result(echo, key if self.echoes_keys else None, reply))
        shuffled = rng.sample(results, len(results))
        count = {fault: round(share * len(results)) for fault, share in self.share.items()}
        swapped = count.get("swapped", 0) // 2 * 2
        for a, b in zip(range(0, swapped, 2), range(1, swapped, 2), strict=True):
            first, second = shuffled[a], shuffled[b]
            shuffled[a], shuffled[b] = first._replace(key=second.key), second._replace(key=first.key)
        shuffled = shuffled[: len(shuffled) - count.get("missing", 0)]
        twice = shuffled[swapped : swapped + count.get("duplicated", 0)]
        return rng.sample(shuffled + twice, len(shuffled) + len(twice))


def _request(sent: dict[str, object]) -> ChatRequest:
    messages = sent["messages"]
    seed, model = sent["seed"], sent["model"]
    assert isinstance(messages, list)
    assert isinstance(seed, int)
    assert isinstance(model, str)
    return ChatRequest(
        key=RequestKey("", 0, "answer"),
        model=model,
        messages=tuple(Message(**message) for message in messages),
        temperature=1.0,
        top_p=1.0,
        max_tokens=64,
        seed=seed,
    )


@dataclass
class Counting:
    """Notes how many requests each lineage has sent so far."""

    inner: ChatModel
    asked: dict[str, int] = field(default_factory=dict)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked[request.key.lineage] = self.asked.get(request.key.lineage, 0) + 1
        return await self.inner.complete(request)


def priced(*, price: float = 1_000_000.0, budget: Budget | None = None, spent: Spent = NOTHING) -> Account:
    """Of requests that cost half of `price` per million tokens, for they go in jobs: half a USD a token."""
    llm = OpenAICompatible(model="m", price=Price(input=price, output=price), batch=OpenAIBatch())
    return Account(prices=Prices(llm), ledger=Ledger(budget or Budget(), spent=spent))


def free() -> Account:
    """Of requests that cost nothing, within no budget."""
    return priced(price=0.0)

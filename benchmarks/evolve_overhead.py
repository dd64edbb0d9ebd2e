"""What journal, pacing and elimination cost: requests per second of `wizard evolve` beside those of the bare SDK.

    python benchmarks/evolve_overhead.py

Takes about 5 minutes. The simulated server runs in its own process and answers at once. In turns, with as many requests
in flight: the `openai` SDK alone (the very requests of the run, and nothing is done with the replies), as one client
and as many clients of 8 connections each, which is how we use it; and a whole `wizard evolve` from its first request to
its last reply. Every second turn goes the other way round.

Then, without a server: how many replies of 4 kB per second the journal commits (SQLite, WAL, synchronous=FULL, on
the disk of --folder), with and without pacing before it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from evolving import MODEL, provider, serving, watched

from data_gen.config import EvolveConfig, Measure, Simulated, SimulatedSeeds
from data_gen.evolve import evolve_lineage
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import Journal
from data_gen.llm.pacing import Pacing
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.sources import load_seeds
from wizard_jax.progress import show_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=150, help="13 requests each")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--replies", type=int, default=20_000, help="committed to a journal")
    parser.add_argument("--folder", type=Path, help="where journals are written (default: the temporary folder)")
    arguments = parser.parse_args()
    with serving("--latency-seconds", "0") as base_url, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [
            beside_sdk(base_url, Path(folder), seeds=arguments.seeds, turns=arguments.turns, concurrency=concurrency)
            for concurrency in arguments.concurrency
        ]
        titles = (
            "in flight",
            "requests",
            "SDK/s",
            "SDK in clients of 8/s",
            "wizard evolve/s",
            "ratio",
            "to clients of 8",
        )
        show_table(titles, rows)
        commits = [
            (what, f"{arguments.replies:,}", f"{committed(Path(folder) / what, arguments.replies, paced=paced):,.0f}")
            for what, paced in (("journal", False), ("pacing and journal", True))
        ]
    show_table(("replies through", "replies", "committed/s"), commits)


# --- beside the SDK


@dataclass
class _Listening:
    """Keeps the requests that pass."""

    inner: ChatModel
    requests: list[ChatRequest]

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        return await self.inner.complete(request)


def requests_of(config: EvolveConfig) -> list[ChatRequest]:
    """Those that the run will make."""
    listening = _Listening(SimulatedChatModel(Simulated()), [])

    async def run() -> None:
        for seed in load_seeds(config.seeds):
            await evolve_lineage(seed, model=listening, config=config)

    asyncio.run(run())
    return listening.requests


def beside_sdk(base_url: str, folder: Path, *, seeds: int, turns: int, concurrency: int) -> tuple[str, ...]:
    config = EvolveConfig(
        seeds=SimulatedSeeds(count=seeds),
        llm=provider(base_url),
        concurrency=concurrency,
        measure=Measure(diversity_sample=0, duplicates="off"),
    )
    requests = requests_of(config)
    asyncio.run(sdk_alone(base_url, requests[:200], concurrency=concurrency))  # imports, and the server's first steps

    def alone(connections: int) -> float:
        return len(requests) / asyncio.run(
            sdk_alone(base_url, requests, concurrency=concurrency, connections=connections)
        )

    bare, pooled, ours = [], [], []
    for turn in range(turns):

        def evolving(turn: int = turn) -> None:
            run = watched(config, folder / f"evolved-{concurrency}-{turn}")
            ours.append(run.moments[-1].asked / run.seconds)

        order = [lambda: bare.append(alone(concurrency)), lambda: pooled.append(alone(8)), evolving]
        for contender in order if turn % 2 == 0 else reversed(order):
            contender()
    return (
        str(concurrency),
        f"{len(requests):,}",
        *(f"{statistics.median(speeds):,.0f}" for speeds in (bare, pooled, ours)),
        *(told([mine / theirs for mine, theirs in zip(ours, speeds, strict=True)]) for speeds in (bare, pooled)),
    )


def told(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


async def sdk_alone(
    base_url: str, requests: list[ChatRequest], *, concurrency: int, connections: int | None = None
) -> float:
    """Seconds; by clients of so many connections each, or by one."""
    import openai

    waiting = iter(requests)
    async with contextlib.AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(openai.AsyncOpenAI(api_key="unused", base_url=base_url, max_retries=0))
            for _ in range(math.ceil(concurrency / (connections or concurrency)))
        ]

        async def work(client: openai.AsyncOpenAI) -> None:
            for request in waiting:
                await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": message.content} for message in request.messages],
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=request.max_tokens,
                    seed=request.seed,
                )

        began = time.perf_counter()
        await asyncio.gather(*(work(clients[place % len(clients)]) for place in range(concurrency)))
        return time.perf_counter() - began


# --- the journal alone


class _AtOnce:
    """A `ChatModel` that answers 4 kB at once."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(text="four" * 1000, finish_reason="stop", model=request.model, output_tokens=1000)


def committed(path: Path, replies: int, *, paced: bool) -> float:
    """Replies per second."""
    question = ChatRequest(
        key=RequestKey("seed", 0, "answer"),
        model=MODEL,
        messages=(Message("user", "?"),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=2048,
        seed=0,
    )

    async def run() -> float:
        async with Journal.open(path) as journal:
            model = journal.wrap(journal.marked(_AtOnce()))
            if paced:
                model = Pacing(model, concurrency=512, max_attempts=1)
            numbers = iter(range(replies))

            async def work() -> None:
                for number in numbers:
                    await model.complete(replace(question, key=RequestKey(f"seed-{number}", 0, "answer")))

            began = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(512)))
            return replies / (time.perf_counter() - began)

    return asyncio.run(run())


if __name__ == "__main__":
    main()

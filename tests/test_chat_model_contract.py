"""What holds for every `ChatModel`: those that answer, and those that are wrapped around one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data_gen.config import Budget, Faults, Gemini, OpenAICompatible, Price, Simulated
from data_gen.llm.budget import Charged, Ledger
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.gemini import GeminiChat
from data_gen.llm.journal import Journal
from data_gen.llm.openai import OpenAIChat
from data_gen.llm.pacing import Pacing
from data_gen.llm.pricing import Prices
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct
from data_gen.llm.simulated import SimulatedChatModel

OpenModel = Callable[[Path, Faults], AbstractAsyncContextManager[ChatModel]]


@asynccontextmanager
async def in_process(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    yield SimulatedChatModel(Simulated(faults=faults))


@asynccontextmanager
async def over_http(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    async with SimulatedServer(Simulated(faults=faults), conduct=Conduct(latency_seconds=0.001)) as server:
        config = OpenAICompatible(model="simulated-llm", base_url=server.base_url, api_key_env="NO_SUCH_KEY")
        async with OpenAIChat(config) as chat:
            yield chat


@asynccontextmanager
async def gemini_over_http(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    async with SimulatedServer(Simulated(faults=faults), conduct=Conduct(latency_seconds=0.001)) as server:
        config = Gemini(model="simulated-llm", base_url=server.address)
        async with GeminiChat(config) as chat:
            yield chat


@asynccontextmanager
async def ai_studio_over_http(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    async with SimulatedServer(Simulated(faults=faults), conduct=Conduct(latency_seconds=0.001)) as server:
        config = Gemini(model="simulated-llm", platform="ai_studio", base_url=server.address, thinking_budget=0)
        async with GeminiChat(config) as chat:
            yield chat


@asynccontextmanager
async def charged(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    model, ledger = Simulated(faults=faults), Ledger(Budget(usd=1.0, tokens=10**9, calls=1000))
    yield Charged(SimulatedChatModel(model), prices=Prices(model), ledger=ledger)


@asynccontextmanager
async def journalled(folder: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    async with Journal.open(folder / "journal.sqlite") as journal:
        yield journal.wrap(journal.marked(SimulatedChatModel(Simulated(faults=faults))))


@asynccontextmanager
async def paced(_: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    yield Pacing(SimulatedChatModel(Simulated(faults=faults)), concurrency=4, max_attempts=2)


@asynccontextmanager
async def stacked(folder: Path, faults: Faults) -> AsyncIterator[ChatModel]:
    free = OpenAICompatible(model="simulated-llm", price=Price(input=0.0, output=0.0))
    async with Journal.open(folder / "journal.sqlite") as journal, over_http(folder, faults) as chat:
        spending = Charged(
            journal.marked(chat), prices=Prices(free), ledger=Ledger(Budget(calls=1000), spent=journal.spent)
        )
        yield Pacing(journal.wrap(spending), concurrency=4, max_attempts=8)


EVERY = pytest.mark.parametrize(
    "open_model",
    [in_process, over_http, gemini_over_http, ai_studio_over_http, charged, journalled, paced, stacked],
    ids=lambda function: function.__name__,
)


def asking(number: int = 0, *, text: str = "Name three rivers of Europe, please.") -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model="simulated-llm",
        messages=(Message("user", f"{text} ({number})"),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


def replies(open_model: OpenModel, folder: Path, requests: list[ChatRequest], **rates: float) -> list[ChatReply]:
    async def run() -> list[ChatReply]:
        async with open_model(folder, Faults(**rates)) as model:
            return await asyncio.gather(*(model.complete(request) for request in requests))

    return asyncio.run(run())


@EVERY
def test_a_reply_has_text_a_model_and_counted_tokens(open_model: OpenModel, tmp_path: Path) -> None:
    (reply,) = replies(open_model, tmp_path, [asking()])
    assert reply.text
    assert reply.finish_reason == "stop"
    assert reply.model == "simulated-llm"
    assert reply.input_tokens > 0
    assert reply.output_tokens == len(reply.text.split())


@EVERY
def test_every_model_of_the_family_says_the_same(open_model: OpenModel, tmp_path: Path) -> None:
    requests = [asking(i) for i in range(8)]
    expected = replies(in_process, tmp_path, requests)
    assert replies(open_model, tmp_path, requests) == expected


@EVERY
def test_order_and_company_change_no_reply(open_model: OpenModel, tmp_path: Path) -> None:
    requests = [asking(i) for i in range(24)]
    (tmp_path / "forwards").mkdir()
    (tmp_path / "backwards").mkdir()
    rates = {"refusal": 0.3, "empty": 0.2, "truncated": 0.2}
    forwards = replies(open_model, tmp_path / "forwards", requests, **rates)
    backwards = replies(open_model, tmp_path / "backwards", requests[::-1], **rates)
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 3


@EVERY
def test_the_key_names_a_decision_and_does_not_reach_the_model(open_model: OpenModel, tmp_path: Path) -> None:
    first = asking()
    again = replace(first, key=replace(first.key, round=2))
    one, other = replies(open_model, tmp_path, [first, again])
    assert one == other


@EVERY
@pytest.mark.parametrize(("fault", "finish_reason"), [("truncated", "length"), ("filtered", "filtered")])
def test_how_a_reply_ended_comes_through(open_model: OpenModel, tmp_path: Path, fault: str, finish_reason: str) -> None:
    (reply,) = replies(open_model, tmp_path, [asking()], **{fault: 1.0})
    assert reply.finish_reason == finish_reason


@EVERY
def test_any_unicode_is_taken(open_model: OpenModel, tmp_path: Path) -> None:
    for text in ("", "\0", "déjà 😀 \u202e", "a\r\nb\u2028c", "x" * 200_000):
        (reply,) = replies(open_model, tmp_path, [asking(text=text)])
        assert reply.finish_reason == "stop"


def test_wire_faults_are_outlived_by_the_stack(tmp_path: Path) -> None:
    requests = [asking(i) for i in range(60)]
    expected = replies(in_process, tmp_path, requests)
    got = replies(stacked, tmp_path, requests, server_error=0.1, dropped=0.1)
    assert got == expected

"""The models of a run, each with all that stands around it: price, journal, pacing or batch jobs, and who does what.

Pacing( journal( Charged( marked( provider ))))   one request at a time
        journal( batch jobs )                     half the price, within a day; they charge what a job brings
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, Self

from configs.errors import UserError
from data_gen.config import EvolveConfig, Gemini, OpenAICompatible, Provider, Simulated
from data_gen.llm import jobs_file
from data_gen.llm.batch import BatchChat
from data_gen.llm.batch_service import LostJobs
from data_gen.llm.budget import Account, Charged, Ledger
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest, Purpose, Spent
from data_gen.llm.journal import Journal
from data_gen.llm.pacing import Pacing
from data_gen.llm.pricing import Prices
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.llm.standstill import Standstill

if TYPE_CHECKING:
    from data_gen.llm.batch_openai import OpenAIBatchService
    from data_gen.llm.batch_vertex import VertexBatchService
    from data_gen.llm.gemini import GeminiChat
    from data_gen.llm.openai import OpenAIChat


class _Sent(Protocol):
    """The settings that every verb has which asks models."""

    @property
    def concurrency(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def requests_per_minute(self) -> float | None: ...
    @property
    def tokens_per_minute(self) -> float | None: ...
    @property
    def lost_jobs(self) -> LostJobs: ...


@dataclass(frozen=True, kw_only=True)
class Sending:
    """How requests are sent: how fast (see `Pacing`), and whether what a lost batch job was asked is asked again."""

    concurrency: int
    max_attempts: int
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    lost_jobs: LostJobs = "stop"

    @classmethod
    def of(cls, config: _Sent) -> Self:
        return cls(
            concurrency=config.concurrency,
            max_attempts=config.max_attempts,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            lost_jobs=config.lost_jobs,
        )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What a run asks: `model` passes each request on to whoever has its purpose; `models` are all, by role."""

    model: ChatModel
    ledger: Ledger
    standstill: Standstill
    pacings: tuple[Pacing, ...]
    batches: tuple[BatchChat, ...]
    models: Mapping[str, ChatModel] = field(default_factory=dict)


Roles = Mapping[str, Provider]
"""Who does what: by the purpose of requests, or by where in the config a provider stands, such as models.gemini."""

_SETTING: Mapping[str, str] = MappingProxyType({"answer": "answerer", "judge": "judge"})
"""Where a provider stands that is not `llm`."""


JUDGED: tuple[Purpose, ...] = ("difficulty", "rank", "contamination")
"""What is asked of the finished records."""


def cast(config: EvolveConfig) -> Roles:
    """Who does what in a run."""
    answerer, judge = config.answerer or config.llm, config.judge or config.llm
    return {
        "evolve": config.llm,
        "answer": answerer,
        "judge": judge,
        "difficulty": judge,
        "rank": judge,
        "contamination": judge,
    }


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The providers of a run, with their keys and prices found; nothing was sent yet."""

    providers: Roles
    prices: Mapping[Provider, Prices]
    clients: Mapping[Provider, OpenAIChat | GeminiChat]
    services: Mapping[Provider, OpenAIBatchService | VertexBatchService]


def prepare(providers: Roles, *, models: Sequence[str] = ()) -> Prepared:
    """Finds keys and prices; `models` are those of a mixture, which the first provider serves beside its own.

    Raises:
      UserError: no key or credentials, an address that is none, or no price.
    """
    prices: dict[Provider, Prices] = {}
    clients: dict[Provider, OpenAIChat | GeminiChat] = {}
    services: dict[Provider, OpenAIBatchService | VertexBatchService] = {}
    for role, provider in providers.items():
        if provider in prices:
            continue
        setting = _SETTING.get(role, role if "." in role else "llm")
        prices[provider] = Prices(provider, models=() if prices else models, setting=setting)
        if isinstance(provider, Simulated):
            continue
        if provider.batch is None:
            clients[provider] = _client(provider, setting=setting)
        else:
            services[provider] = _service(provider, setting=setting)
    return Prepared(providers=providers, prices=prices, clients=clients, services=services)


@contextlib.asynccontextmanager
async def open_stack(prepared: Prepared, *, journal: Journal, ledger: Ledger, sending: Sending) -> AsyncIterator[Stack]:
    """Opens each provider once, whatever it is there for, and closes it in the end.

    Raises:
      UserError: batch jobs are under way of which these providers know nothing.
    """
    await _account_for_jobs(prepared, journal=journal, ledger=ledger, lost_jobs=sending.lost_jobs)
    standstill = Standstill()
    ledger.while_waiting = standstill.standing
    opened: dict[Provider, ChatModel] = {}
    pacings: list[Pacing] = []
    batches: list[BatchChat] = []
    # Clients are closed last, when what is on the wire has come home; batch jobs go on without us.
    async with contextlib.AsyncExitStack() as clients, _drained(journal), contextlib.AsyncExitStack() as jobs:
        for provider, prices in prepared.prices.items():
            model: ChatModel
            if not isinstance(provider, Simulated) and provider.batch is not None:
                batch = BatchChat(
                    await clients.enter_async_context(prepared.services[provider]),
                    journal=journal,
                    account=Account(prices=prices, ledger=ledger),
                    standstill=standstill,
                    limits=provider.batch,
                    lost_jobs=sending.lost_jobs,
                )
                batches.append(await jobs.enter_async_context(batch))
                model = journal.wrap(batch, saves="none")
            else:
                if isinstance(provider, Simulated):
                    model = SimulatedChatModel(provider)
                else:
                    model = await clients.enter_async_context(prepared.clients[provider])
                model = Pacing(
                    journal.wrap(Charged(journal.marked(model), prices=prices, ledger=ledger)),
                    concurrency=sending.concurrency,
                    max_attempts=sending.max_attempts,
                    requests_per_minute=sending.requests_per_minute,
                    tokens_per_minute=sending.tokens_per_minute,
                    known=journal.known,
                )
                pacings.append(model)
            opened[provider] = model
        models = {role: opened[provider] for role, provider in prepared.providers.items()}
        yield Stack(
            model=_ByPurpose(models),
            models=models,
            ledger=ledger,
            standstill=standstill,
            pacings=tuple(pacings),
            batches=tuple(batches),
        )


async def _account_for_jobs(prepared: Prepared, *, journal: Journal, ledger: Ledger, lost_jobs: LostJobs) -> None:
    """Jobs that were begun with other settings are paid for, and nobody would wait for them."""
    services = [service.address for service in prepared.services.values()]
    elsewhere = journal.read(partial(jobs_file.elsewhere, services=services))
    if not elsewhere:
        return
    if lost_jobs == "stop":
        where = "; ".join(f"{count:,} requests at {service}" for service, count in elsewhere.items())
        raise UserError(
            f"batch jobs of this run are under way with other settings: {where}. Start it with those (llm.batch, its "
            "bucket, llm.base_url, llm.project, llm.location) to get what they answer; lost_jobs=ask_again gives them "
            "up, and asks anew, and may pay again, for what they were to answer"
        )
    jobs = [job for service in elsewhere for job in journal.read(partial(jobs_file.open_jobs, service=service))]
    lost: dict[str, Spent] = {}
    for job in jobs:
        lost |= journal.read(partial(jobs_file.unanswered, job=job))
    await journal.lose(lost, also=partial(jobs_file.give_up, jobs=jobs))
    for reserved in lost.values():
        ledger.hold(reserved)
        ledger.assume(reserved)


@contextlib.asynccontextmanager
async def _drained(journal: Journal) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await journal.drain()


def _client(provider: OpenAICompatible | Gemini, *, setting: str) -> OpenAIChat | GeminiChat:
    """Whoever answers over HTTP; the client libraries take seconds to import, so only those who need one do."""
    if isinstance(provider, OpenAICompatible):
        from data_gen.llm.openai import OpenAIChat

        return OpenAIChat(provider, setting=setting)
    from data_gen.llm.gemini import GeminiChat

    return GeminiChat(provider, setting=setting)


def _service(provider: OpenAICompatible | Gemini, *, setting: str) -> OpenAIBatchService | VertexBatchService:
    if isinstance(provider, OpenAICompatible):
        from data_gen.llm.batch_openai import OpenAIBatchService

        return OpenAIBatchService(provider, setting=setting)
    from data_gen.llm.batch_vertex import VertexBatchService

    return VertexBatchService(provider, setting=setting)


@dataclass(frozen=True)
class _ByPurpose:
    """A `ChatModel` that passes each request on to whoever has its purpose."""

    models: Mapping[str, ChatModel]

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self.models[request.key.purpose].complete(request)

"""Every client of a hosted model, with each kind of its credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest

from data_gen.config import Gemini, OpenAICompatible
from data_gen.llm.chat import ChatModel
from data_gen.llm.gemini import GeminiChat
from data_gen.llm.openai import OpenAIChat


class Open(Protocol):
    """Opens a client of the server at `address`."""

    def __call__(self, address: str, *, timeout_seconds: float = 10.0) -> AbstractAsyncContextManager[ChatModel]: ...


@asynccontextmanager
async def openai(address: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[ChatModel]:
    config = OpenAICompatible(
        model="m", base_url=f"{address}/v1", api_key_env="NO_SUCH_KEY", timeout_seconds=timeout_seconds
    )
    async with OpenAIChat(config) as chat:
        yield chat


@asynccontextmanager
async def openai_by_google_credentials(address: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[ChatModel]:
    async def token() -> str:
        return "a-token"

    config = OpenAICompatible(
        model="m", base_url=f"{address}/v1", credentials="google", timeout_seconds=timeout_seconds
    )
    async with OpenAIChat(config, token=token) as chat:
        yield chat


@asynccontextmanager
async def gemini_on_vertex(address: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[ChatModel]:
    async with GeminiChat(Gemini(model="m", base_url=address, timeout_seconds=timeout_seconds)) as chat:
        yield chat


@asynccontextmanager
async def gemini_on_ai_studio(address: str, *, timeout_seconds: float = 10.0) -> AsyncIterator[ChatModel]:
    config = Gemini(model="m", platform="ai_studio", base_url=address, timeout_seconds=timeout_seconds)
    async with GeminiChat(config) as chat:
        yield chat


EVERY = pytest.mark.parametrize(
    "client",
    [openai, openai_by_google_credentials, gemini_on_vertex, gemini_on_ai_studio],
    ids=lambda function: function.__name__,
)

"""A tiny model with random weights that says something, and a server of it on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax

from wizard_jax.chat import get_format
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.weights import prepared
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.serve.app import Limits
from wizard_jax.serve.server import Serving, made_scheduler, serving
from wizard_jax.tokenizer import train_tokenizer

WORDS = "the owl and fox say no number one two three sort list reverse it then count words of that".split()
TEXTS = [f"{one} {two} {three}." for one in WORDS for two in WORDS[::3] for three in WORDS[::5]]
SECONDS = 120
"""That a test may take, on a machine that does much else."""
LIMITS = Limits(rows=4, length=128, queue=128, body_bytes=20_000)


def make_speaker(folder: Path, *, chat_format: str = "wizardlm_7b", max_positions: int = 128) -> Speaker:
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer.model", vocab_size=340)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=24,
        max_positions=max_positions,
        initializer_range=0.6,
    )
    params = jax.jit(lambda key: decoder.init_params(config, key=key))(jax.random.key(1))
    return Speaker(
        name="tiny",
        params=prepared(params, config=config),
        config=config,
        tokenizer=tokenizer,
        chat_format=get_format(chat_format),
    )


@contextlib.asynccontextmanager
async def asked(speaker: Speaker, limits: Limits = LIMITS) -> AsyncIterator[tuple[Serving, httpx.AsyncClient]]:
    """A server, and a client of it that shows no proxy and no token."""
    most = httpx.Limits(max_connections=200)
    async with (
        asyncio.timeout(SECONDS),
        serving(made_scheduler(speaker, limits=limits), limits=limits) as server,
        httpx.AsyncClient(base_url=server.address, timeout=120, trust_env=False, limits=most) as client,
    ):
        yield server, client


@contextlib.contextmanager
def served_in_a_thread(speaker: Speaker, limits: Limits = LIMITS) -> Iterator[Serving]:
    """For clients that know no event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = serving(made_scheduler(speaker, limits=limits), limits=limits)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def until(holds: Callable[[], bool]) -> None:
    """Waits until it holds; a test's own time limit ends that."""
    for _ in range(100 * SECONDS):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not come to that")


def greedy(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}

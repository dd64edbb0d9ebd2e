"""`wizard serve`: compiles, listens, answers, and stops when it is told to.

Told to stop (SIGTERM or Ctrl-C), it answers what it has begun, refuses what is new with 503, and ends with 0: it has
done its work. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import jax
from aiohttp import web

from configs.errors import UserError
from configs.interrupt import stop_flag
from wizard_jax.generate.scheduler import Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.progress import say, show_progress
from wizard_jax.serve.app import Limits, Service, is_loopback

TOKEN = "WIZARD_SERVE_TOKEN"
"""The environment variable of the token that requests must show."""
_LOOK_SECONDS = 0.05
_SILENT = logging.Logger("aiohttp", logging.CRITICAL)  # it logs a traceback of every malformed request
_CLOSE_SECONDS = 0.5  # what was begun is answered by then, or is not to be


class ServeError(UserError):
    """An address that can not be served at, or limits that make no sense."""


@dataclass(frozen=True)
class Serving:
    """A server that listens."""

    address: str
    service: Service


def token_for(host: str) -> str:
    """The token that requests to `host` must show. Raises ServeError: others can reach it, and there is none."""
    token = os.environ.get(TOKEN, "").strip()
    if not token and not is_loopback(host):
        raise ServeError(
            f"--host {host}: others can reach it, so requests must show a token: set {TOKEN} (openssl rand -hex 32 "
            "makes one), or leave --host out to serve this machine only"
        )
    if not (token.isascii() and token.isprintable()):
        raise ServeError(f"{TOKEN} holds what no HTTP header can carry: use letters and digits")
    return token


def check_address(host: str, port: int) -> None:
    """Raises ServeError: requests there must show a token, and there is none, or it can not be listened on."""
    token_for(host)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server's own
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise _unusable(host, port, error) from None


def _unusable(host: str, port: int, error: Exception) -> ServeError:
    return ServeError(f"{host}:{port} can not be listened on: {error}; choose another --port")


def made_scheduler(speaker: Speaker, *, limits: Limits, mesh: jax.sharding.Mesh | None = None) -> Scheduler:
    """Raises ServeError: a limit that is none, or a length that the model does not have."""
    for name in ("rows", "length", "body_bytes"):
        if getattr(limits, name) < 1:
            raise ServeError(f"--{name.replace('_', '-')} {getattr(limits, name)}: must be at least 1")
    if limits.queue < 0:
        raise ServeError(f"--queue {limits.queue}: must be 0 or more")
    if not 1 < limits.length <= speaker.config.max_positions:
        raise ServeError(
            f"--length {limits.length}: must be 2 or more, and at most the model's max_positions, "
            f"{speaker.config.max_positions}"
        )
    return Scheduler(speaker, rows=limits.rows, length=limits.length, queue=limits.queue, mesh=mesh)


@contextlib.asynccontextmanager
async def serving(
    scheduler: Scheduler, *, limits: Limits, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Serving]:
    """Listens while it is entered; port 0 is one that is free. Raises ServeError."""
    token = token_for(host)
    with scheduler:
        service = Service(speaker=scheduler.speaker, scheduler=scheduler, limits=limits, token=token)
        runner = web.AppRunner(
            service.app(),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            logger=_SILENT,
            shutdown_timeout=_CLOSE_SECONDS,
        )
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port, backlog=1024).start()
            except (OSError, OverflowError) as error:
                raise _unusable(host, port, error) from None
            chosen = runner.addresses[0][1]
            yield Serving(f"http://{f'[{host}]' if ':' in host else host}:{chosen}", service)
        finally:
            await runner.cleanup()


async def until_stopped(service: Service, stop: asyncio.Event) -> None:
    """Waits until it is told to stop, or has failed, and what was begun is answered. Raises what it failed with."""
    while not stop.is_set():
        _raise_failure(service)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=_LOOK_SECONDS)
    service.stopping = True
    while service.answering:
        _raise_failure(service)
        await asyncio.sleep(_LOOK_SECONDS)


def _raise_failure(service: Service) -> None:
    if service.scheduler.failure is not None:
        raise service.scheduler.failure


def run_server(
    speaker: Speaker,
    *,
    limits: Limits,
    host: str,
    port: int,
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; says the address once it listens. Raises ServeError; Interrupted: told to stop
    before that."""
    scheduler = made_scheduler(speaker, limits=limits, mesh=mesh)
    # A signal that is an exception amid a compilation makes the process crash when it ends.
    with stop_flag() as flag, show_progress("compile") as progress:

        def told(done: int, total: int, facts: Mapping[str, int | str | float]) -> None:
            flag.raise_if_set()
            progress(done, total, facts)

        scheduler.compile(told)

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def told() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)  # so that the next one ends it at once

        async with serving(scheduler, limits=limits, host=host, port=port) as server:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, told)
            say(
                f"{speaker.name} listens on {server.address}/v1 ({limits.rows} answers at a time, of up to "
                f"{limits.length:,} tokens with their prompts); Ctrl-C stops it"
            )
            await until_stopped(server.service, stop)
        say("stopped; what had been asked is answered")

    asyncio.run(serve())

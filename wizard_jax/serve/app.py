"""The HTTP side: what comes in over aiohttp goes to the scheduler, and what it delivers goes out."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web

from configs.errors import UserError
from wizard_jax.generate.engine import Chances, Said
from wizard_jax.generate.scheduler import Failed, Full, Job, Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.serve.answers import Envelope
from wizard_jax.serve.choices import Choice, chat_choices, text_choices, with_echo
from wizard_jax.serve.requests import ChatBody, Refused, TextBody, read_body

BODY_SECONDS = 30.0
"""In which the body of a request must have come."""
READ_SECONDS = 30.0
"""In which a client must read on; one that does not would hold its connection, and the server's end, for ever."""
RETRY_SECONDS = 1
_LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Event = Said | Chances | Failed


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server takes."""

    rows: int = 8
    """Answers at the same time, in each of its shapes."""
    length: int = 2048
    """Tokens of a prompt and its answer together."""
    queue: int = 128
    """Answers that may wait for a row."""
    body_bytes: int = 4 * 2**20


@dataclass(kw_only=True)
class Service:
    """One model over HTTP."""

    speaker: Speaker
    scheduler: Scheduler
    limits: Limits
    token: str = ""
    """That every request must show; '' on a loopback address, where none need."""
    stopping: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    answering: int = 0
    """Requests that are being answered."""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._in_our_words, self._allowed], client_max_size=self.limits.body_bytes)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_get("/health", self._health)
        return app

    @web.middleware
    async def _in_our_words(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as OpenAI's clients read them."""
        try:
            return await handler(request)
        except Refused as refused:
            answer = refused
        except UserError as error:
            answer = Refused(str(error))
        except web.HTTPRequestEntityTooLarge:
            answer = Refused(f"the body is larger than {self.limits.body_bytes:,} bytes", status=413)
        except web.HTTPError as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            answer = Refused(f"{request.method} {request.path}: {error.reason}", status=error.status, headers=headers)
        except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as error:
            answer = Refused(f"the body can not be read: {getattr(error, 'message', '') or error}")
        except TimeoutError:
            answer = Refused(f"the body did not come within {BODY_SECONDS:.0f} seconds", status=408)
        except ConnectionError:
            raise  # who asked is gone
        except Exception:  # a mistake of ours ends this request, and no other; aiohttp answers 500
            _LOG.exception("%s %s", request.method, request.path)
            raise
        return web.json_response(answer.body, status=answer.status, headers=dict(answer.headers))

    @web.middleware
    async def _allowed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/health":
            return await handler(request)
        if self.token:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, self.token.encode()):
                raise Refused("the token is missing or wrong", status=401, code="invalid_api_key")
        elif not _names_this_machine(request.host):
            # A page in a browser can make a name of its own point here, and would then be let in.
            raise Refused(f"{request.host!r} is not this server: ask it by a loopback address", status=403)
        if self.stopping:
            raise Refused("the server is stopping", status=503, headers={"Retry-After": "10"})
        return await handler(request)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        state = "stopping" if self.stopping else "failed" if self.scheduler.failure else "ok"
        body = {"status": state, "unfinished": self.scheduler.unfinished}
        return web.json_response(body, status=200 if state == "ok" else 503)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"object": "list", "data": [self._described()]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self._check_name(request.match_info["name"])
        return web.json_response(self._described())

    def _described(self) -> dict[str, Any]:
        name, length = self.speaker.name, self.limits.length
        return {"id": name, "object": "model", "created": self.started, "owned_by": "wizard", "max_model_len": length}

    def _check_name(self, name: str) -> None:
        if name != self.speaker.name:
            message = f"there is no model {name!r} here: this server has {self.speaker.name!r}"
            raise Refused(message, status=404, param="model", code="model_not_found")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = read_body(await _body(request), ChatBody)
        self._check_name(body.model)
        self._check_count(body.n, param="n")
        return await self._answer(request, body, lambda: chat_choices(body, self.speaker, length=self.limits.length))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = read_body(await _body(request), TextBody)
        self._check_name(body.model)
        is_scored = body.echo and body.logprobs is not None
        self._check_count(body.n * len(body.prompt) * (2 if is_scored else 1), param="prompt")
        return await self._answer(request, body, lambda: text_choices(body, self.speaker, length=self.limits.length))

    def _check_count(self, count: int, *, param: str) -> None:
        """Refuses for good what would find the queue full for ever; a prompt that is scored counts twice."""
        most = self.limits.rows + self.limits.queue
        if count > most:
            message = f"the request asks for {count} answers, and this server takes {most} at a time: ask for fewer"
            raise Refused(message, param=param)

    async def _answer(
        self, request: web.Request, body: ChatBody | TextBody, made: Callable[[], list[Choice]]
    ) -> web.StreamResponse:
        kind: Literal["chat", "text"] = "chat" if isinstance(body, ChatBody) else "text"
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        envelope = Envelope(
            kind=kind, id=prefix + secrets.token_hex(12), created=int(time.time()), model=self.speaker.name
        )
        self.answering += 1
        try:
            choices = await asyncio.to_thread(made)  # a long text takes seconds, in which others go on
            async with contextlib.aclosing(self._events(choices, shown=body.stream)) as events:
                if body.stream:
                    return await _streamed(request, envelope, choices, events, body)
                scores = {}
                async for choice, event in events:
                    if isinstance(event, Chances):
                        scores[choice.index] = event
                    else:
                        choice.hear(event)
                for choice in choices:
                    if choice.index in scores:
                        with_echo(choice, scores[choice.index])
                return web.json_response(envelope.whole(choices))
        finally:
            self.answering -= 1

    async def _events(
        self, choices: Sequence[Choice], *, shown: bool
    ) -> AsyncGenerator[tuple[Choice, Said | Chances], None]:
        """What is said, as it is said, until all is; leaving it earlier frees the rows."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[Choice, Event]] = asyncio.Queue()
        jobs: dict[int, Job] = {}
        scoring: list[Job] = []

        def deliver(choice: Choice) -> Callable[[Event], None]:
            def put(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who asked
                    loop.call_soon_threadsafe(queue.put_nowait, (choice, event))

            return put

        for choice in choices:
            if choice.is_scored:
                scoring.append(Job(what=choice.prompt, deliver=deliver(choice)))
            if choice.ask is not None:
                jobs[choice.index] = Job(what=choice.ask, deliver=deliver(choice), shown=shown)
        try:
            self.scheduler.submit([*scoring, *jobs.values()])
        except Full:
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise Refused("too many requests wait", status=429, code="rate_limit_exceeded", headers=headers) from None
        left_to_score = len(scoring)
        try:
            while jobs or left_to_score:
                choice, event = await queue.get()
                if isinstance(event, Failed):
                    raise Refused("the server has failed", status=500)
                if isinstance(event, Chances):
                    left_to_score -= 1
                elif choice.index not in jobs:
                    continue  # it was cut at a stop string
                yield choice, event
                if isinstance(event, Said) and choice.ended:
                    self.scheduler.cancel([jobs.pop(choice.index)])
        finally:
            self.scheduler.cancel([*scoring, *jobs.values()])


async def _streamed(
    request: web.Request,
    envelope: Envelope,
    choices: Sequence[Choice],
    events: AsyncGenerator[tuple[Choice, Said | Chances], None],
    body: ChatBody | TextBody,
) -> web.StreamResponse:
    """Server-sent events, sent from the first of them on, so that a refusal before it is an answer of its own."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    begun: set[int] = set()

    async def send(part: dict[str, Any] | str) -> None:
        if not response.prepared:
            await response.prepare(request)
        data = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        try:
            async with asyncio.timeout(READ_SECONDS):
                await response.write(f"data: {data}\n\n".encode())
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("who asked reads nothing") from None

    try:
        async for choice, event in events:
            assert isinstance(event, Said)
            text, tokens = choice.hear(event)
            if text or tokens or choice.ended:
                await send(envelope.part(choice, text, tokens, first=choice.index not in begun))
                begun.add(choice.index)
    except Refused as refused:
        if not response.prepared:
            raise
        await send(refused.body)
        return response
    if body.stream_options.include_usage:
        await send(envelope.last(choices))
    await send("[DONE]")
    await response.write_eof()
    return response


async def _body(request: web.Request) -> bytes:
    """Raises Refused: not sent as JSON, which pages of other sites can not do without asking."""
    if request.content_type != "application/json":
        raise Refused(f"Content-Type is {request.content_type}: send application/json", status=415)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("Content-Encoding: send the body as it is", status=415)  # a small body may hide a large one
    async with asyncio.timeout(BODY_SECONDS):
        return await request.read()


def _names_this_machine(host: str) -> bool:
    name = (host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host).lower()
    return name == "localhost" or is_loopback(name.strip("[]"))


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

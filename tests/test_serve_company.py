"""What clients and networks do to a server: it tells them apart, and goes on for the others."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
from typing import Any

import httpx
import openai
import pytest
from speaking import asked, greedy, make_speaker, served_in_a_thread, until

from configs.interrupt import Interrupted
from wizard_jax.generate.speaker import Speaker
from wizard_jax.serve import app
from wizard_jax.serve.app import Limits
from wizard_jax.serve.server import run_server
from wizard_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


def test_what_the_openai_client_was_answered_can_be_sent_back_as_it_is(speaker: Speaker) -> None:
    with served_in_a_thread(speaker) as server:
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", http_client=http, max_retries=0) as client:
            turns: list[Any] = [{"role": "user", "content": "say one"}]
            told = {"model": "tiny", "temperature": 0, "max_tokens": 6}
            turns.append(client.chat.completions.create(**told, messages=turns).choices[0].message)
            turns.append({"role": "user", "content": "then two"})
            second = client.chat.completions.create(**told, messages=turns)
            plain = [turns[0], {"role": "assistant", "content": turns[1].content, "annotations": []}, turns[2]]
            assert client.chat.completions.create(**told, messages=plain).choices == second.choices
            call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
            turns[1] = {"role": "assistant", "content": "x", "tool_calls": [call]}
            with pytest.raises(openai.BadRequestError, match="tool_calls is not supported"):
                client.chat.completions.create(**told, messages=turns)


def test_others_are_answered_while_a_long_text_is_read(speaker: Speaker) -> None:
    goes_on = threading.Event()
    in_time: list[bool] = []

    class Slow(Tokenizer):
        """Takes as long as the test wants."""

        def __init__(self) -> None:
            self._engine = speaker.tokenizer._engine

        def encode(self, text: str) -> list[int]:
            in_time.append(goes_on.wait(10))
            return super().encode(text)

    async def run() -> None:
        async with asked(dataclasses.replace(speaker, tokenizer=Slow())) as (server, client):
            slow = asyncio.create_task(client.post("/v1/completions", json={"model": "tiny", "prompt": "one"}))
            await until(lambda: server.service.answering > 0)
            assert (await client.get("/health")).status_code == 200
            goes_on.set()
            assert (await slow).status_code == 200
            assert in_time == [True]

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["tls", "no HTTP", "no host", "long", "length"],
)
def test_what_is_no_http_is_refused_without_a_word_in_the_log(
    speaker: Speaker, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async def run() -> None:
        async with asked(speaker) as (server, client):
            reader, writer = await asyncio.open_connection(*server.address.removeprefix("http://").split(":"))
            writer.write(sent)
            assert b" 400 Bad Request" in await reader.readline()
            writer.close()
            assert (await client.get("/health")).status_code == 200

    asyncio.run(run())
    assert not caplog.records


def test_who_reads_nothing_holds_up_nobody(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is said than buffers hold, to a client that reads none of it: its connection ends."""
    monkeypatch.setattr(app, "READ_SECONDS", 0.3)
    body = greedy("one", n=60, max_tokens=100, logprobs=True, top_logprobs=20, stream=True) | {"temperature": 2.0}

    async def run() -> None:
        async with asked(speaker) as (server, client):
            host, port = server.address.removeprefix("http://").split(":")
            with socket.socket() as silent:
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                silent.connect((host, int(port)))
                content = json.dumps(body).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                silent.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
                await until(lambda: server.service.answering == 1)
                answer = await client.post("/v1/chat/completions", json=greedy("one", max_tokens=3))
                assert answer.status_code == 200
                await until(lambda: not server.service.answering)
                received = b""
                with contextlib.suppress(ConnectionResetError):
                    while more := silent.recv(1 << 20):
                        received += more
                assert received.startswith(b"HTTP/1.1 200 OK")
                assert b"[DONE]" not in received
            assert not server.service.scheduler.unfinished

    asyncio.run(run())


def test_an_end_at_once_waits_for_no_answer(speaker: Speaker) -> None:
    async def run() -> None:
        async with asked(speaker, Limits(rows=1, length=128, queue=64)) as (server, client):
            long = greedy("two", max_tokens=100, n=60)
            request = asyncio.create_task(client.post("/v1/chat/completions", json=long))
            await until(lambda: server.service.answering > 0)
            began = time.monotonic()
        assert time.monotonic() - began < 4
        with pytest.raises(httpx.HTTPError):
            await request

    asyncio.run(run())


def test_told_to_stop_while_it_compiles_it_ends_between_two_programs(speaker: Speaker) -> None:
    told = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    told.start()
    with pytest.raises(Interrupted) as stopped:
        run_server(speaker, limits=Limits(rows=2, length=120), host="127.0.0.1", port=0)
    assert stopped.value.exit_code == 42

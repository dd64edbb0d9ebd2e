"""The simulated model over HTTP: the wire format, keyed faults, limits, and an end on SIGTERM."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from raw_http import Answer, exchange, post, served

from configs.errors import UserError
from data_gen.config import Faults, Simulated
from data_gen.judging.wording import Comparison, prompt
from data_gen.llm.chat import ChatRequest, Message, RequestKey
from data_gen.llm.server import SimulatedServer, openai_wire
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Incoming, Route
from data_gen.llm.server.service import Conduct, Service
from data_gen.llm.simulated import NAME, SimulatedChatModel
from wizard_jax.cli import main


def asked(text: str = "Why?", **more: object) -> dict[str, object]:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], **more}


def test_a_completion_says_what_the_model_in_process_says() -> None:
    request = ChatRequest(
        key=RequestKey("elsewhere", 3, "judge"),
        model="any",
        messages=(Message("system", "be brief"), Message("user", "Write a poem about the sea.")),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=5,
    )
    expected = asyncio.run(SimulatedChatModel(Simulated()).complete(request))
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    ((status, _, body),), server = served(post(asked(messages=messages, seed=5)))
    said = json.loads(body)
    assert status == 200
    assert said["object"] == "chat.completion"
    assert said["model"] == NAME == expected.model
    assert said["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": expected.text}, "finish_reason": "stop"}
    ]
    assert said["usage"] == {
        "prompt_tokens": expected.input_tokens,
        "completion_tokens": expected.output_tokens,
        "total_tokens": expected.input_tokens + expected.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (server.requests, server.full_replies) == (1, 1)


def test_one_connection_carries_many_requests() -> None:
    answers, server = served(post(asked("a")) + post(asked("b")) + post(asked("c"), close=True) + post(asked("d")))
    assert [status for status, _, _ in answers] == [200, 200, 200]  # the third asked to close
    assert server.full_replies == 3


def chunked(body: object, size: int) -> bytes:
    content = json.dumps(body).encode()
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    framed = b"".join(b"%x;note=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + framed + b"0\r\nTrailer: yes\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_body_in_chunks_is_the_same_body(size: int) -> None:
    answers, server = served(chunked(asked("one"), size) + post(asked("one")))
    (first, second) = (json.loads(body)["choices"] for _, _, body in answers)
    assert first == second
    assert server.full_replies == 2


def test_a_request_that_arrives_byte_by_byte_is_read_as_one_that_arrives_at_once() -> None:
    raw = chunked(asked("one"), 5) + post(asked("two"))
    routes = openai_wire.routes(Service(Simulated(), Conduct()))

    def read(pieces: list[bytes]) -> list[HttpRequest]:
        requests = []
        incoming = Incoming(routes, continued=lambda: None)
        reading = incoming.next_request()
        for piece in pieces:
            incoming.received += piece
            while True:
                try:
                    next(reading)
                except StopIteration as whole:
                    requests.append(whole.value.request)
                    reading = incoming.next_request()
                else:
                    break
        assert not incoming.received
        return requests

    at_once = read([raw])
    assert [json.loads(request.body)["messages"][0]["content"] for request in at_once] == ["one", "two"]
    assert read([raw[at : at + 1] for at in range(len(raw))]) == at_once


def test_a_client_that_goes_away_and_a_server_that_closes_end_a_connection_in_silence() -> None:
    async def run() -> bytes:
        arrived, go_on = asyncio.Queue[str](), asyncio.Event()

        async def wait(request: HttpRequest) -> HttpAnswer:
            arrived.put_nowait(request.path)
            await go_on.wait()
            return HttpAnswer()

        def form(_: Service) -> list[Route]:
            return [Route("GET", "/{name}", wait, refusal=openai_wire.refusal)]

        async with SimulatedServer(Simulated(), formats=[form]) as server:
            _, gone = await asyncio.open_connection("127.0.0.1", server.port)
            gone.write(b"GET /gone HTTP/1.1\r\n\r\n")
            assert await arrived.get() == "/gone"
            gone.transport.abort()
            go_on.set()
            ((status, _, _),) = await exchange(server, b"GET /there HTTP/1.1\r\n\r\n")
            assert (status, await arrived.get()) == (200, "/there")
            go_on.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /waits HTTP/1.1\r\n\r\n")
            assert await arrived.get() == "/waits"
        try:
            return await asyncio.wait_for(reader.read(), timeout=5.0)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    assert asyncio.run(run()) == b""


def test_a_format_of_its_own_sees_parameters_query_headers_and_larger_bodies() -> None:
    seen: list[HttpRequest] = []

    async def keep(request: HttpRequest) -> HttpAnswer:
        seen.append(request)
        return HttpAnswer(status=201, headers={"location": "here"})

    def form(_: Service) -> list[Route]:
        path = "/upload/{bucket}/o/{name...}"
        return [Route("PUT", path, keep, refusal=openai_wire.refusal, most_body_bytes=16 * 2**20)]

    async def run() -> list[Answer]:
        async with SimulatedServer(Simulated(), formats=[form]) as server:
            body = b"x" * (9 * 2**20)
            head = b"PUT /upload/b%2F1/o/a/c%20d?uploadType=media&name=%26&empty= HTTP/1.1\r\n"
            head += b"X-Upload: 7\r\nExpect: 100-continue\r\nContent-Length: 9437184\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
            assert b"location: here\r\n" in answer
            return await exchange(server, post(b"", path="/upload/b/o/n"))

    ((status, _, body),) = asyncio.run(run())
    assert status == 405
    assert "use PUT" in json.loads(body)["error"]["message"]
    (request,) = seen
    assert request.path == "/upload/b%2F1/o/a/c%20d"
    assert request.parameters == {"bucket": "b/1", "name": "a/c d"}
    assert request.query == {"uploadType": "media", "name": "&", "empty": ""}
    assert request.headers["x-upload"] == "7"
    assert len(request.body) == 9 * 2**20


def test_a_request_of_a_batch_is_answered_as_it_is_online() -> None:
    async def run() -> tuple[Answer, tuple[int, dict[str, Any]], tuple[int, dict[str, Any]]]:
        async with SimulatedServer(Simulated(faults=Faults(truncated=0.5, filtered=0.5))) as server:
            (online,) = await exchange(server, post(asked("one", seed=4)))
            batched = await openai_wire.answer_one(asked("one", seed=4), service=server.service, number=7)
            return online, batched, await openai_wire.answer_one({"model": NAME}, service=server.service, number=8)

    (_, _, body), (status, batched), refused = asyncio.run(run())
    online = json.loads(body)
    assert (status, batched["choices"], batched["usage"]) == (200, online["choices"], online["usage"])
    assert refused[0] == 400
    assert "messages" in refused[1]["error"]["message"]


def test_the_list_of_models_names_the_simulation() -> None:
    ((status, _, body),), server = served(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == [NAME]
    assert (server.requests, server.full_replies) == (0, 0)


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"nonsense\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/1.1\r\n\r\n", 404, "/v1/chat/completions"),
        (b"GET /v1/chat/completions HTTP/1.1\r\n\r\n", 405, "use POST"),
        (post({}, path="/v1/models"), 405, "use GET"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "chunked"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "no length"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}}\r\n", 400, "longer than"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff0\r\n", 413, "longer than"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "no number"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9999999999999\r\n\r\n", 413, "longer than"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431, "headers"),
        (post(b"{"), 400, "no JSON"),
        (post(b"[" * 100_000), 400, "no JSON"),
        (post([]), 400, "no JSON object"),
        (post(asked(model=None)), 400, "model"),
        (post({"model": "m"}), 400, "messages"),
        (post(asked(messages=[])), 400, "messages"),
        (post(asked(messages=[{"role": "judge", "content": "?"}])), 400, "messages[0]"),
        (post(asked(messages=[{"role": "user", "content": ["?"]}])), 400, "messages[0]"),
        (post(asked(temperature="hot")), 400, "temperature"),
        (post(asked(top_p=1.5)), 400, "top_p"),
        (post(asked(max_tokens=0)), 400, "max_tokens"),
        (post(asked(seed=True)), 400, "seed"),
        (post(asked(seed=1.5)), 400, "seed"),
        (post(asked(n=2)), 400, "n must be 1"),
        (post(asked(stream=True)), 400, "stream"),
    ],
)
def test_a_bad_request_gets_an_error_object(raw: bytes, status: int, says: str) -> None:
    answers, server = served(raw)
    ((got, headers, body),) = answers
    problem = json.loads(body)["error"]
    assert got == status
    assert says in problem["message"]
    assert problem["type"] == "invalid_request_error"
    assert headers["connection"] == "close"
    assert server.full_replies == 0


FAULTS = Faults(malformed=0.15, rate_limited=0.15, server_error=0.15, dropped=0.15)


def outcomes_of(texts: list[str], *, seed: int) -> dict[str, list[object]]:
    """What became of each text, in the order in which it came."""

    async def run() -> dict[str, list[object]]:
        outcomes: dict[str, list[object]] = {}
        async with SimulatedServer(Simulated(faults=FAULTS), conduct=Conduct(seed=seed, latency_seconds=0.0)) as server:
            for text in texts:
                answers = await exchange(server, post(asked(text), close=True))
                outcome = (
                    (answers[0][0], answers[0][1].get("retry-after"), readable(answers[0][2])) if answers else None
                )
                outcomes.setdefault(text, []).append(outcome)
        return outcomes

    return asyncio.run(run())


def readable(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["choices"][0]["message"]["content"], str)
    except (ValueError, KeyError, TypeError, IndexError):
        return False


def test_faults_depend_on_content_and_arrival_and_seed_but_not_on_order() -> None:
    texts = [f"question {i % 50}" for i in range(150)]
    forwards, backwards = outcomes_of(texts, seed=1), outcomes_of(texts[::-1], seed=1)
    assert forwards == backwards
    assert forwards != outcomes_of(texts, seed=2)
    drawn = [outcome for outcomes in forwards.values() for outcome in outcomes]
    for kind in (None, (200, None, True), (200, None, False), (429, "1", False), (429, None, False)):
        assert kind in drawn
    assert {outcome[0] for outcome in drawn if isinstance(outcome, tuple)} == {200, 429, 500, 503}
    assert 0.25 < sum(outcome == (200, None, True) for outcome in drawn) / len(drawn) < 0.55  # 0.4 is expected
    assert any(len(set(map(repr, outcomes))) > 1 for outcomes in forwards.values())  # asking again may help


def test_a_slow_answer_takes_ten_times_as_long() -> None:
    async def seconds(faults: Faults) -> float:
        loop = asyncio.get_running_loop()
        async with SimulatedServer(Simulated(faults=faults), conduct=Conduct(latency_seconds=0.1)) as server:
            began = loop.time()
            await exchange(server, post(asked(), close=True))
            return loop.time() - began

    assert 0.1 <= asyncio.run(seconds(Faults())) < 0.9
    assert asyncio.run(seconds(Faults(slow=1.0))) >= 1.0


def test_more_requests_than_the_rate_are_told_when_to_come_again() -> None:
    now = [0.0]

    async def run() -> list[list[Answer]]:
        batch = b"".join(post(asked(str(i))) for i in range(15))
        conduct = Conduct(requests_per_second=10, latency_seconds=0.0, clock=lambda: now[0])
        async with SimulatedServer(Simulated(), conduct=conduct) as server:
            first = await exchange(server, batch)
            now[0] += 0.3
            return [first, await exchange(server, batch)]

    first, later = asyncio.run(run())
    assert [status for status, _, _ in first] == [200] * 10 + [429] * 5
    assert first[-1][1]["retry-after"] == "0.100"
    assert [status for status, _, _ in later] == [200] * 3 + [429] * 12


@pytest.mark.parametrize("shares", [("dropped=1.5",), ("dropped=-0.1",), ("dropped=0.6", "malformed=0.6")])
def test_shares_that_are_none_are_refused(shares: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate-llm", "--port", "0", *shares]) == 2
    told = capsys.readouterr().err
    assert "command line" in told
    assert "at most 1 in all: " in told


def test_a_taken_port_is_named() -> None:
    async def run() -> None:
        async with SimulatedServer(Simulated()) as server, SimulatedServer(Simulated(), port=server.port):
            pass

    with pytest.raises(UserError, match=r"port \d+ .* --port"):
        asyncio.run(run())


def test_the_command_does_as_its_flags_say_prints_its_addresses_and_stops_when_told() -> None:
    compared = prompt(Comparison(turns=("Why?",), first=("Because.",), second=("Why? Because.",)))
    flags = "--port 0 --requests-per-second 0.001 --latency-seconds 0 --latency-spread 0.5 --retry-after garbage"
    more = ("--judges", "first", "truncated=1.0")
    command = [sys.executable, "-m", "wizard_jax", "simulate-llm", *flags.split(), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for told in (signal.SIGTERM, signal.SIGINT):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.search(r"(http://127\.0\.0\.1:(\d+))/v1 \(OpenAI\) and \1 \(Gemini\)", line)
        assert address is not None, line
        connection = http.client.HTTPConnection("127.0.0.1", int(address[2]), timeout=10)
        for status, header in ((200, None), (429, "presently")):
            connection.request("POST", "/v1/chat/completions", json.dumps(asked(compared)))
            answer = connection.getresponse()
            said = json.loads(answer.read())
            assert (answer.status, answer.headers["retry-after"]) == (status, header)
            assert status == 429 or said["choices"][0]["finish_reason"] == "length"
            assert status == 429 or said["choices"][0]["message"]["content"].startswith("The first one")
        connection.close()
        server.send_signal(told)
        rest, _ = server.communicate(timeout=10)
        assert server.returncode == 0
        assert rest == "2 requests, 1 answered in full, 1 over the limit\n"

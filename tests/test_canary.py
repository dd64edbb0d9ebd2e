"""Keys stay in the environment: a server that throws them back finds them in no file, message, log or traceback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import random
import signal
import sqlite3
import ssl
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials
from loopback import Scripted, certificate
from loopback import http as told
from run_files import unwatched
from served import Asked, serving
from wizard_children import Parent, parent_of_wizards, until

from configs.errors import UserError
from configs.loader import dump
from data_gen.config import (
    EvolveConfig,
    Gemini,
    Measure,
    OpenAIBatch,
    OpenAICompatible,
    Price,
    SimulatedSeeds,
    VertexBatch,
)
from data_gen.generate import generate
from data_gen.llm.batch_openai import OpenAIBatchService
from data_gen.llm.batch_service import BatchService
from data_gen.llm.batch_vertex import VertexBatchService
from data_gen.llm.chat import ChatError, ChatModel, ChatRequest, Message, RequestKey
from data_gen.llm.gemini import GeminiChat
from data_gen.llm.google_token import GoogleCredentials
from data_gen.llm.openai import OpenAIChat
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Route
from data_gen.llm.server.service import Service

MARK = "CANARY"
KEY = f"sk-proj-{MARK}-8d1f+x/y_z~"
OTHERS = {
    "GEMINI_API_KEY": f"AIza{MARK}51c",
    "GOOGLE_API_KEY": f"AIza{MARK}52c",
    "HF_TOKEN": f"hf_{MARK}53c",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}54c",
}
ENVIRONMENT = {"OPENAI_API_KEY": KEY, **OTHERS}
ERRORS = (
    (400, "invalid_prompt"),
    (400, None),
    (413, None),
    (422, "content_policy_violation"),
    (429, None),
    (500, None),
    (503, None),
)


def thrown_back(key: str, draws: random.Random) -> HttpAnswer | None:
    """One of the ways in which a server or a proxy can say what key it was sent; None drops the connection."""
    headers = {"x-request-id": key, "set-cookie": f"key={key}"}
    kind = draws.randrange(len(ERRORS) + 4)
    if kind < len(ERRORS):
        status, code = ERRORS[kind]
        error = {"message": f"the key {key} (Bearer {key}) can not do this", "type": key, "param": key, "code": code}
        if status in (429, 503):
            headers["retry-after"] = "0"
        return HttpAnswer(status=status, body=json.dumps({"error": error}).encode(), headers=headers)
    if kind == len(ERRORS):
        return HttpAnswer(body=f"<html>authorization: Bearer {key}</html>".encode(), headers=headers)
    if kind == len(ERRORS) + 1:
        return HttpAnswer(body=json.dumps({"choices": None, "model": key}).encode(), headers=headers)
    if kind == len(ERRORS) + 2:
        message = {"role": "assistant", "content": f"You sent me {key}. Is that yours, {key}?"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return HttpAnswer(body=json.dumps({"model": f"m-{key}", "choices": choices}).encode(), headers=headers)
    return None


class Thrower(Asked):
    """Counts, and answers a share of all requests with the key that came with them."""

    share = 0.3
    seen = 0
    always: HttpAnswer | None = None

    def routes(self, service: Service) -> Sequence[Route]:
        models, chat = super().routes(service)
        draws = random.Random(7)

        async def throw(http: HttpRequest) -> HttpAnswer | None:
            answer = await chat.handler(http)
            key = http.headers["authorization"].removeprefix("Bearer ")
            self.seen += key == KEY
            if self.always is not None:
                return self.always
            return thrown_back(key, draws) if draws.random() < self.share else answer

        return models, Route(chat.method, chat.path, throw, refusal=chat.refusal)


@contextlib.contextmanager
def throwing(always: HttpAnswer | None = None) -> Iterator[tuple[SimulatedServer, Thrower]]:
    thrower = Thrower()
    thrower.always = always
    with serving(asked=thrower, latency_seconds=0.005) as served:
        yield served.server, thrower


def config_of(server: SimulatedServer, **changes: Any) -> EvolveConfig:
    llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=Price(input=1.0, output=1.0))
    unmeasured = Measure(diversity_sample=0, duplicates="off")
    settings = {"seeds": SimulatedSeeds(count=20), "rounds": 2, "max_attempts": 3, "measure": unmeasured}
    return EvolveConfig(llm=llm, **{**settings, **changes})


def holds_a_key(data: bytes) -> bool:
    """Whether the bytes hold a key, as it is, in base64 or in UTF-16."""
    return any(
        mark in data
        for mark in (
            MARK.encode(),
            MARK.encode("utf-16-le"),
            base64.b64encode(MARK.encode()),
            base64.b64encode(b" " + MARK.encode())[2:9],
            base64.b64encode(b"  " + MARK.encode())[3:10],
        )
    )


def leaks(folder: Path) -> list[str]:
    """The files of a folder that hold a key, looked at byte by byte, unzipped, and row by row."""
    found = []
    for file in (one for one in folder.rglob("*") if one.is_file()):
        data = file.read_bytes()
        with contextlib.suppress(OSError, EOFError):
            data += gzip.decompress(data)
        if data.startswith(b"SQLite format 3"):
            with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
                db.text_factory = bytes
                names = [name.decode() for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                rows = (row for name in names for row in db.execute(f'SELECT * FROM "{name}"'))
                data += b" ".join(value for row in rows for value in row if isinstance(value, bytes))
        if holds_a_key(data):
            found.append(file.name)
    return found


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with parent_of_wizards(tmp_path_factory.mktemp("wizards")) as parent:
        yield parent


def test_a_whole_run_through_faults_of_11_kinds_leaves_no_key_anywhere(tmp_path: Path, parent: Parent) -> None:
    out, settings = tmp_path / "out", tmp_path / "config.gin"
    with throwing() as (server, thrower):
        settings.write_text(dump(config_of(server)))
        child = parent.start(["evolve", settings, "--out", out], environment=ENVIRONMENT)
        until(lambda: thrower.seen > 40)
        child.killed()
        assert leaks(tmp_path) == []
        assert not holds_a_key(child.output.encode())
        for more in (["--preview", "3"], [], []):
            code, output = parent.run(["evolve", settings, "--out", out, *more], environment=ENVIRONMENT)
            assert code == 0, output
            assert not holds_a_key(output.encode())
        assert thrower.seen == thrower.came.total() > 100, "every request brought the key"
    assert leaks(tmp_path) == []
    for number in range(3):
        _, output = parent.run(["show", str(number), "--folder", out], environment=ENVIRONMENT)
        assert not holds_a_key(output.encode())
    rejected = (out / "rejected.jsonl").read_text()
    assert "***" in rejected, "messages of the server were kept, without the key"


REFUSED = {
    "401": HttpAnswer(status=401, body=json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY}}).encode()),
    "403": HttpAnswer(status=403, body=f"<p>{KEY} may not</p>".encode()),
    "302": HttpAnswer(status=302, headers={"location": f"http://127.0.0.1:9/?key={KEY}"}),
    "404": HttpAnswer(status=404, body=json.dumps({"error": f"no such model for {KEY}"}).encode()),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_that_throws_the_key_back_is_told_without_it(kind: str, tmp_path: Path, parent: Parent) -> None:
    out, settings = tmp_path / "out", tmp_path / "config.gin"
    with throwing(REFUSED[kind]) as (server, _):
        settings.write_text(dump(config_of(server)))
        code, output = parent.run(["evolve", settings, "--out", out], environment=ENVIRONMENT)
    assert code == 2, output
    assert "the model can not be used" in output
    assert not holds_a_key(output.encode())
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("kind", REFUSED)
def test_a_traceback_of_a_run_that_was_refused_shows_no_key(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("INFO")  # below that, the library writes down what headers come back
    with throwing(REFUSED[kind]) as (server, _), pytest.raises(UserError) as refused:
        generate(config_of(server), tmp_path / "out", progress=unwatched)
    assert not holds_a_key("".join(traceback.format_exception(refused.value)).encode())
    assert not holds_a_key(repr(refused.value).encode())
    assert not holds_a_key("".join(record.getMessage() for record in caplog.records).encode())
    assert leaks(tmp_path) == []


def test_a_run_that_is_stopped_by_abort_with_every_log_on_shows_no_key(tmp_path: Path) -> None:
    settings = tmp_path / "config.gin"
    debug = {"PYTHONFAULTHANDLER": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with throwing() as (server, thrower):
        settings.write_text(dump(config_of(server)))
        command = [
            sys.executable,
            "-X",
            "dev",
            "-m",
            "wizard_jax",
            "evolve",
            str(settings),
            "--out",
            str(tmp_path / "o"),
        ]
        environment = {**os.environ, **ENVIRONMENT, **debug}
        with (tmp_path / "log").open("wb") as log:
            child = subprocess.Popen([*command, "--out", tmp_path / "out"], env=environment, stdout=log, stderr=log)
            until(lambda: thrower.seen > 60)
            child.send_signal(signal.SIGABRT)
            child.wait(30)
    assert "Fatal Python error: Aborted" in (tmp_path / "log").read_text()
    assert leaks(tmp_path) == []


def test_with_every_log_on_what_is_sent_is_logged_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    with serving() as served:
        generate(config_of(served.server, rounds=1), tmp_path / "out", progress=unwatched)
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "Building HTTP request" in logged, "every log was on"
    assert not holds_a_key(logged.encode())


# --- the clients, each with a key of its own kind


def asking() -> ChatRequest:
    message = Message("user", "Name a river.")
    key = RequestKey("000000", 0, "answer")
    return ChatRequest(key=key, model="m", messages=(message,), temperature=1.0, top_p=0.9, max_tokens=9, seed=1)


@contextlib.asynccontextmanager
async def by_token(base_url: str) -> AsyncIterator[ChatModel]:
    """OpenAI's format with a Google token."""

    async def token() -> str:
        return f"ya29.{MARK}-token"

    config = OpenAICompatible(model="m", base_url=base_url, credentials="google", timeout_seconds=5.0)
    async with OpenAIChat(config, token=token) as chat:
        yield chat


@contextlib.asynccontextmanager
async def by_key(base_url: str) -> AsyncIterator[ChatModel]:
    async with OpenAIChat(OpenAICompatible(model="m", base_url=base_url, timeout_seconds=5.0)) as chat:
        yield chat


@contextlib.asynccontextmanager
async def gemini(base_url: str) -> AsyncIterator[ChatModel]:
    async with GeminiChat(Gemini(model="m", platform="ai_studio", base_url=base_url, timeout_seconds=5.0)) as chat:
        yield chat


JOB = "projects/p/locations/global/batchPredictionJobs/1"


class Looking:
    """A `ChatModel` in form: looks at a batch job and its results instead."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def complete(self, _: ChatRequest) -> object:
        return await self._service.state(JOB), [result async for result in self._service.results(JOB)]


@contextlib.asynccontextmanager
async def openai_jobs(base_url: str) -> AsyncIterator[Looking]:
    config = OpenAICompatible(model="m", base_url=base_url, timeout_seconds=5.0, batch=OpenAIBatch())
    async with OpenAIBatchService(config) as service:
        yield Looking(service)


@contextlib.asynccontextmanager
async def vertex_jobs(base_url: str) -> AsyncIterator[Looking]:
    batch = VertexBatch(bucket="gs://bucket", storage_base_url=base_url)
    async with VertexBatchService(Gemini(model="m", base_url=base_url, timeout_seconds=5.0, batch=batch)) as service:
        yield Looking(service)


CLIENTS: dict[str, Callable[[str], Any]] = {
    "key": by_key,
    "google token": by_token,
    "gemini": gemini,
    "OpenAI's jobs": openai_jobs,
    "Vertex AI's jobs": vertex_jobs,
}


def failed_job(keys: str) -> dict[str, object]:
    """A job that failed, a list of its files, and a line of its results, of OpenAI and of Vertex AI, all in one."""
    choices = [{"message": {"content": keys}, "finish_reason": "stop"}]
    return {
        "id": "job",
        "status": "failed",
        "errors": {"data": [{"code": keys, "message": keys}]},
        "output_file_id": "file",
        "custom_id": "digest",
        "name": JOB,
        "state": "JOB_STATE_FAILED",
        "error": {"code": 3, "message": keys},
        "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://bucket/results"}},
        "items": [{"name": "results/1.jsonl", "bucket": "bucket"}],
        "request": {"contents": []},
        "response": {
            "status_code": 200,
            "body": {"choices": choices},
            "candidates": [{"content": {"parts": [{"text": keys}]}, "finishReason": "STOP"}],
        },
    }


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 429, 500, 503, 200, 0])
def test_no_client_shows_its_key_in_an_exception_its_causes_or_a_reply(
    client: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate("llm.example", tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(file))
    token = GoogleCredentials(Credentials(token=f"ya29.{MARK}-token"), "p")
    monkeypatch.setattr("data_gen.llm.batch_vertex.application_default", lambda: token)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    keys = f"{KEY} {OTHERS['GEMINI_API_KEY']} ya29.{MARK}-token"
    body: dict[str, Any] = {"error": {"message": f"not with {keys}", "status": keys, "code": keys, "type": keys}}
    body["error"]["details"] = [{"reason": keys} if client == "Vertex AI's jobs" else keys]
    if status == 200:
        body = failed_job(keys)
        body["choices"] = [{"message": {"content": keys}, "finish_reason": "stop"}]
        body["candidates"] = [{"content": {"parts": [{"text": keys}]}, "finishReason": "STOP"}]
    answer = told(status, body, location=f"https://llm.example/?key={KEY}") if status else None

    async def run() -> str:
        async with Scripted(answer, tls=tls) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.base_url)
            async with CLIENTS[client]("https://llm.example") as chat:
                try:
                    shown = repr(await chat.complete(asking()))
                except ChatError as error:
                    shown = "".join(traceback.format_exception(error)) + repr(error)
            assert MARK in proxy.heads[0], "the key was sent"
            return shown

    own = {"key": KEY, "gemini": OTHERS["GEMINI_API_KEY"], "OpenAI's jobs": KEY}.get(client, f"ya29.{MARK}-token")
    shown = asyncio.run(run())
    assert own not in shown
    if status not in (0, 302) and (client, status) != ("Vertex AI's jobs", 401):  # which asks for a token first
        assert "***" in shown, "what else was said is told"

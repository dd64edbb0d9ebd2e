"""What a server refuses: of one prompt, of every request, and without saying which."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from configs.errors import UserError
from data_gen.config import EvolveConfig, OpenAICompatible, Price, SeedFile
from data_gen.generate import generate


class Refusing(ThreadingHTTPServer):
    """Answers every request, but those that hold `word`: these with a 400 and `error`."""

    def __init__(self, *, word: str, error: dict[str, object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.word, self.error = word, error
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Refusing

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        refused = self.server.word in asked
        choice = {"message": {"role": "assistant", "content": "Not Equal"}, "finish_reason": "stop"}
        body = json.dumps({"error": self.server.error} if refused else {"model": "m", "choices": [choice]}).encode()
        self.send_response(400 if refused else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def refusing(*, word: str, message: str, code: str | None = None) -> Iterator[Refusing]:
    with Refusing(word=word, error={"message": message, "type": "invalid_request_error", "code": code}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


FREE = Price(input=0.0, output=0.0)


def config(server: Refusing, folder: Path) -> EvolveConfig:
    """Thirty seeds, one of which speaks of eels."""
    seeds = folder / "seeds.jsonl"
    rows = [{"prompt": f"Name {number} animals" + " like eels" * (number == 7)} for number in range(30)]
    seeds.write_text("\n".join(map(json.dumps, rows)))
    llm = OpenAICompatible(model="m", base_url=server.base_url, price=FREE, api_key_env="NO_SUCH_KEY")
    return EvolveConfig(seeds=SeedFile(path=str(seeds)), llm=llm, rounds=0, concurrency=4)


def refusals(out: Path) -> int:
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        ((count,),) = journal.execute("SELECT count(*) FROM outcomes WHERE outcome = 'refused'")
    return int(count)


def quiet(done: int, total: int, facts: Mapping[str, int | str]) -> None:
    """Progress that nobody watches."""


def test_a_setting_that_the_server_does_not_take_ends_the_run_and_refuses_no_request_for_good(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refusing(word="seed", message="extra field: seed") as server:
        with pytest.raises(UserError, match=r"can not be used.*400.*extra field: seed"):
            generate(config(server, tmp_path), out, progress=quiet)
        assert refusals(out) == 0
        server.word = "nothing at all"
        assert generate(config(server, tmp_path), out, progress=quiet)["records"] == 30


def test_a_prompt_that_the_server_refuses_without_a_reason_costs_its_candidate_alone(tmp_path: Path) -> None:
    with refusing(word="eels", message="no") as server:
        summary = generate(config(server, tmp_path), tmp_path / "out", progress=quiet)
    assert (summary["records"], summary["by_rule"]) == (29, {"gave_up": 1})
    assert refusals(tmp_path / "out") == 0


def test_a_prompt_that_the_provider_s_policy_refuses_is_not_sent_again(tmp_path: Path) -> None:
    with refusing(word="eels", message="no", code="content_filter") as server:
        summary = generate(config(server, tmp_path), tmp_path / "out", progress=quiet)
    assert (summary["records"], summary["by_rule"]) == (29, {"refused_request": 1})
    assert refusals(tmp_path / "out") == 1

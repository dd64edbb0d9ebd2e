"""Each lineage goes through its rounds at its own pace: no round waits for another lineage's."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_gen import operations
from data_gen.config import EvolveConfig, OpenAICompatible, Price, SeedFile
from data_gen.generate import generate


class Slow(ThreadingHTTPServer):
    """A well-behaved model that takes its time over whatever speaks of eels: until told to, or for 20 s."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.go_on = threading.Event()
        self.was_told: list[bool] = []


class _Handler(BaseHTTPRequestHandler):
    server: Slow

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        if "eels" in asked:
            self.server.was_told.append(self.server.go_on.wait(20))
        known = operations.recognise(asked)
        if known is None:
            text = f"An answer of {len(asked)} letters."
        else:
            text = "Not Equal" if known.kind == "equal" else f"{known.instruction} And one more."
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_lineage_whose_replies_are_slow_holds_up_no_later_round_of_another(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("\n".join(json.dumps({"prompt": f"Name {what}."}) for what in ("eels", "owls", "apes", "bees")))
    saved: list[int | str] = []

    def watch(done: int, total: int, facts: Mapping[str, int | str]) -> None:
        if done == total - 1:
            saved.append(facts["records"])
            server.go_on.set()

    with Slow() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            llm = OpenAICompatible(
                model="m",
                base_url=f"http://127.0.0.1:{server.server_port}/v1",
                api_key_env="NO_SUCH_KEY",
                price=Price(input=0.0, output=0.0),
            )
            config = EvolveConfig(seeds=SeedFile(path=str(seeds)), llm=llm, rounds=4, concurrency=4, eliminate=())
            summary = generate(config, tmp_path / "out", progress=watch)
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
    assert summary["by_round"] == {str(round_): 4 for round_ in range(5)}
    assert saved == [15], "the five records of each of the others"
    assert all(server.was_told), "which were there before the first reply of this one"

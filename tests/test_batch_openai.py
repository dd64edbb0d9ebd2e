"""The real client library against the simulated Batch API: one job per wave, through drops, bad results and kills."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_client import config_for, evolve_all
from batch_provider import Counting
from batch_runs import Open, opened_over, run

from configs.errors import UserError
from data_gen import world
from data_gen.config import EvolveConfig, OpenAIBatch, OpenAICompatible, Price, Simulated, SimulatedSeeds
from data_gen.generate import generate
from data_gen.llm.batch_openai import OpenAIBatchService
from data_gen.llm.batch_service import Gone
from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.openai import OpenAIChat
from data_gen.llm.server import SimulatedServer, openai_batches, openai_wire
from data_gen.llm.server.batch_faults import BatchFaults, BatchTrouble
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Route
from data_gen.llm.server.openai_batches import OpenAIBatches
from data_gen.llm.server.service import Conduct, Service
from data_gen.llm.simulated import NAME
from data_gen.llm.standstill import Standstill

LIMITS = OpenAIBatch(poll_seconds=0.01)


def asking(number: int, **changes: object) -> ChatRequest:
    request = ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model=NAME,
        messages=(Message("user", world.render(world.sample_task(random.Random(number), steps=3))),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )
    return dataclasses.replace(request, **changes)


class Provider(SimulatedServer):
    """The server with one account's Batch API, which tells of its calls: "create", "retrieve", ...

    `after` is called when a call has had its effect and has not been answered yet.
    """

    def __init__(self, faults: BatchFaults | None = None, *, after: Callable[[str], bool] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._after = after

        def routes(service: Service) -> tuple[Route, ...]:
            self.account = OpenAIBatches(service, BatchTrouble(faults or BatchFaults()))
            return tuple(self._counted(route) for route in openai_batches.account_routes(self.account))

        super().__init__(Simulated(), conduct=Conduct(latency_seconds=0.0), formats=(openai_wire.routes, routes))

    def _counted(self, route: Route) -> Route:
        name = f"{route.method} {route.path}"

        async def handler(http: HttpRequest) -> HttpAnswer | None:
            answer = await route.handler(http)
            self.calls[name] += 1
            return None if self._after and self._after(name) else answer

        return dataclasses.replace(route, handler=handler)

    @property
    def config(self) -> OpenAICompatible:
        return OpenAICompatible(model=NAME, base_url=self.base_url)


def opened(
    path: Path, provider: Provider, *, limits: OpenAIBatch = LIMITS
) -> contextlib.AbstractAsyncContextManager[Open]:
    return opened_over(OpenAIBatchService(provider.config), path=path, limits=limits)


async def online(provider: Provider, requests: list[ChatRequest]) -> list[ChatReply]:
    async with OpenAIChat(provider.config) as model:
        return await asyncio.gather(*map(model.complete, requests))


def test_whole_lineages_take_one_job_per_wave_and_come_out_as_online(tmp_path: Path) -> None:
    async def body() -> None:
        config = config_for(4, 2)
        async with Provider() as provider:
            async with OpenAIChat(provider.config) as direct:
                counting = Counting(direct)
                expected = await evolve_all(config, model=counting, standstill=Standstill())
            async with opened(tmp_path, provider) as held:
                model = held.journal.wrap(held.batch, saves="none")
                assert await evolve_all(config, model=model, standstill=held.standstill) == expected
            assert provider.calls["POST /v1/batches"] == len(provider.account.batches) == max(counting.asked.values())

    run(body())


def test_shuffled_1_percent_missing_1_percent_twice_a_job_cut_short_and_drops_end_as_online(tmp_path: Path) -> None:
    async def body() -> None:
        faults = BatchFaults(
            missing=0.01,
            duplicated=0.01,
            creates=("503 before", "503 after"),
            endings=("cut short",),
            broken_downloads=2,
        )
        requests = [asking(number) for number in range(300)]
        async with Provider(faults) as provider:
            async with opened(tmp_path, provider) as held:
                assert await held.ask_all(requests) == await online(provider, requests)
                counts = held.batch.counts
                assert (counts.conflicting, counts.unknown, counts.expired, counts.jobs) == (0, 0, 1, 3)
                assert counts.duplicated == 2 + 2
                assert held.journal.possibly_paid_twice == counts.missing == 2
            # All; the half that was not begun and 2 whose lines are missing; 2 of those again.
            sizes = [
                len(provider.account.files[b.input_file_id].splitlines()) for b in provider.account.batches.values()
            ]
            assert sizes == [300, 152, 2]
            assert provider.calls["POST /v1/files"] == 3

    run(body())


def test_a_job_that_was_cancelled_keeps_what_it_answered_and_stops_the_run_until_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setitem(openai_batches._ENDS, "cut short", "cancelled")
        requests = [asking(number) for number in range(20)]
        async with Provider(BatchFaults(endings=("cut short",))) as provider:
            async with opened(tmp_path, provider) as held:
                refused = [reply for reply in await held.ask_all(requests) if not isinstance(reply, ChatReply)]
            assert [type(reply) for reply in refused] == [Permanent] * 10
            assert {getattr(reply, "scope", "") for reply in refused} == {"run"}
            assert "cancelled at the provider; what it had answered is kept, and the same command" in str(refused[0])
            assert len(provider.account.batches) == 1
            async with opened(tmp_path, provider) as held:
                assert await held.ask_all(requests) == await online(provider, requests)
            sizes = [
                len(provider.account.files[b.input_file_id].splitlines()) for b in provider.account.batches.values()
            ]
            assert sizes == [20, 10]

    run(body())


def test_a_line_that_is_refused_and_one_that_fails_say_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with Provider() as provider, opened(tmp_path, provider) as held:
            bad = asking(1, top_p=7.0)
            good, refused = await held.ask_all([asking(0), bad])
            assert isinstance(good, ChatReply)
            assert isinstance(refused, Permanent)
            assert refused.scope == "unclear"
            assert "top_p" in str(refused)

    run(body())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"response": None, "error": {"code": "batch_cancelled", "message": "m"}}, NotSent),
        ({"response": {"status_code": 0, "body": None}, "error": {"code": "batch_expired"}}, NotSent),
        ({"response": {"status_code": 429, "body": {"error": {"message": "m", "code": None}}}}, NotSent),
        ({"response": {"status_code": 500, "body": {"error": {"message": "m"}}}}, NotSent),
        ({"response": {"status_code": 409, "body": {"error": {"message": "m"}}}}, NotSent),
        ({"response": {"status_code": 429, "body": {"error": {"code": "insufficient_quota"}}}}, "run"),
        ({"response": {"status_code": 400, "body": {"error": {"code": "context_length_exceeded"}}}}, "request"),
        ({"response": {"status_code": 400, "body": {"error": {"type": "exceed_context_size_error"}}}}, "request"),
        ({"response": {"status_code": 400, "body": {"error": {"code": "invalid_prompt"}}}}, "request"),
        ({"response": {"status_code": 400, "body": {"error": {"code": "unsupported_value"}}}}, "run"),
        ({"response": {"status_code": 404, "body": {"error": {"code": "model_not_found"}}}}, "run"),
        ({"response": {"status_code": 400, "body": {"error": {}}}}, "unclear"),
        ({"response": {"status_code": 200, "body": {"choices": None}}}, "unreadable"),
        ({"response": {"status_code": 200, "body": "<html>"}}, "unreadable"),
        ({}, NotSent),
    ],
)
def test_what_a_line_of_results_says(line: dict[str, object], expected: object) -> None:
    async def body() -> None:
        async with OpenAIBatchService(OpenAICompatible(model="m", base_url="http://127.0.0.1:9/v1")) as service:
            result = service._result(json.dumps({"custom_id": "digest", **line}).encode())
            assert result is not None
            assert result.echo == "digest"
            outcome = result.outcome
            assert expected == (
                type(outcome)
                if isinstance(outcome, NotSent)
                else outcome.scope
                if isinstance(outcome, Permanent)
                else outcome.finish_reason
            )
            for nothing in (b"", b"{", b"[]", b'{"custom_id": 7}', b'{"id": "batch_req_1"}'):
                assert service._result(nothing) is None

    run(body())


def test_a_full_queue_is_waited_for_and_a_wrong_file_stops_the_run(tmp_path: Path) -> None:
    async def body() -> None:
        async with Provider(BatchFaults(endings=("failed",))) as provider:
            async with opened(tmp_path, provider) as held:
                replies = await held.ask_all([asking(0), asking(1)])
                assert replies == await online(provider, [asking(0), asking(1)])
            assert len(provider.account.batches) == 2
            async with OpenAIBatchService(provider.config, setting="judge") as service:
                told = await service.state(next(iter(provider.account.batches)))
            assert isinstance(told.error, NotSent)
            assert str(told.error).endswith("judge.batch.max_requests makes jobs smaller")
            async with opened(tmp_path, provider) as held:
                held.batch._service.line = lambda request, key: OpenAIBatchService.line(
                    held.batch._service,
                    request,
                    key=key * 2,
                )
                (refused,) = await held.ask_all([asking(2)])
            assert isinstance(refused, Permanent)
            assert refused.scope == "run"
            assert "duplicate_custom_id" in str(refused)

    run(body())


def test_calls_that_fail_are_classed_and_made_once_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with Provider(after=lambda _: True) as provider:  # has its effect, and drops the connection
            async with OpenAIBatchService(provider.config) as service:
                with pytest.raises(Ambiguous):
                    await service.find("label")
                with pytest.raises(Ambiguous), (tmp_path / "lines").open("w+b") as lines:
                    await service.submit("label", model=NAME, lines=lines)
                with pytest.raises(Gone, match="404") as caught:
                    await service.state("batch_of_nobody")
                assert caught.value.scope == "run"
            assert sum(provider.calls.values()) == 2
            gone = provider.config
            await asyncio.sleep(0.05)
        async with OpenAIBatchService(gone) as service:
            with pytest.raises(NotSent):
                await service.find("label")

    run(body())


def test_a_job_is_found_by_its_label_on_any_page_of_the_list() -> None:
    async def body() -> None:
        async with Provider() as provider:
            file = provider.account._add(b"")
            for number in range(230):
                await provider.account.create(
                    HttpRequest(
                        method="POST",
                        path="/v1/batches",
                        query={},
                        headers={},
                        body=json.dumps(
                            {
                                "input_file_id": file,
                                "endpoint": "/v1/chat/completions",
                                "completion_window": "24h",
                                "metadata": {"wizard_job": f"label-{number}"} if number % 2 else None,
                            }
                        ).encode(),
                    )
                )
            async with OpenAIBatchService(provider.config) as service:
                assert await service.find("label-1") == "batch_2"
                assert await service.find("label-229") == "batch_230"
                assert await service.find("label-2") is None
            await asyncio.sleep(0.05)

    run(body())


def test_credentials_that_openai_does_not_take_and_a_missing_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        OpenAIBatchService(OpenAICompatible(model="m"))
    with pytest.raises(UserError, match="VertexBatch"):
        OpenAIBatchService(OpenAICompatible(model="m", credentials="google"))


def test_a_whole_run_by_jobs_leaves_the_same_bytes_at_half_the_price(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()
    providers: list[Provider] = []

    async def serve() -> None:
        async with Provider() as provider:
            providers.append(provider)
            begun.set()
            await asyncio.to_thread(ended.wait)

    def evolved(folder: str, llm: OpenAICompatible) -> dict[str, Any]:
        config = EvolveConfig(seeds=SimulatedSeeds(count=6), llm=llm, rounds=1)
        return generate(config, tmp_path / folder, progress=lambda *_: None)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    try:
        assert begun.wait(10)
        online = dataclasses.replace(providers[0].config, price=Price(input=1.0, output=2.0))
        alone = evolved("online", online)
        in_jobs = evolved("jobs", dataclasses.replace(online, batch=LIMITS))
    finally:
        ended.set()
        server.join()
    assert in_jobs["dataset_sha256"] == alone["dataset_sha256"]
    assert in_jobs["usd"] == pytest.approx(alone["usd"] / 2)
    assert in_jobs["asked"] == alone["asked"]
    assert len(providers[0].account.batches) <= 1 + 3  # an answer; then a rewrite, a verdict and an answer


# --- kills


async def killed_over_and_over(
    tmp_path: Path, *, lineages: int, rounds: int, kills: Callable[[Counter[str]], bool]
) -> tuple[Provider, int]:
    """Runs the client until it ends by itself, killing it after each call for which `kills` says so."""
    config, child, deaths = config_for(lineages, rounds), None, 0

    def after(_: str) -> bool:
        assert child is not None
        if not kills(provider.calls):
            return False
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        return True

    provider = Provider(BatchFaults(looks=2))
    async with provider:
        async with OpenAIChat(provider.config) as direct:
            counting = Counting(direct)
            expected = await evolve_all(config, model=counting, standstill=Standstill())
        provider._after = after
        client = str(Path(__file__).with_name("batch_client.py"))
        arguments = [client, provider.base_url, str(tmp_path / "journal.sqlite"), str(lineages), str(rounds)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        while True:
            child = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await child.communicate()
            if child.returncode == 0:
                break
            assert child.returncode == -9
            deaths += 1
        told = json.loads(out)
        assert told["lineages"] == expected
        assert told["paid_twice"] == 0
    assert len(provider.account.batches) == max(counting.asked.values())
    # Whatever became of the processes: every request of the run is in one job, and was answered once.
    files = [provider.account.files[batch.input_file_id] for batch in provider.account.batches.values()]
    asked = [json.loads(line)["custom_id"] for file in files for line in file.splitlines()]
    assert len(asked) == len(set(asked))
    return provider, deaths


def test_killed_while_its_job_is_created_it_finds_the_job_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    async def body() -> None:
        def kills(calls: Counter[str]) -> bool:
            return calls["POST /v1/batches"] == 1 and not calls["GET /v1/batches"]

        provider, deaths = await killed_over_and_over(tmp_path, lineages=5, rounds=1, kills=kills)
        assert (deaths, provider.calls["GET /v1/batches"]) == (1, 1)

    run(body())


@pytest.mark.slow
def test_killed_after_every_fifth_call_it_pays_for_nothing_twice(tmp_path: Path) -> None:
    async def body() -> None:
        def kills(calls: Counter[str]) -> bool:
            return calls.total() % 5 == 0

        _, deaths = await killed_over_and_over(tmp_path, lineages=12, rounds=2, kills=kills)
        assert deaths >= 8

    run(body())

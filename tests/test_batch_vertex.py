"""Real client libraries against the simulated Vertex AI and Cloud Storage: joined by the echo, found by the label."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from batch_client import config_for, evolve_all
from batch_provider import Counting
from batch_runs import Open, opened_over, run
from google.cloud.aiplatform_v1 import JobState

from configs.errors import UserError
from data_gen import world
from data_gen.config import Gemini, Simulated, VertexBatch
from data_gen.llm.batch_service import Gone
from data_gen.llm.batch_vertex import VertexBatchService
from data_gen.llm.chat import Ambiguous, ChatReply, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.llm.gemini import GeminiChat
from data_gen.llm.server import SimulatedServer, gemini_wire, vertex_batches
from data_gen.llm.server.batch_faults import BatchFaults, BatchTrouble
from data_gen.llm.server.http import HttpAnswer, HttpRequest, Refused, Route
from data_gen.llm.server.service import Conduct, Service
from data_gen.llm.server.vertex_batches import VertexBatches
from data_gen.llm.simulated import NAME
from data_gen.llm.standstill import Standstill

BATCH = VertexBatch(bucket="gs://my-bucket/evolve/run 1", poll_seconds=0.01)


def asking(number: int) -> ChatRequest:
    return ChatRequest(
        key=RequestKey(f"seed-{number}", 1, "answer"),
        model=NAME,
        messages=(
            Message("system", "Be exact."),
            Message("user", world.render(world.sample_task(random.Random(number), steps=3))),
        ),
        temperature=0.0,  # which the echo leaves out
        top_p=0.9,
        max_tokens=64,
        seed=number,
    )


class Provider(SimulatedServer):
    def __init__(self, faults: BatchFaults | None = None) -> None:
        def routes(service: Service) -> tuple[Route, ...]:
            self.place = VertexBatches(service, BatchTrouble(faults or BatchFaults()))
            return vertex_batches.place_routes(self.place)

        super().__init__(Simulated(), conduct=Conduct(latency_seconds=0.0), formats=(gemini_wire.routes, routes))

    @property
    def config(self) -> Gemini:
        return Gemini(model=NAME, base_url=self.address, project="my-project", location="us-central1", batch=BATCH)

    def sizes(self) -> list[int]:
        """Requests per job."""
        uris = [job.asked["inputConfig"]["gcsSource"]["uris"][0] for job in self.place.jobs.values()]
        names = [tuple(uri.removeprefix("gs://").split("/", 1)) for uri in uris]
        return [len(self.place.store.objects[name].data.splitlines()) for name in names]


def opened(path: Path, provider: Provider) -> contextlib.AbstractAsyncContextManager[Open]:
    return opened_over(VertexBatchService(provider.config), path=path, limits=BATCH)


async def online(provider: Provider, requests: list[ChatRequest]) -> list[ChatReply]:
    async with GeminiChat(replace(provider.config, batch=None)) as model:
        return await asyncio.gather(*map(model.complete, requests))


def test_whole_lineages_take_one_job_per_wave_and_come_out_as_online(tmp_path: Path) -> None:
    async def body() -> None:
        config = config_for(4, 1)
        async with Provider() as provider:
            async with GeminiChat(provider.config) as direct:
                counting = Counting(direct)
                expected = await evolve_all(config, model=counting, standstill=Standstill())
            async with opened(tmp_path, provider) as held:
                model = held.journal.wrap(held.batch, saves="none")
                assert await evolve_all(config, model=model, standstill=held.standstill) == expected
            assert len(provider.place.jobs) == max(counting.asked.values())
            assert sum(provider.sizes()) == sum(counting.asked.values())

    run(body())


def test_shuffled_2_percent_missing_twice_and_swapped_a_job_cut_short_and_503s_join_nothing_wrongly(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        faults = BatchFaults(
            missing=0.02,
            duplicated=0.02,
            swapped=0.02,
            creates=("503 before", "503 after"),
            endings=("cut short",),
            broken_downloads=1,
        )
        requests = [asking(number) for number in range(200)]
        async with Provider(faults) as provider, opened(tmp_path, provider) as held:
            replies = await held.ask_all(requests)
            assert replies == await online(provider, requests)
            assert len({reply.text for reply in replies if isinstance(reply, ChatReply)}) > 190
            counts = held.batch.counts
            # 100 were answered, of which 2 are missing and 2 swapped; of 104, again 2 and 2; then 4, and none is.
            assert provider.sizes() == [200, 104, 4]
            assert (counts.swapped, counts.duplicated, counts.conflicting, counts.unknown) == (4, 4, 0, 0)
            assert (counts.jobs, counts.expired) == (3, 1)
            assert held.journal.possibly_paid_twice == counts.missing == 4

    run(body())


def test_a_restart_while_polling_sends_no_new_job_and_finds_one_that_was_never_named(tmp_path: Path) -> None:
    async def body() -> None:
        faults = BatchFaults(looks=5, creates=("503 after",))
        requests = [asking(number) for number in range(20)]
        async with Provider(faults) as provider:
            for round_ in range(2):
                async with opened(tmp_path, provider) as held:
                    asked = asyncio.ensure_future(held.ask_all(requests))
                    while not any(job.looks > round_ for job in provider.place.jobs.values()):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    asked.cancel()
            async with opened(tmp_path, provider) as held:
                assert await held.ask_all(requests) == await online(provider, requests)
                assert (held.batch.counts.found_again, held.batch.counts.jobs) == (1, 0)
                assert held.journal.possibly_paid_twice == 0
            assert provider.sizes() == [20]

    run(body())


def test_a_job_that_was_cancelled_keeps_what_it_answered_and_stops_the_run_until_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setitem(vertex_batches._ENDS, "cut short", JobState.JOB_STATE_CANCELLED)
        requests = [asking(number) for number in range(20)]
        async with Provider(BatchFaults(endings=("cut short",))) as provider:
            async with opened(tmp_path, provider) as held:
                refused = [reply for reply in await held.ask_all(requests) if not isinstance(reply, ChatReply)]
            assert [type(reply) for reply in refused] == [Permanent] * 10
            assert {getattr(reply, "scope", "") for reply in refused} == {"run"}
            assert "cancelled at the provider; what it had answered is kept, and the same command" in str(refused[0])
            assert provider.sizes() == [20]
            async with opened(tmp_path, provider) as held:
                assert await held.ask_all(requests) == await online(provider, requests)
            assert provider.sizes() == [20, 10]

    run(body())


def test_a_job_that_fails_half_way_keeps_what_it_answered_and_one_without_its_file_stops_the_run(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        requests = [asking(number) for number in range(10)]
        async with Provider(BatchFaults(endings=("failed",))) as provider, opened(tmp_path, provider) as held:
            assert await held.ask_all(requests) == await online(provider, requests)
            assert provider.sizes() == [10, 5]
            get = provider.place.store.get
            provider.place.store.get = lambda bucket, name: get(bucket, f"no {name}")
            (refused,) = await held.ask_all([asking(99)])
            assert isinstance(refused, Permanent)
            assert refused.scope == "run"
            assert "No such object" in str(refused)

    run(body())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"status": 'Bad Request: {"error": {"code": 400, "message": "no"}}', "response": {}}, "unclear"),
        ({"status": '{"error": {"code": 400, "message": "The input token count (9) exceeds 8"}}'}, "request"),
        ({"status": '{"error": {"code": 403, "message": "denied"}}'}, "run"),
        ({"status": '{"error": {"code": 429, "message": "exhausted"}}', "response": None}, NotSent),
        ({"status": '{"error": {"code": 409, "message": "aborted"}}'}, NotSent),
        ({"status": '{"error": {"code": 500, "message": "internal"}}'}, NotSent),
        ({"status": "", "response": {}}, NotSent),
        ({"status": "", "response": {"candidates": []}}, "unreadable"),
        ({"status": "", "response": {"promptFeedback": {"blockReason": "SAFETY"}}}, "filtered"),
    ],
)
def test_what_a_line_of_results_says(line: dict[str, object], expected: object) -> None:
    async def body() -> None:
        config = Gemini(model="m", base_url="http://127.0.0.1:9", project="p", batch=BATCH)
        async with VertexBatchService(config) as service:
            sent = service.line(asking(0), key="digest")
            request = json.loads(sent.text)["request"]
            result = service._result(json.dumps({"request": request, "key": "digest", **line}).encode())
            assert result is not None
            assert (result.echo, result.key) == (sent.echo, "digest")
            assert sent.echo != service.line(asking(1), key="digest").echo
            filled_in = {**request, "generationConfig": {**request["generationConfig"], "candidateCount": 1}}
            again = service._result(json.dumps({"request": filled_in, **line}).encode())
            assert again is not None
            assert (again.echo, again.key) == (sent.echo, None)
            outcome = result.outcome
            assert expected == (
                type(outcome)
                if isinstance(outcome, NotSent)
                else outcome.scope
                if isinstance(outcome, Permanent)
                else outcome.finish_reason
            )
            for nothing in (b"", b"{", b"[]", b'{"response": {}}', b'{"request": 7}'):
                assert service._result(nothing) is None

    run(body())


def test_calls_that_fail_are_classed() -> None:
    async def body() -> None:
        async with Provider() as provider:
            async with VertexBatchService(provider.config) as service:
                assert await service.find("label") is None
                with pytest.raises(Gone, match="does not exist"):
                    await service.state("projects/my-project/locations/us-central1/batchPredictionJobs/7")
            nobody = provider.config
            await asyncio.sleep(0.05)
        async with VertexBatchService(nobody) as service:
            with pytest.raises(NotSent):
                await service.find("label")

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with VertexBatchService(replace(nobody, base_url=address)) as service:
                with pytest.raises(Ambiguous):
                    await service.find("label")

    run(body())


@pytest.mark.parametrize(
    ("status", "told"), [(403, "does not have storage.objects.create access"), (404, "bucket does not exist")]
)
def test_a_bucket_that_can_not_be_written_to_stops_the_run_with_what_to_do(
    tmp_path: Path, status: int, told: str
) -> None:
    async def refuse(_: HttpRequest) -> HttpAnswer:
        raise Refused(status, told)

    def closed(_: Service) -> tuple[Route, ...]:
        return (
            Route(
                "POST", "/upload/storage/v1/b/{bucket}/o", refuse, refusal=gemini_wire.refusal, most_body_bytes=2**20
            ),
        )

    async def body() -> None:
        formats = (closed, vertex_batches.routes)
        async with SimulatedServer(Simulated(), conduct=Conduct(latency_seconds=0.0), formats=formats) as server:
            config = Gemini(model=NAME, base_url=server.address, project="p", location="us-central1", batch=BATCH)
            async with VertexBatchService(config, setting="judge") as service:
                with (tmp_path / "lines").open("w+b") as lines:
                    lines.write(service.line(asking(0), key="digest").text)
                    with pytest.raises(Permanent) as caught:
                        await service.submit("label", model=NAME, lines=lines)
                assert caught.value.scope == "run"
                assert "judge.batch.bucket: gs://my-bucket can not be written to; create it" in str(caught.value)
                assert told in str(caught.value)
                assert await service.find("label") is None
            await asyncio.sleep(0.05)

    run(body())


def test_lists_are_read_to_their_end_and_hold_only_the_label_that_is_meant(tmp_path: Path) -> None:
    async def body() -> None:
        async with Provider() as provider:
            async with VertexBatchService(provider.config) as service:
                names = []
                for number in range(3):
                    with (tmp_path / f"{number}").open("w+b") as lines:
                        lines.write(service.line(asking(number), key="digest").text)
                        names.append(await service.submit(f"label-{number}", model=NAME, lines=lines))
                        # A second upload for a label is of the same lines, and so is none.
                        await service._called(
                            lambda number=number, lines=lines: service._upload(f"label-{number}", lines)
                        )
                assert [await service.find(f"label-{number}") for number in range(3)] == names
                assert await service.find("label-7") is None
            counts = Counter(name.rsplit("/", 1)[1] for _, name in provider.place.store.objects)
            assert counts == {"requests.jsonl": 3}
            await asyncio.sleep(0.05)

    run(body())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"platform": "ai_studio"}, "platform"),
        ({"batch": None}, "batch"),
        ({"batch": replace(BATCH, bucket="my-bucket/evolve")}, "gs://BUCKET"),
        ({"base_url": "http://example.com"}, "http://"),
        ({"batch": replace(BATCH, storage_base_url="http://example.com")}, "http://"),
    ],
)
def test_settings_that_no_job_could_use_are_refused(changes: dict[str, object], told: str) -> None:
    config = Gemini(model="m", base_url="http://127.0.0.1:9", project="p", batch=BATCH)
    with pytest.raises(UserError, match=told):
        VertexBatchService(replace(config, **changes))

"""Vertex AI's batch prediction jobs for Gemini, over REST: requests and replies lie in the simulated Cloud Storage.

A line of results holds the request as it was understood, its fields spelled and ordered anew, as the real ones do.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_gen.llm.server.batch_faults import BatchTrouble, Ending
from data_gen.llm.server.fields import read_json
from data_gen.llm.server.gemini_wire import answer_one, refusal
from data_gen.llm.server.http import Handler, HttpAnswer, HttpRequest, Refused, Route
from data_gen.llm.server.service import Service
from data_gen.llm.server.storage import Store
from data_gen.llm.server.storage import routes as storage_routes

_MOST_BODY_BYTES = 2**16
_MODEL = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?publishers/google/models/([^/]+)")
_FILTER = re.compile(r'(labels\.(?P<label>[a-z0-9_-]+)|display_name|displayName)\s*=\s*"?(?P<value>[^"]*)"?')
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
# google.cloud.aiplatform.v1.JobState
_QUEUED, _RUNNING, _SUCCEEDED, _FAILED, _CANCELLED, _EXPIRED = 1, 3, 4, 5, 7, 9
_ENDS: dict[Ending, int] = {"complete": _SUCCEEDED, "cut short": _EXPIRED, "failed": _FAILED}


@dataclass
class _Job:
    name: str
    number: int
    asked: dict[str, Any]
    state: int = _QUEUED
    looks: int = 0
    error: dict[str, Any] | None = None
    output: str = ""
    counts: dict[str, str] = field(default_factory=dict)

    def as_object(self) -> dict[str, Any]:
        body = {**self.asked, "name": self.name, "state": self.state, "createTime": "2026-11-22T10:00:00Z"}
        if self.error:
            body["error"] = self.error
        if self.output:
            body["outputInfo"] = {"gcsOutputDirectory": self.output}
            body["completionStats"] = self.counts
        return body


class VertexBatches:
    """The jobs of every project and place; `store` holds their files."""

    def __init__(self, service: Service, trouble: BatchTrouble) -> None:
        self.jobs: dict[str, _Job] = {}
        self.store = Store(trouble)
        self._service = service
        self._trouble = trouble

    async def create(self, http: HttpRequest) -> HttpAnswer:
        asked = read_json(http.body)
        match asked:
            case {
                "displayName": str(),
                "model": str(model),
                "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [str()]}},
                "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": str()}},
            } if _MODEL.fullmatch(model):
                labels = asked.get("labels", {})
            case _:
                raise Refused(400, "name a displayName, a model of publishers/google, and jsonl in and out of gs://")
        if not all(isinstance(value, str) and _LABEL_VALUE.fullmatch(value) for value in labels.values()):
            raise Refused(400, "a label's value has at most 63 lower-case letters, digits, _ and -")
        failure = self._trouble.next_create()
        if failure != "503 before":
            number = len(self.jobs) + 1
            where = f"projects/{http.parameters['project']}/locations/{http.parameters['location']}"
            job = _Job(f"{where}/batchPredictionJobs/{number}", number, asked)
            self.jobs[job.name] = job
        if failure is not None:
            raise Refused(503, "The simulated server failed on purpose.")
        return _json(job.as_object())

    async def get(self, http: HttpRequest) -> HttpAnswer:
        job = self._job(http)
        await self._proceed(job)
        return _json(job.as_object())

    async def cancel(self, http: HttpRequest) -> HttpAnswer:
        job = self._job(http)
        if job.state in (_QUEUED, _RUNNING):
            job.state = _CANCELLED
        return _json({})

    async def listed(self, http: HttpRequest) -> HttpAnswer:
        where = f"projects/{http.parameters['project']}/locations/{http.parameters['location']}/"
        jobs = [job for job in self.jobs.values() if job.name.startswith(where) and _fits(job, http.query)]
        newest_first = sorted(jobs, key=lambda job: -job.number)
        begin, size = int(http.query.get("pageToken", 0)), int(http.query.get("pageSize", 0)) or 50
        page = newest_first[begin : begin + size]
        body: dict[str, Any] = {"batchPredictionJobs": [job.as_object() for job in page]}
        if begin + size < len(newest_first):
            body["nextPageToken"] = str(begin + size)
        return _json(body)

    def _job(self, http: HttpRequest) -> _Job:
        name = "projects/{project}/locations/{location}/batchPredictionJobs/{id}".format_map(http.parameters)
        if name not in self.jobs:
            raise Refused(404, f"The BatchPredictionJob {name} does not exist.")
        return self.jobs[name]

    async def _proceed(self, job: _Job) -> None:
        """A look at a job takes it further, so that time in tests is counted in looks."""
        if job.state not in (_QUEUED, _RUNNING):
            return
        job.looks += 1
        try:
            bucket, name = _place(job.asked["inputConfig"]["gcsSource"]["uris"][0])
            lines = [line for line in self.store.get(bucket, name).data.split(b"\n") if line.strip()]
        except Refused as refused:
            job.state, job.error = _FAILED, {"code": 5, "message": refused.message}
            return
        if job.looks <= self._trouble.looks:
            job.state = _RUNNING
            return
        await self._end(job, lines)

    async def _end(self, job: _Job, lines: list[bytes]) -> None:
        ending = self._trouble.next_ending()
        if ending == "failed":
            job.error = {"code": 8, "message": "The job was stopped: resources are exhausted."}
        answered = lines if ending == "complete" else lines[: len(lines) // 2]
        model = _MODEL.fullmatch(job.asked["model"])
        assert model
        results = [await self._result(read_json(line), model=model[1]) for line in answered]
        failed = sum(bool(result["status"]) for result in results)
        found = self._trouble.tampered(results, job=job.name, swap=_swap)
        job.output = f"{job.asked['outputConfig']['gcsDestination']['outputUriPrefix']}/prediction-model-{job.number}"
        bucket, name = _place(f"{job.output}/predictions.jsonl")
        self.store.put(bucket, name, b"".join(json.dumps(result).encode() + b"\n" for result in found))
        counts = {
            "successfulCount": len(results) - failed,
            "failedCount": failed,
            "incompleteCount": len(lines) - len(results),
        }
        job.counts = {name: str(count) for name, count in counts.items()}
        job.state = _ENDS[ending]

    async def _result(self, line: Any, *, model: str) -> dict[str, Any]:
        request = line.get("request") if isinstance(line, dict) else None
        status, body = await answer_one(request, service=self._service, model=model)
        if status == 200:
            self._service.count_full_reply()
        key = {"key": line["key"]} if isinstance(line, dict) and "key" in line else {}
        return {
            "status": "" if status == 200 else f"Bad Request: {json.dumps(body)}",
            "processed_time": time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime()),
            "request": _spelled_anew(request),
            "response": body if status == 200 else {},
            **key,
        }


def routes(service: Service) -> tuple[Route, ...]:
    """The routes of a Vertex AI and a Cloud Storage that hold nothing yet."""
    return place_routes(VertexBatches(service, BatchTrouble(service.batch_faults)))


def place_routes(batches: VertexBatches) -> tuple[Route, ...]:
    def route(method: str, path: str, handler: Handler) -> Route:
        where = "/v1/projects/{project}/locations/{location}/batchPredictionJobs"
        return Route(method, where + path, handler, refusal=refusal, most_body_bytes=_MOST_BODY_BYTES)

    return (
        route("POST", "", batches.create),
        route("GET", "", batches.listed),
        route("POST", "/{id}:cancel", batches.cancel),
        route("GET", "/{id}", batches.get),
        *storage_routes(batches.store),
    )


def _fits(job: _Job, query: Any) -> bool:
    wanted = query.get("filter", "")
    if not wanted:
        return True
    matched = _FILTER.fullmatch(wanted)
    if matched is None:
        raise Refused(400, f"the filter {wanted!r} is not simulated; use labels.NAME=VALUE or display_name=VALUE")
    held = job.asked.get("labels", {}).get(matched["label"]) if matched["label"] else job.asked["displayName"]
    return bool(held == matched["value"])


def _place(uri: str) -> tuple[str, str]:
    """(bucket, name) of gs://BUCKET/NAME."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return bucket, name


def _swap(first: dict[str, Any], second: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**first, "key": second.get("key")}, {**second, "key": first.get("key")}


def _spelled_anew(value: Any) -> Any:
    """The same request as another program may write it: members sorted, whole numbers as 2.0, zeros left out."""
    if isinstance(value, dict):
        members: Iterator[tuple[str, Any]] = ((name, _spelled_anew(inner)) for name, inner in sorted(value.items()))
        return {name: inner for name, inner in members if inner != 0 or isinstance(inner, bool | str)}
    if isinstance(value, list):
        return [_spelled_anew(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _json(body: dict[str, Any]) -> HttpAnswer:
    return HttpAnswer(body=json.dumps(body).encode())

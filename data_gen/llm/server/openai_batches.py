"""OpenAI's Files and Batch APIs: a file of requests goes up, a job answers it as the simulated model does online."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from data_gen.llm.server.batch_faults import BatchTrouble, Ending
from data_gen.llm.server.fields import read_json
from data_gen.llm.server.http import Handler, HttpAnswer, HttpRequest, Refused, Route
from data_gen.llm.server.openai_wire import answer_one, refusal
from data_gen.llm.server.service import Service

_MOST_FILE_BYTES = 210_000_000  # OpenAI takes 200 MB of requests, and the body frames them
_MOST_REQUESTS = 50_000
_ENDPOINT = "/v1/chat/completions"
_PAGE = 20

Status = Literal["validating", "in_progress", "finalizing", "completed", "expired", "cancelled", "failed"]
_ENDS: dict[Ending, Status] = {"complete": "completed", "cut short": "expired", "failed": "failed"}


@dataclass
class _Batch:
    id: str
    number: int
    input_file_id: str
    metadata: dict[str, str]
    status: Status = "validating"
    looks: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})

    def as_object(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": _ENDPOINT,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(time.time()),
            "request_counts": self.counts,
            "metadata": self.metadata,
        }


class OpenAIBatches:
    """The files and jobs of one account; `routes` serves them."""

    def __init__(self, service: Service, trouble: BatchTrouble) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, _Batch] = {}
        self._service = service
        self._trouble = trouble

    # --- files

    async def upload(self, http: HttpRequest) -> HttpAnswer:
        form = dict(_form(http))
        if form.get("purpose") != b"batch" or "file" not in form:
            raise Refused(400, "send a file, with purpose batch", param="purpose")
        return _json(self._file_object(self._add(form["file"])))

    async def content(self, http: HttpRequest) -> HttpAnswer | None:
        data = self._data(http.parameters["id"])
        if self._trouble.download_breaks():
            return None
        return HttpAnswer(body=data, headers={"content-type": "application/octet-stream"})

    async def file(self, http: HttpRequest) -> HttpAnswer:
        self._data(http.parameters["id"])
        return _json(self._file_object(http.parameters["id"]))

    def _add(self, data: bytes) -> str:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = data
        return name

    def _data(self, name: str) -> bytes:
        if name not in self.files:
            raise Refused(404, f"No such File object: {name}", param="id")
        return self.files[name]

    def _file_object(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "file",
            "bytes": len(self.files[name]),
            "created_at": int(time.time()),
            "filename": f"{name}.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    # --- jobs

    async def create(self, http: HttpRequest) -> HttpAnswer:
        asked = read_json(http.body)
        match asked:
            case {"input_file_id": str(file_id), "endpoint": "/v1/chat/completions", "completion_window": "24h"}:
                self._data(file_id)
            case _:
                raise Refused(400, f"name an input_file_id, endpoint {_ENDPOINT} and completion_window 24h")
        metadata = asked.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise Refused(400, "metadata must be an object of strings", param="metadata")
        failure = self._trouble.next_create()
        if failure != "503 before":
            number = len(self.batches) + 1
            batch = _Batch(f"batch_{number}", number, file_id, metadata)
            self.batches[batch.id] = batch
        if failure is not None:
            raise Refused(503, "the simulated server failed on purpose")
        return _json(batch.as_object())

    async def retrieve(self, http: HttpRequest) -> HttpAnswer:
        batch = self._batch(http)
        await self._proceed(batch)
        return _json(batch.as_object())

    async def cancel(self, http: HttpRequest) -> HttpAnswer:
        batch = self._batch(http)
        if batch.status in ("validating", "in_progress", "finalizing"):
            batch.status = "cancelled"
        return _json(batch.as_object())

    async def listed(self, http: HttpRequest) -> HttpAnswer:
        newest_first = sorted(self.batches.values(), key=lambda batch: -batch.number)
        if after := http.query.get("after"):
            at = next((at for at, batch in enumerate(newest_first) if batch.id == after), len(newest_first))
            newest_first = newest_first[at + 1 :]
        page = newest_first[: int(http.query.get("limit", _PAGE))]
        ids = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
        data = [batch.as_object() for batch in page]
        return _json({"object": "list", "data": data, **ids, "has_more": len(page) < len(newest_first)})

    def _batch(self, http: HttpRequest) -> _Batch:
        name = http.parameters["id"]
        if name not in self.batches:
            raise Refused(404, f"No batch found with id '{name}'.")
        return self.batches[name]

    async def _proceed(self, batch: _Batch) -> None:
        """A look at a job takes it further, so that time in tests is counted in looks."""
        if batch.status not in ("validating", "in_progress"):
            return
        batch.looks += 1
        requests = list(_lines(self.files[batch.input_file_id]))
        batch.errors = list(_invalid(requests))
        if batch.errors:
            batch.status = "failed"
        elif batch.looks <= self._trouble.looks:
            batch.status = "in_progress"
        else:
            await self._end(batch, requests)

    async def _end(self, batch: _Batch, requests: list[dict[str, Any]]) -> None:
        ending = self._trouble.next_ending()
        if ending == "failed":
            message = "Enqueued token limit reached for this model. Please try again once some jobs have completed."
            batch.errors = [{"code": "token_limit_exceeded", "message": message, "param": None, "line": None}]
        else:
            answered = requests if ending == "complete" else requests[: len(requests) // 2]
            lines = [await self._line(batch, number, request) for number, request in enumerate(answered)]
            good = [line for line in lines if line["response"]["status_code"] == 200]
            bad = [line for line in lines if line["response"]["status_code"] != 200]
            bad += [_unanswered(batch, request) for request in requests[len(answered) :]]
            batch.output_file_id = self._results(good, job=batch.id)
            batch.error_file_id = self._results(bad, job=f"{batch.id} errors")
            batch.counts = {"total": len(requests), "completed": len(good), "failed": len(bad)}
        batch.status = _ENDS[ending]

    async def _line(self, batch: _Batch, number: int, request: dict[str, Any]) -> dict[str, Any]:
        status, body = await answer_one(request["body"], service=self._service, number=number)
        if status == 200:
            self._service.count_full_reply()
        name = f"{batch.id}_req_{number}"
        response = {"status_code": status, "request_id": name, "body": body}
        return {"id": name, "custom_id": request["custom_id"], "response": response, "error": None}

    def _results(self, lines: list[dict[str, Any]], *, job: str) -> str | None:
        found = self._trouble.tampered(lines, job=job)
        return self._add(b"".join(json.dumps(line).encode() + b"\n" for line in found)) if found else None


def routes(service: Service) -> tuple[Route, ...]:
    """The routes of an account that has no files and no jobs yet."""
    return account_routes(OpenAIBatches(service, BatchTrouble(service.batch_faults)))


def account_routes(account: OpenAIBatches) -> tuple[Route, ...]:
    def route(method: str, path: str, handler: Handler, *, most: int = 2**16) -> Route:
        return Route(method, path, handler, refusal=refusal, most_body_bytes=most)

    return (
        route("POST", "/v1/files", account.upload, most=_MOST_FILE_BYTES),
        route("GET", "/v1/files/{id}", account.file),
        route("GET", "/v1/files/{id}/content", account.content),
        route("POST", "/v1/batches", account.create),
        route("GET", "/v1/batches", account.listed),
        route("GET", "/v1/batches/{id}", account.retrieve),
        route("POST", "/v1/batches/{id}/cancel", account.cancel),
    )


def _lines(data: bytes) -> Iterator[Any]:
    """What stands in a JSONL file; None for a line that is no JSON."""
    for line in data.split(b"\n"):
        if line.strip():
            with contextlib.suppress(Refused):
                yield read_json(line)
                continue
            yield None


def _unanswered(batch: _Batch, request: dict[str, Any]) -> dict[str, Any]:
    error = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}
    return {
        "id": f"{batch.id}_expired",
        "custom_id": request["custom_id"],
        "response": {"status_code": 0, "request_id": "", "body": None},
        "error": error,
    }


def _invalid(requests: list[Any]) -> Iterator[dict[str, Any]]:
    """What OpenAI's validation finds wrong with a file."""
    if not 0 < len(requests) <= _MOST_REQUESTS:
        yield {"code": "invalid_file", "message": f"{len(requests)} requests", "param": None, "line": None}
    seen: set[str] = set()
    models: set[object] = set()
    for line, request in enumerate(requests, start=1):
        match request:
            case {"custom_id": str(name), "method": "POST", "url": "/v1/chat/completions", "body": dict(body)}:
                models.add(body.get("model"))
                if name in seen or len(name) > 64:
                    yield {"code": "duplicate_custom_id", "message": name, "param": "custom_id", "line": line}
                seen.add(name)
            case _:
                yield {"code": "invalid_json_line", "message": "no such request", "param": None, "line": line}
    if len(models) > 1:
        yield {"code": "mismatched_model", "message": "the models differ", "param": "body.model", "line": None}


def _form(http: HttpRequest) -> Iterator[tuple[str, bytes]]:
    """The fields of a multipart/form-data body."""
    boundary = re.search(r'boundary="?([^";]+)', http.headers.get("content-type", ""))
    if boundary is None:
        raise Refused(400, "the body is no multipart/form-data")
    for part in http.body.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        if name:
            yield name[1].decode(), content.removesuffix(b"\r\n")


def _json(body: dict[str, Any]) -> HttpAnswer:
    return HttpAnswer(body=json.dumps(body).encode())

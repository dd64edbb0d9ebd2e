"""Vertex AI's batch prediction jobs for Gemini: a file in Cloud Storage goes in, files beside it come out.

A job carries its label as a label of Google Cloud, which is how it is found again. A line of results echoes its
request, by which it is joined, and mostly the key beside it, which must agree. Requests and results stay in the
bucket, under the job's label, for whoever wants to look; a lifecycle rule of the bucket removes them.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, BinaryIO, Self, TypeVar

from configs.errors import UserError
from data_gen.config import Gemini
from data_gen.llm.batch_join import Result, fingerprint
from data_gen.llm.batch_service import JobState, Line, cancelled, of_the_job
from data_gen.llm.chat import Ambiguous, ChatError, ChatReply, ChatRequest, NotSent, Permanent
from data_gen.llm.gemini import TOO_LONG, generate_body, read_response
from data_gen.llm.google_token import application_default, refused
from data_gen.llm.wire import is_here, readable, refusal, without

T = TypeVar("T")

_LABEL = "wizard_job"
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])((?:/[^/#?*\[\]]+)*)/?")
_CODE = re.compile(r'"code"\s*:\s*(\d{3})\b')
_MAY_FARE_BETTER = (4, 8, 10, 13, 14)  # google.rpc.Code: deadline, exhausted, aborted, internal, unavailable
_LINES_AT_ONCE = 1000


class VertexBatchService:
    """A `BatchService`. Leave its `async with` when its jobs are done with.

    A server on this machine (`base_url`, `batch.storage_base_url`) is shown no credentials. `setting` is where in the
    config the provider stands.

    Raises:
      UserError: no credentials, project or bucket, or a platform that has no such jobs.
    """

    def __init__(self, config: Gemini, *, setting: str = "llm") -> None:
        if config.platform != "vertex" or config.batch is None:
            where = f"{setting}.platform"
            raise UserError(f"{where} = {config.platform!r}: batch jobs are Vertex AI's; set {where}=vertex")
        bucket = _BUCKET.fullmatch(config.batch.bucket)
        if bucket is None:
            raise UserError(
                f"{setting}.batch.bucket = {config.batch.bucket!r}: write gs://BUCKET or gs://BUCKET/FOLDER"
            )
        storage_url = config.batch.storage_base_url
        project, credentials = config.project or "unused", None
        if is_here(config.base_url, setting=f"{setting}.base_url"):
            storage_url = storage_url or config.base_url
        else:
            found = application_default()
            project, credentials = config.project or found.project, found.credentials
            if not project:
                raise UserError(f"the Google credentials name no project; write {setting}.project=...")
        self._config = config
        self._setting = setting
        self._project = project
        self._credentials = credentials
        self._bucket, self._folder = bucket[1], bucket[2].strip("/")
        storage_is_here = is_here(storage_url, setting=f"{setting}.batch.storage_base_url")
        self._jobs = _job_client(config, credentials)
        self._storage = _storage_client(project, None if storage_is_here else credentials, storage_url)

    @property
    def address(self) -> str:
        where = f"{self._config.base_url} {self._parent} gs://{self._bucket}/{self._folder}"
        return f"{where.strip()} {self._config.model}"

    @property
    def _parent(self) -> str:
        return f"projects/{self._project}/locations/{self._config.location}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        self._jobs.transport.close()
        self._storage.close()

    def line(self, request: ChatRequest, *, key: str) -> Line:
        body = generate_body(request, self._config)
        text = json.dumps({"request": body, "key": key}, ensure_ascii=False).encode()
        return Line(text + b"\n", _echo(body))

    async def find(self, label: str) -> str | None:
        request = {"parent": self._parent, "filter": f"labels.{_LABEL}={label}"}

        def look() -> str | None:
            jobs = self._jobs.list_batch_prediction_jobs(request=request, timeout=self._config.timeout_seconds)
            return next((str(job.name) for job in jobs), None)

        return await self._called(look)

    async def submit(self, label: str, *, model: str, lines: BinaryIO) -> str:
        try:
            await self._called(lambda: self._upload(label, lines))
        except Permanent as error:
            raise Permanent(
                f"{self._setting}.batch.bucket: gs://{self._bucket} can not be written to; create it, or let these "
                f"credentials read and write its objects ({error})",
                scope="run",
            ) from error
        job = {
            "display_name": f"wizard-{label}",
            "model": model if "/" in model else f"publishers/google/models/{model}",
            "input_config": {
                "instances_format": "jsonl",
                "gcs_source": {"uris": [f"{self._uri(label)}/requests.jsonl"]},
            },
            "output_config": {
                "predictions_format": "jsonl",
                "gcs_destination": {"output_uri_prefix": f"{self._uri(label)}/results"},
            },
            "labels": {_LABEL: label},
        }

        def create() -> str:
            created = self._jobs.create_batch_prediction_job(
                parent=self._parent, batch_prediction_job=job, timeout=self._config.timeout_seconds
            )
            return str(created.name)

        return await self._called(create)

    async def state(self, name: str) -> JobState:
        job = await self._job(name)
        match job.state.name:
            case "JOB_STATE_SUCCEEDED":
                return JobState("complete")
            case "JOB_STATE_EXPIRED" | "JOB_STATE_PARTIALLY_SUCCEEDED":
                return JobState("cut short")
            case "JOB_STATE_CANCELLED":
                return cancelled(name)
            case "JOB_STATE_FAILED":
                message = self._readable(f"batch job {name} failed: {job.error.message or 'no reason is given'}")
                if job.error.code in _MAY_FARE_BETTER:
                    return JobState("failed", NotSent(message))
                return JobState("failed", Permanent(message, scope="run"))
            case _:
                return JobState("running")

    async def results(self, name: str) -> AsyncGenerator[Result, None]:
        job = await self._job(name)
        uri = f"{job.output_config.gcs_destination.output_uri_prefix}/"
        prefix = uri.removeprefix(f"gs://{self._bucket}/")

        def listed() -> list[Any]:
            found = self._storage.list_blobs(
                self._bucket, prefix=prefix, retry=None, timeout=self._config.timeout_seconds
            )
            return [blob for blob in found if blob.name.endswith(".jsonl")]

        for blob in await self._called(listed):
            with tempfile.TemporaryFile() as file:
                await self._called(partial(self._download, blob, file))
                while lines := await asyncio.to_thread(_some_lines, file):
                    for line in lines:
                        if (result := self._result(line)) is not None:
                            yield result

    async def _job(self, name: str) -> Any:
        return await self._called(
            lambda: self._jobs.get_batch_prediction_job(name=name, timeout=self._config.timeout_seconds)
        )

    def _uri(self, label: str) -> str:
        return "/".join(filter(None, ("gs:/", self._bucket, self._folder, label)))

    def _upload(self, label: str, lines: BinaryIO) -> None:
        from google.api_core.exceptions import PreconditionFailed

        name = self._uri(label).removeprefix(f"gs://{self._bucket}/")
        blob = self._storage.bucket(self._bucket).blob(f"{name}/requests.jsonl")
        size = lines.seek(0, 2)
        try:
            blob.upload_from_file(
                lines,
                rewind=True,
                size=size,
                content_type="application/jsonl",
                if_generation_match=0,
                retry=None,
                timeout=self._config.timeout_seconds,
            )
        except PreconditionFailed:
            return  # an earlier attempt got through: the label is of these lines alone

    def _download(self, blob: Any, file: BinaryIO) -> None:
        blob.download_to_file(file, retry=None, timeout=self._config.timeout_seconds)  # checks the checksum
        file.seek(0)

    def _result(self, line: bytes) -> Result | None:
        """What a line says; None for one that does not say whom it answers."""
        try:
            read = json.loads(without(line, secrets=self._secrets))
        except (ValueError, RecursionError):
            return None
        if not (isinstance(read, dict) and isinstance(read.get("request"), dict)):
            return None
        key, status, response = read.get("key"), read.get("status"), read.get("response")
        outcome: ChatReply | ChatError
        if isinstance(response, dict) and response:
            outcome = read_response(json.dumps(response).encode(), model=self._config.model)
        else:
            outcome = _refusal(status if isinstance(status, str) else "")
        return Result(_echo(read["request"]), key if isinstance(key, str) else None, outcome)

    async def _called(self, call: Callable[[], T]) -> T:
        """What a client library returns that waits in its thread; its failures as ours."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse  # type: ignore[import-untyped]
        from requests.exceptions import RequestException

        try:
            return await asyncio.to_thread(call)
        except GoogleAPICallError as error:
            raise _failure(error.code, self._readable(str(error))) from None  # what a library says may hold the token
        except GoogleAuthError as error:
            raise refused(error, secrets=self._secrets) from None
        except (DataCorruption, InvalidResponse) as error:
            raise Ambiguous(self._readable(f"Cloud Storage: {error}")) from None
        except RequestException as error:
            message = self._readable(f"{type(error).__name__}: {error}")
            raise (NotSent if "NewConnectionError" in message else Ambiguous)(message) from None

    def _readable(self, message: str) -> str:
        return readable(message, secrets=self._secrets)

    @property
    def _secrets(self) -> list[str]:
        """The token of the moment."""
        return [getattr(self._credentials, "token", None) or ""]


def _echo(request: Any) -> str:
    """What tells a request from others, also when defaults were filled in to all the rest of it."""

    def member(of: Any, *names: str) -> Any:
        return next((of[name] for name in names if isinstance(of, dict) and name in of), None)

    settings = member(request, "generationConfig", "generation_config")
    return fingerprint(
        {
            "contents": member(request, "contents"),
            "system": member(request, "systemInstruction", "system_instruction"),
            "seed": member(settings, "seed"),
        }
    )


def _some_lines(file: BinaryIO) -> list[bytes]:
    return [line for line, _ in zip(file, range(_LINES_AT_ONCE), strict=False)]


def _refusal(status: str) -> NotSent | Permanent:
    """Why one request of a job has no reply. Nothing is billed for it."""
    message = readable(f"Vertex AI answered in a batch job: {status or 'nothing'}", secrets=())
    told = _CODE.search(status)
    if told is None:
        return NotSent(message)
    if told[1] == "400" and TOO_LONG.search(status):
        return Permanent(message, scope="request")
    failure = refusal(int(told[1]), message)
    return failure if isinstance(failure, Permanent) else NotSent(message)


def _failure(status: Any, message: str) -> ChatError:
    """What a failed call of an API means for the job that it is about."""
    return Ambiguous(message) if status is None else of_the_job(refusal(status, message), status=status)


# --- the clients; importing them takes seconds, so only those who talk to them pay for it


def _job_client(config: Gemini, credentials: Any) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.aiplatform_v1 import JobServiceClient
    from google.cloud.aiplatform_v1.services.job_service.transports.rest import JobServiceRestTransport

    if credentials is None:
        nobody = AnonymousCredentials()  # type: ignore[no-untyped-call]
        scheme, _, host = config.base_url.rstrip("/").partition("://")
        return JobServiceClient(transport=JobServiceRestTransport(host=host, credentials=nobody, url_scheme=scheme))
    place = "" if config.location == "global" else f"{config.location}-"
    host = config.base_url.removeprefix("https://").rstrip("/") or f"{place}aiplatform.googleapis.com"
    return JobServiceClient(transport=JobServiceRestTransport(host=host, credentials=credentials))


def _storage_client(project: str, credentials: Any, base_url: str) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client  # type: ignore[import-untyped]

    if credentials is None:
        credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    options = {"api_endpoint": base_url.rstrip("/")} if base_url else None
    return Client(project=project, credentials=credentials, client_options=options)

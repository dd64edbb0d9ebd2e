"""OpenAI's Batch API, through the `openai` client library: a file goes up, a job answers it, files come down.

A job carries its label in its metadata, which is how it is found again. A line of results echoes only the `custom_id`
of its request, which is the request's digest.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, BinaryIO, Final, Self

from configs.errors import UserError
from data_gen.config import OpenAICompatible
from data_gen.llm.batch_join import Result
from data_gen.llm.batch_service import JobState, Line, cancelled, of_the_job
from data_gen.llm.chat import Ambiguous, ChatError, ChatReply, ChatRequest, NotSent, Permanent
from data_gen.llm.openai import chat_body, classed, http_library, key_for, read_completion
from data_gen.llm.wire import is_loopback, readable, retry_after, unanswered, without

_LABEL = "wizard_job"
_ENDPOINT: Final = "/v1/chat/completions"
_PAGE = 100
_QUEUE_IS_FULL = "token_limit_exceeded"


class OpenAIBatchService:
    """A `BatchService`. Leave its `async with` in the event loop that used it.

    `setting` is where in the config the provider stands.

    Raises:
      UserError: the address is not one, no key, or credentials that OpenAI does not take.
    """

    def __init__(self, config: OpenAICompatible, *, setting: str = "llm") -> None:
        if config.credentials == "google":
            raise UserError(
                f"{setting}.credentials = 'google': Vertex AI's OpenAI endpoint takes no batch jobs of this kind; "
                f"set {setting} = @Gemini with {setting}.batch = @VertexBatch, or {setting}.batch = None"
            )
        loopback = is_loopback(config.base_url, setting=f"{setting}.base_url")
        self._key = key_for(config, loopback=loopback, setting=setting)
        import openai  # takes seconds, so only those who talk to a server pay for it

        self._config = config
        self._setting = setting
        self._openai = openai
        self._broken_stream = http_library().HTTPError
        self._uploaded: dict[str, str] = {}
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "unused",
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout_seconds,
            # A proxy from the environment can not reach a server on this machine.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not loopback),
        )

    @property
    def address(self) -> str:
        return f"{self._config.base_url} {self._config.model}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        await self._client.close()

    def line(self, request: ChatRequest, *, key: str) -> Line:
        body = chat_body(request, self._config)
        line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        return Line(json.dumps(line, ensure_ascii=False).encode() + b"\n", key)

    async def find(self, label: str) -> str | None:
        try:
            async for batch in self._client.batches.list(limit=_PAGE):
                if batch.metadata and batch.metadata.get(_LABEL) == label:
                    return batch.id
        except self._openai.APIError as error:
            raise self._error(error) from None
        return None

    async def submit(self, label: str, *, model: str, lines: BinaryIO) -> str:  # noqa: ARG002 -- it is in each line
        try:
            if label not in self._uploaded:
                file = await self._client.files.create(file=(f"{label}.jsonl", lines), purpose="batch")
                self._uploaded[label] = self._id(file)
            batch = await self._client.batches.create(
                input_file_id=self._uploaded[label],
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={_LABEL: label},
            )
        except self._openai.APIError as error:
            raise self._error(error) from None
        name = self._id(batch)
        del self._uploaded[label]
        return name

    async def state(self, name: str) -> JobState:
        batch = await self._batch(name)
        match batch.status:
            case "completed":
                return JobState("complete")
            case "expired":
                return JobState("cut short")
            case "cancelled":
                return cancelled(name)
            case "failed":
                return JobState("failed", self._failure(batch))
            case _:
                return JobState("running")

    async def results(self, name: str) -> AsyncGenerator[Result, None]:
        batch = await self._batch(name)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            async for line in self._lines(file_id):
                if (result := self._result(line)) is not None:
                    yield result

    async def _batch(self, name: str) -> Any:
        try:
            batch = await self._client.batches.retrieve(name)
        except self._openai.APIError as error:
            raise self._error(error) from None
        self._id(batch)
        return batch

    def _id(self, made: Any) -> str:
        """The name of a file or job; a success status with another body, as proxies send it, tells nothing."""
        name = getattr(made, "id", None)
        if not isinstance(name, str):
            raise Ambiguous(f"{self._config.base_url} answered with a success that names no file and no job")
        return name

    async def _lines(self, file_id: str) -> AsyncIterator[bytes]:
        """The lines of a file as they come, for it may be larger than the memory that is left."""
        rest = b""
        try:
            async with self._client.files.with_streaming_response.content(file_id) as response:
                async for piece in response.iter_bytes():
                    *whole, rest = (rest + piece).split(b"\n")  # not by str.splitlines, which knows more line breaks
                    for line in whole:
                        yield line
        except self._openai.APIError as error:
            raise self._error(error) from None
        except self._broken_stream as error:
            raise Ambiguous(self._readable(f"{self._config.base_url}: {type(error).__name__}: {error}")) from None
        if rest.strip():
            yield rest

    def _result(self, line: bytes) -> Result | None:
        """What a line says; None for one that does not say whom it answers."""
        try:
            read = json.loads(without(line, secrets=[self._key]))
        except (ValueError, RecursionError):
            return None
        match read:
            case {"custom_id": str(key), "response": {"status_code": 200, "body": body}}:
                reply: ChatReply | ChatError = read_completion(json.dumps(body).encode(), model=self._config.model)
            case {"custom_id": str(key), "response": {"status_code": int(status), "body": {"error": dict(error)}}}:
                reply = self._refusal(status, error)
            case {"custom_id": str(key), "error": {"code": str(code)}}:
                reply = NotSent(f"not answered in this job: {code}")  # it expired, or was cancelled
            case {"custom_id": str(key)}:
                reply = NotSent("not answered in this job")
            case _:
                return None
        return Result(key, None, reply)

    # --- what failed

    def _refusal(self, status: int, error: dict[str, Any]) -> NotSent | Permanent:
        """Why one request of a job has no reply. Nothing is billed for it."""
        message = self._readable(f"{self._config.base_url} answered {status} in a batch job: {error.get('message')}")
        failure = classed(status, message, error)
        return failure if isinstance(failure, Permanent) else NotSent(message)

    def _failure(self, batch: Any) -> NotSent | Permanent:
        """Why a whole job failed: before it began, so nothing is billed."""
        listed = (batch.errors.data if batch.errors else None) or []
        told = "; ".join(f"{one.code}: {one.message}" for one in listed[:3])
        message = self._readable(f"batch job {batch.id} failed: {told or 'no reason is given'}")
        if any(one.code == _QUEUE_IS_FULL for one in listed):
            return NotSent(f"{message}; {self._setting}.batch.max_requests makes jobs smaller")
        return Permanent(message, scope="run")

    def _error(self, error: Any) -> ChatError:
        """What a failed call of the API means for the job that it is about."""
        if not isinstance(error, self._openai.APIStatusError):
            cause = type(error.__cause__).__name__
            message = self._readable(f"{self._config.base_url}: {cause}: {error.__cause__ or error}")
            return unanswered(cause, message)
        status = error.status_code
        message = self._readable(f"{self._config.base_url} answered {status}: {error.message}")
        wait = retry_after(error.response.headers.get("retry-after"), now=time.time())
        return of_the_job(classed(status, message, {"code": error.code}, wait=wait), status=status)

    def _readable(self, message: str) -> str:
        return readable(message, secrets=[self._key])

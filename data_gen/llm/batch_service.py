"""What a provider's batch interface is to this project; `batch.py` knows no other side of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, Protocol

from data_gen.llm.batch_join import Result
from data_gen.llm.chat import Ambiguous, ChatRequest, NotSent, Permanent

LostJobs = Literal["stop", "ask_again"]
"""What becomes of requests in a job that can not be found any more; to ask again is to pay twice for what it did."""


class Line(NamedTuple):
    """A request as it stands in a job's input file, and the fingerprint of what the provider will echo of it."""

    text: bytes
    echo: str


@dataclass(frozen=True)
class JobState:
    """How far a job is.

    "complete": every request was dealt with. "cut short": it expired, and requests that were not begun are not in its
    results. "failed": `error` says why, and is `NotSent` where another job with the same requests may fare better; it
    has results as far as it came.
    """

    phase: Literal["running", "complete", "cut short", "failed"]
    error: NotSent | Permanent | None = None


def cancelled(name: str) -> JobState:
    """Who cancels a job wants to spend no more."""
    told = f"batch job {name} was cancelled at the provider; what it had answered is kept"
    again = "the same command, started again, asks for the rest in another job"
    return JobState("failed", Permanent(f"{told}, and {again}", scope="run"))


class Gone(Permanent):
    """The provider knows no such job, or has its results no longer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, scope="run")


def of_the_job(failure: NotSent | Ambiguous | Permanent, *, status: int) -> NotSent | Ambiguous | Permanent:
    """What a failed call of the API means for the job that it is about."""
    if not isinstance(failure, Permanent):
        return failure
    return Gone(str(failure)) if status == 404 else Permanent(str(failure), scope="run")


class BatchService(Protocol):
    """A provider's batch interface. Every method but `line` raises `ChatError`s."""

    @property
    def address(self) -> str:
        """What tells the service from others: jobs are looked for where they were created."""
        ...

    def line(self, request: ChatRequest, *, key: str) -> Line: ...

    async def find(self, label: str) -> str | None:
        """The name of the job that carries the label; None if there is none."""
        ...

    async def submit(self, label: str, *, model: str, lines: BinaryIO) -> str:
        """Uploads the lines, creates a job that carries the label, and returns its name."""
        ...

    async def state(self, name: str) -> JobState:
        """Raises `Gone` where there is no such job."""
        ...

    def results(self, name: str) -> AsyncGenerator[Result, None]:
        """The lines of the results of a job that has ended, in any order; none if there are none.

        Raises `Gone` where there was a file of them and is none any more.
        """
        ...


class Limits(Protocol):
    """What of `OpenAIBatch` and `VertexBatch` this module needs."""

    @property
    def max_requests(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_wait_seconds(self) -> float: ...
    @property
    def poll_seconds(self) -> float: ...

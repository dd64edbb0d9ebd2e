"""Calls to a provider's batch interface, repeated while they fail of what may pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import BinaryIO, TypeVar

from data_gen.llm.batch_service import BatchService
from data_gen.llm.chat import Ambiguous, NotSent, Permanent

T = TypeVar("T")

_CREATE_ATTEMPTS = 10
_LOOKS = 1000  # in a row that may fail: at one a minute, a provider may be away for most of a day
_LONGEST_BACK_OFF = 60.0


class PatientCalls:
    """What is asked of one service; `trouble` is what the last call failed of, if it did."""

    def __init__(
        self, service: BatchService, *, poll_seconds: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.trouble = ""
        self._service = service
        self._poll_seconds = poll_seconds
        self._sleep = sleep

    async def submitted(
        self, label: str, *, model: str, lines: BinaryIO, forget: Callable[[], Awaitable[object]]
    ) -> str:
        """The name of the job, of which there is one however often creating it seemed to fail.

        `forget` is called where it is certain that there is none.

        Raises:
          Permanent: the provider will not have it, or could not be reached.
        """
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                name = await self.found(label) if attempt else None
                if name is None:
                    lines.seek(0)
                    name = await self._service.submit(label, model=model, lines=lines)
            except (NotSent, Ambiguous) as error:
                self.trouble = str(error)
                await self._sleep(pause(error, otherwise=min(_LONGEST_BACK_OFF, 2.0**attempt)))
            except Permanent as error:
                if not attempt:  # after another failure it may exist, so what was written down about it stays
                    await forget()
                raise Permanent(f"no batch job can be created: {error}", scope="run") from error
            else:
                self.trouble = ""
                return name
        raise Permanent(f"{_CREATE_ATTEMPTS} attempts to create a batch job failed: {self.trouble}", scope="run")

    async def found(self, label: str) -> str | None:
        """Looks twice before it says that a job is not there, for a list may lag behind."""
        if name := await self._service.find(label):
            return name
        await self._sleep(self._poll_seconds)
        return await self._service.find(label)

    async def repeated(self, look: Callable[[], Awaitable[T]]) -> T:
        """What a look at the provider finds, as often as it may take.

        Raises:
          Permanent: it was away for too long, or will not be looked at.
        """
        for _ in range(_LOOKS):
            try:
                seen = await look()
            except (NotSent, Ambiguous) as error:
                self.trouble = str(error)
                await self._sleep(pause(error, otherwise=self._poll_seconds))
            else:
                self.trouble = ""
                return seen
        raise Permanent(
            f"{_LOOKS} looks at a batch job failed in a row, the last one of: {self.trouble}. The job goes on without "
            "us, and its results are read when the same command is started again",
            scope="run",
        )


def pause(error: NotSent | Ambiguous, *, otherwise: float) -> float:
    """Seconds to wait after a failure: `otherwise`, or longer where the provider says so."""
    told = error.retry_after if isinstance(error, NotSent) else None
    return max(told or 0.0, otherwise)

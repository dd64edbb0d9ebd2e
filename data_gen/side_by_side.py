"""Requests side by side, until all are answered, a model can not be used, the budget is spent, or a signal comes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from configs.errors import UserError
from configs.interrupt import Interrupted, StopFlag
from data_gen.llm.chat import Permanent

BUDGET_SPENT = 3
"""The exit code of a run that its budget ended."""

LOST_IN_A_ROW = 20
"""So many requests that gave up one after another, with no reply between, mean that nobody is there."""

_POLL_SECONDS = 0.05  # how soon a signal is heeded


class RunError(UserError):
    """A run can not go on; what was answered so far is in its journal."""


class BudgetReached(Interrupted):
    """The budget is spent. What is there is a valid data set, and a larger budget goes on from it."""

    def __init__(self, why: str) -> None:
        super().__init__(BUDGET_SPENT, why)


async def all_done(work: Iterable[Coroutine[Any, Any, None]], *, stop: StopFlag) -> None:
    """Waits for all, or for the first failure or a signal; then the journal drains what is in flight.

    Raises:
      RunError: a model can not be used at all.
      Interrupted: a signal came.
    """
    tasks = [asyncio.create_task(one) for one in work]
    together = asyncio.gather(*tasks)
    while not together.done() and stop.exit_code is None:
        await asyncio.wait([together], timeout=_POLL_SECONDS)
    for task in tasks:
        task.cancel()
    # Each is asked for its error: asyncio prints one that nobody has seen, behind our own message.
    *ended, _ = await asyncio.gather(*tasks, together, return_exceptions=True)
    errors = (one for one in ended if isinstance(one, BaseException))
    failed = next((error for error in errors if not isinstance(error, asyncio.CancelledError)), None)
    if isinstance(failed, Permanent):
        raise RunError(
            f"the model can not be used: {failed}. What was answered so far is saved: "
            "mend this and start the same command again"
        ) from failed
    if failed is not None:
        raise failed
    stop.raise_if_set()

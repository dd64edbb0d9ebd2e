"""Stopping all processes of a run in the same step, whichever of them was told to, or lost its data.

A process writes its wish into its rows of the next batch; the step gives the strongest of all wishes to every process.
They look at it one step late, so that the devices never wait for a process that waits for them:

    batch      step 7   step 8 *  step 9      * a process is told to stop before it feeds step 8
    looked at  step 6   step 7    step 8      all see it, have made step 9, and save that
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeVar

from configs.interrupt import Interrupted, StopFlag
from wizard_jax.data.config import DataError
from wizard_jax.hosts.group import Hosts
from wizard_jax.train.step import STOP_AFTER, StepMetrics

T = TypeVar("T")

GO_ON = 0
NO_DATA = STOP_AFTER + 1
# What reading a file raises that is gone or damaged: ArrayRecord's errors are of all these kinds.
_UNREADABLE = (OSError, ValueError, LookupError, RuntimeError)


class Halting:
    """What this process wishes for the next batch, and what all of them have settled on."""

    def __init__(self, hosts: Hosts, stop: StopFlag) -> None:
        self._hosts, self._stop = hosts, stop
        self._failure: str | None = None
        self._unseen: list[StepMetrics] = []
        self._settled = GO_ON

    @property
    def wish(self) -> int:
        """For this process's rows of `halt`."""
        if self._failure is not None:
            return NO_DATA
        return GO_ON if self._stop.exit_code is None else STOP_AFTER

    @property
    def is_settled(self) -> bool:
        """No further step is to be made, on any process."""
        return self._settled != GO_ON

    @property
    def rows_are_missing(self) -> bool:
        """The newest steps have changed nothing: some process had no data for them."""
        return self._settled > STOP_AFTER

    def look(self, metrics: StepMetrics | None = None, *, lag: int) -> None:
        """Learn what came of every step but the newest `lag`; waits for the devices to have made them."""
        if metrics is not None:
            self._unseen.append(metrics)
        while len(self._unseen) > lag:
            self._settled = max(self._settled, int(self._unseen.pop(0).halt))

    def fed(self, batches: Iterator[T], *, nothing: T) -> Iterator[tuple[T, int]]:
        """Each batch with this process's wish; `nothing`, without end, once reading has failed."""
        try:
            for batch in batches:
                yield batch, self.wish
        except _UNREADABLE as error:
            self._failure = f"{type(error).__name__}: {error}".strip()
        while True:
            yield nothing, self.wish

    def raise_if_settled(self, *, saved: int) -> None:
        """After the checkpoint `saved`: DataError or Interrupted, the same on all processes."""
        if not self.is_settled:
            return
        told = [
            json.loads(text) for text in self._hosts.gather("halt", json.dumps([self._failure, self._stop.exit_code]))
        ]
        failures = [(index, failure) for index, (failure, _) in enumerate(told) if failure is not None]
        if failures:
            who = "; ".join(f"{self._hosts.called(index)}: {failure}" for index, failure in failures)
            raise DataError(
                f"the rows of step {saved + 1} can not be read ({who}); the run is saved at step {saved}: mend that, "
                "and start the same command again"
            )
        raise Interrupted(max(code for _, code in told if code is not None))

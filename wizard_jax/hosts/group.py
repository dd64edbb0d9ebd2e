"""The processes of one run: what they know of one another, and where they wait for one another.

All of it goes through the key-value store and the barriers of JAX's coordination service, which process 0 runs: they
work before there are devices, and while the devices are busy.
"""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from configs.errors import UserError
from configs.interrupt import Interrupted

MINUTES = 10.0
"""How long a process waits for the others where nothing long is done."""
_ROOT = "wizard"
_SHOWN_DIFFERENCES = 10


class HostsError(UserError):
    """The processes of a run were not started alike, or do not see the same files."""


class HostLost(Interrupted):
    """Another process is dead or stuck: what was saved is whole, and the same command goes on from there."""

    def __init__(self, why: str) -> None:
        super().__init__(42, f"{why}; everything up to the newest checkpoint is saved: run the same command to go on")


class Hosts:
    """All processes of a run, as one of them sees them.

    Every process must make the same calls in the same order; a call ends when all have made it.
    """

    def __init__(self, *, index: int = 0, names: Sequence[str] = ("this host",), client: Any = None) -> None:
        """`names`: of the machine of each process. `client`: of the coordination service; None for one process."""
        assert (client is None) == (len(names) == 1), names
        self.index = index
        self.names = tuple(names)
        self._client = client
        self._calls: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def is_first(self) -> bool:
        """Of all processes one writes what all share."""
        return self.index == 0

    def called(self, index: int) -> str:
        return f"process {index} of {self.count} on {self.names[index]}"

    def wait(self, name: str, *, minutes: float = MINUTES) -> None:
        """Until every process has come here. Raises HostLost, naming those that are missing, when time is up."""
        self.gather(name, "", minutes=minutes)

    def gather(self, name: str, told: str, *, minutes: float = MINUTES) -> list[str]:
        """What every process has told here, in the order of processes. Raises as `wait` does."""
        if self._client is None:
            return [told]
        self._calls[name] += 1
        key = f"{_ROOT}/{name}/{self._calls[name]}"
        self._client.key_value_set(f"{key}/{self.index}", told)
        try:
            self._client.wait_at_barrier(key, int(minutes * 60_000))
        except jax.errors.JaxRuntimeError as error:
            missing = sorted(set(range(self.count)) - self._said(key).keys())
            if "DEADLINE_EXCEEDED" not in str(error) or not missing:
                raise
            who = " and ".join(self.called(index) for index in missing)
            raise HostLost(f"{who} did not come to {name!r} within {minutes:g} minutes") from error
        said = self._said(key)
        return [said[index] for index in range(self.count)]

    def agree(self, what: str, facts: Mapping[str, str]) -> None:
        """Raises HostsError, on every process, unless the facts are the same on all; names one that differs."""
        told = [json.loads(text) for text in self.gather(what, json.dumps(dict(facts)))]
        for index, others in enumerate(told):
            different = [name for name in {**told[0], **others} if told[0].get(name) != others.get(name)]
            if different:
                lines = [f"{name} = {others.get(name)}, not {told[0].get(name)}" for name in different]
                shown = "; ".join(lines[:_SHOWN_DIFFERENCES])
                raise HostsError(
                    f"{self.called(index)} has another {what} than process 0 on {self.names[0]}: {shown}; start every "
                    "process with the same command, files and versions"
                )

    @contextlib.contextmanager
    def first_then_others(self, name: str, *, minutes: float = MINUTES) -> Iterator[None]:
        """Process 0 does what is inside, and then the others do, who find it done."""
        if not self.is_first:
            self.wait(name, minutes=minutes)
        yield
        if self.is_first:
            self.wait(name, minutes=minutes)

    def publish(self, name: str, told: str) -> None:
        """Without waiting: what `published` finds from now on; told again, it is replaced."""
        if self._client is not None:
            self._client.key_value_set(f"{_ROOT}/{name}/{self.index}", told, allow_overwrite=True)

    def published(self, name: str) -> dict[int, str]:
        """What processes have published so far, by process."""
        return self._said(f"{_ROOT}/{name}")

    def _said(self, key: str) -> dict[int, str]:
        if self._client is None:
            return {}
        return {int(path.rpartition("/")[2]): told for path, told in self._client.key_value_dir_get(f"{key}/")}


ALONE = Hosts()
"""One process, which waits for nobody."""

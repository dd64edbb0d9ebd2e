"""What goes wrong with batch jobs, as the simulated server is told: when they are created, and in their results."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from configs.errors import UserError

T = TypeVar("T")

CreateFailure = Literal["503 before", "503 after"]
"""Whether the job exists when its creation is answered with 503."""

Ending = Literal["complete", "cut short", "failed"]


@dataclass(frozen=True, kw_only=True)
class BatchFaults:
    """Results come shuffled, always; the rest by what is said here.

    Args:
      looks: so many looks at a job find it unfinished.
      missing: share of the lines of a job's results that are left out.
      duplicated: share that is there twice.
      swapped: share whose keys are exchanged with one another; Vertex AI only, for there the request is echoed too.
      creates: what becomes of the first creations; later ones succeed.
      endings: how the first jobs end; later ones are complete. One that is cut short has answered half its requests.
      broken_downloads: so many downloads of files are dropped.
    """

    seed: int = 0
    looks: int = 1
    missing: float = 0.0
    duplicated: float = 0.0
    swapped: float = 0.0
    creates: Sequence[CreateFailure] = ()
    endings: Sequence[Ending] = ()
    broken_downloads: int = 0

    def __post_init__(self) -> None:
        shares = (self.missing, self.duplicated, self.swapped)
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise UserError("missing, duplicated and swapped are shares of a job's lines, and at most 1 together")


class BatchTrouble:
    """The faults that are still to come."""

    def __init__(self, faults: BatchFaults) -> None:
        self.looks = faults.looks
        self._faults = faults
        self._creates = list(faults.creates)
        self._endings = list(faults.endings)
        self._broken_downloads = faults.broken_downloads

    def next_create(self) -> CreateFailure | None:
        return self._creates.pop(0) if self._creates else None

    def next_ending(self) -> Ending:
        return self._endings.pop(0) if self._endings else "complete"

    def download_breaks(self) -> bool:
        if not self._broken_downloads:
            return False
        self._broken_downloads -= 1
        return True

    def tampered(self, lines: Sequence[T], *, job: str, swap: Callable[[T, T], tuple[T, T]] | None = None) -> list[T]:
        """The lines as they are found: shuffled, some swapped, left out or doubled, no line in two of these ways."""
        draws = random.Random(f"{self._faults.seed} {job}")
        shuffled = draws.sample(lines, len(lines))
        count = {name: round(getattr(self._faults, name) * len(lines)) for name in ("missing", "duplicated", "swapped")}
        swapped = count["swapped"] // 2 * 2 if swap else 0
        for at in range(0, swapped, 2):
            assert swap
            shuffled[at], shuffled[at + 1] = swap(shuffled[at], shuffled[at + 1])
        kept = shuffled[: len(shuffled) - count["missing"]]
        found = kept + kept[swapped : swapped + count["duplicated"]]
        return draws.sample(found, len(found))

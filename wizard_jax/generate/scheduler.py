"""One thread at the devices: what waits is given to rows as they come free, and what rows say goes to who asked.

Each request goes to the smallest of a few engines that holds its prompt and its answer. So an answer of a hundred
tokens does not pay for a thousand slots, and how an answer is computed depends on its own request alone.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax

from wizard_jax.generate.engine import Ask, Chances, Engine, Said, Tokens
from wizard_jax.generate.speaker import Speaker
from wizard_jax.progress import Progress

SHORTEST, APART = 256, 4
"""Slots of the smallest engine, and how many times more the next has."""
STEPS = 8
STEPS_WHEN_SHOWN = 4
"""Tokens between two looks at what waits; fewer where somebody reads along."""


class Full(Exception):
    """There is no place in the queue."""


@dataclass(frozen=True)
class Failed:
    """The server can not go on; the error is of this program, not of who asked."""

    error: BaseException


@dataclass(eq=False, kw_only=True)
class Job:
    """A prompt to continue, or a text to score; `deliver` is called in the scheduler's thread."""

    what: Ask | Tokens
    deliver: Callable[[Said | Chances | Failed], None]
    shown: bool = False
    """Whether somebody reads along."""
    cancelled: bool = field(default=False, init=False)


class Scheduler:
    """Works while it is entered. `submit` and `cancel` may be called from any thread."""

    def __init__(
        self, speaker: Speaker, *, rows: int, length: int, queue: int, mesh: jax.sharding.Mesh | None = None
    ) -> None:
        """`length` is the most tokens of a prompt and its answer, `queue` how many may wait when all rows are taken."""
        self.speaker, self._mesh = speaker, mesh
        self._most = rows + queue
        with self._on_devices():
            self._engines = {
                slots: Engine(speaker.params, config=speaker.config, rows=rows, length=slots)
                for slots in lengths(length)
            }
        self._waiting: deque[Job] = deque()
        self._speaking: dict[tuple[int, int], Job] = {}
        self._changed = threading.Condition()
        self._ending = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)

    def compile(self, progress: Progress) -> None:
        """Every program that a request may need, so that none waits for a compiler; before it is entered."""
        with self._on_devices():
            total = sum(1 + len(engine.buckets) for engine in self._engines.values())
            compiled = itertools.chain.from_iterable(engine.compiling() for engine in self._engines.values())
            progress(0, total, {})
            for done, _ in enumerate(compiled, start=1):
                progress(done, total, {})

    def __enter__(self) -> Scheduler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel_all()
        self.drain()

    @property
    def unfinished(self) -> int:
        """Jobs that wait or are being answered."""
        with self._changed:
            return len(self._waiting) + len(self._speaking)

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def submit(self, jobs: Sequence[Job]) -> None:
        """Raises Full: not all of them have a place."""
        with self._changed:
            if self._failure is not None:
                raise RuntimeError("the scheduler has failed") from self._failure
            if len(self._waiting) + len(self._speaking) + len(jobs) > self._most:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for them any more; those that are done already are left alone."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def cancel_all(self) -> None:
        with self._changed:
            self.cancel([*self._waiting, *self._speaking.values()])

    def drain(self) -> None:
        """Returns when all that was submitted is done."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            with self._on_devices():
                while self._wait():
                    self._admit()
                    self._advance()
        except BaseException as error:
            with self._changed:
                self._failure = error
                left = [*self._waiting, *self._speaking.values()]
                self._waiting.clear()
                self._speaking.clear()
            for job in left:
                job.deliver(Failed(error))

    def _wait(self) -> bool:
        """Until there is something to do; false when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._speaking or self._ending)
            return bool(self._waiting or self._speaking)

    def _admit(self) -> None:
        """Frees rows of who hung up, gives free rows away, and scores one text."""
        for key in [key for key, job in self._speaking.items() if job.cancelled]:
            self._free(key)
        with self._changed:
            waiting = list(self._waiting)
        scored = 0
        for job in waiting:
            if job.cancelled:
                self._take(job)
            elif not isinstance(job.what, Ask):
                if not scored:  # a long text would keep the rows waiting
                    job.deliver(self._engine(len(job.what)).score(job.what))
                    self._take(job)
                    scored = 1
            else:
                engine = self._engine(len(job.what.prompt) + job.what.sampling.max_new_tokens)
                if engine.free:
                    row = engine.admit(job.what)
                    with self._changed:
                        self._waiting.remove(job)
                        self._speaking[engine.length, row] = job

    def _take(self, job: Job) -> None:
        with self._changed:
            self._waiting.remove(job)

    def _advance(self) -> None:
        steps = STEPS_WHEN_SHOWN if any(job.shown for job in self._speaking.values()) else STEPS
        for length, engine in self._engines.items():
            if not engine.busy:
                continue
            for row, said in engine.advance(steps).items():
                job = self._speaking[length, row]
                if said.ended:
                    self._free((length, row))
                if not job.cancelled:
                    job.deliver(said)

    def _free(self, key: tuple[int, int]) -> None:
        length, row = key
        self._engines[length].release(row)
        with self._changed:
            del self._speaking[key]

    def _engine(self, length: int) -> Engine:
        return next(engine for slots, engine in self._engines.items() if length <= slots)

    def _on_devices(self) -> contextlib.AbstractContextManager[object]:
        return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()


def lengths(most: int) -> list[int]:
    """The slots of the engines.

    >>> lengths(2048), lengths(100)
    ([256, 1024, 2048], [100])
    """
    shorter = itertools.takewhile(lambda slots: slots < most, (SHORTEST * APART**n for n in itertools.count()))
    return [*shorter, most]

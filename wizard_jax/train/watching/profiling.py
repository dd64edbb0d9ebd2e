"""A trace of named steps on request, for TensorBoard's profile page, Perfetto or XProf."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import jax

from configs.errors import UserError

FOLDER = "profile"

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


def check_profile_steps(profile_steps: tuple[int, int] | None, *, total: int) -> None:
    """Raises UserError for steps that a run of `total` steps does not have."""
    if profile_steps is None:
        return
    first, count = profile_steps
    if first < 1 or count < 1 or first + count - 1 > total:
        raise UserError(
            f"profile_steps is {profile_steps}, (first step, how many), and the run has steps 1 to {total}: "
            "choose some of those, after the first few, which are not like the others"
        )


@contextlib.contextmanager
def profiled(
    step: Callable[P, T], profile_steps: tuple[int, int] | None, *, folder: Path, done: int
) -> Iterator[Callable[P, T]]:
    """`step`, which traces its calls number `first` to `first + count - 1` into `folder`, counted from `done` + 1.

    The devices are waited for before and after, so that the trace holds these steps whole and nothing else. Of
    several processes the first one traces its own devices.
    """
    if profile_steps is None or jax.process_index() != 0:
        yield step
        return
    first, count = profile_steps
    if done >= first and not folder.exists():
        _log.warning("step %d, with which the profile begins, is done: nothing is traced", first)
    tracing = _Tracing(step, first=first, last=first + count - 1, folder=folder, done=done)
    try:
        yield tracing
    finally:
        tracing.stop()


class _Tracing(Generic[T]):
    def __init__(self, step: Callable[..., T], *, first: int, last: int, folder: Path, done: int) -> None:
        self._step, self._first, self._last, self._folder, self._done = step, first, last, folder, done
        self._is_on = False

    def __call__(self, *args: object, **kwargs: object) -> T:
        self._done += 1
        if self._done == self._first:
            jax.block_until_ready((args, kwargs))  # type: ignore[no-untyped-call]  # jax leaves it so
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        if not self._is_on:
            return self._step(*args, **kwargs)
        with jax.profiler.StepTraceAnnotation("train", step_num=self._done):
            result = self._step(*args, **kwargs)
        if self._done == self._last:
            jax.block_until_ready(result)  # type: ignore[no-untyped-call]
            self.stop()
        return result

    def stop(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()  # type: ignore[no-untyped-call]
            _log.info("the profile is in %s", self._folder)

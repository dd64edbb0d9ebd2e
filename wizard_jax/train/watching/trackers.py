"""Where curves are looked at: one small interface, and who speaks it.

TensorBoard is a folder of the run, always written. Others are asked for by settings and lie behind a network: a
thread of its own serves each, so that a slow one keeps nobody waiting, and what goes wrong with it is said once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax

from configs.errors import UserError
from configs.folder import write_atomically
from configs.loader import setting
from data_gen.llm.wire import readable

FILE = "trackers.json"
_MOST_WAITING = 10_000
"""Lines that wait for a tracker that does not keep up; about 10 MB."""
_LAST_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
    """Weights & Biases: a run with the name of the run folder."""

    project: str = setting(doc="of the entity's projects")
    entity: str | None = setting(None, doc="user or team; None: the key's own")
    mode: Literal["online", "offline"] = setting(
        "online", doc="offline: written to RUN/wandb, for `wandb sync`; WANDB_MODE=offline does the same"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VertexExperiment:
    """Vertex AI Experiments: a run in an experiment, with curves in a Vertex AI TensorBoard."""

    experiment: str = setting(doc="name of the experiment: lower-case letters, digits and -")
    project: str = setting(doc="Google Cloud project")
    location: str = setting(doc="region, such as us-central1")
    tensorboard: str | None = setting(
        None, doc="projects/P/locations/L/tensorboards/T; None: the project's default, made if there is none"
    )
    endpoint: str | None = setting(None, doc="address of the API; None: Google's")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trackers:
    """What gets a run's figures besides metrics.jsonl and TensorBoard."""

    wandb: WandB | None = setting(None, doc="Weights & Biases")
    vertex: VertexExperiment | None = setting(None, doc="Vertex AI Experiments")


class TrackerError(UserError):
    """A tracker that can not be used as the config asks."""


class Tracker(Protocol):
    """Gets the figures of every line of `metrics.jsonl`, by name; the same step may come twice, with other names."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Makes what was written visible, as far as that takes no waiting."""

    def close(self, *, finished: bool) -> None:
        """What was written is kept, by this process or one that outlives it; nothing comes after it.

        A run that is not `finished` may go on later.
        """


class RunName(NamedTuple):
    """What a run is called where it is tracked: `id` is the same at every start, `name` is for people."""

    id: str
    name: str


class InBackground:
    """A tracker that is opened, fed and closed by a thread of its own, and whose failures stop nothing.

    The first failure is logged, without `secrets`; the line that met it is lost, and the next one is tried. A tracker
    that does not keep up loses lines; one that does not come to an end is left behind after `last_seconds`.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        *,
        secrets: Sequence[str] = (),
        most_waiting: int = _MOST_WAITING,
        last_seconds: float = _LAST_SECONDS,
    ) -> None:
        self._name, self._make, self._secrets, self._last_seconds = name, make, secrets, last_seconds
        self._waiting: queue.Queue[Callable[[Tracker], None]] = queue.Queue(most_waiting)
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._send(lambda tracker: tracker.write(step, figures))

    def flush(self) -> None:
        self._send(lambda tracker: tracker.flush())

    def close(self, *, finished: bool) -> None:
        deadline = time.monotonic() + self._last_seconds
        with contextlib.suppress(queue.Full):
            self._waiting.put(_Last(finished), timeout=self._last_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say("end", "does not come to an end, and is left behind: its curves may lack the last steps")

    def _send(self, call: Callable[[Tracker], None]) -> None:
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._say("full", "does not keep up, and its curves lack steps that metrics.jsonl has")

    def _serve(self) -> None:
        tracker: Tracker | None = None
        call: Callable[[Tracker], None] | None = None
        while not isinstance(call, _Last):
            call = self._waiting.get()
            try:
                tracker = tracker or self._make()
                call(tracker)
            except Exception as error:  # of whatever library: a curve is no reason to lose a run
                problem = readable(f"{type(error).__name__}: {error}", secrets=self._secrets)
                self._say("failure", f"{problem.removesuffix(':')}; the run goes on, with all figures in metrics.jsonl")

    def _say(self, kind: str, problem: str) -> None:
        """Once of a kind."""
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("%s: %s", self._name, problem)


class _Last:
    """The call after which a tracker gets no more."""

    def __init__(self, finished: bool) -> None:
        self._finished = finished

    def __call__(self, tracker: Tracker) -> None:
        tracker.close(finished=self._finished)


def check_trackers(config: Trackers) -> None:
    """Raises UserError where a tracker is asked for whose client is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise TrackerError(
            "trackers.wandb asks for Weights & Biases, which comes with an extra: pip install 'wizard-jax[wandb]'"
        )


@contextlib.contextmanager
def open_trackers(config: Trackers, folder: Path, *, settings: Mapping[str, str]) -> Iterator[tuple[Tracker, ...]]:
    """The trackers that a config asks for, closed at the end; of several processes the first one has them.

    `settings` are the run's, by path.
    """
    opened: list[Tracker] = []
    if jax.process_index() == 0 and config != Trackers():
        run = _run_name(folder)
        keys = [value for name, value in os.environ.items() if name.endswith(("_KEY", "_TOKEN")) and len(value) > 7]
        if config.wandb is not None:
            opened.append(InBackground("Weights & Biases", _wandb(config.wandb, run, folder, settings), secrets=keys))
        if config.vertex is not None:
            opened.append(InBackground("Vertex AI Experiments", _vertex(config.vertex, run, settings), secrets=keys))
    finished = False
    try:
        yield tuple(opened)
        finished = True
    finally:
        for tracker in opened:
            tracker.close(finished=finished)


def _wandb(config: WandB, run: RunName, folder: Path, settings: Mapping[str, str]) -> Callable[[], Tracker]:
    def make() -> Tracker:
        from wizard_jax.train.watching.wandb_tracker import WandBTracker  # the client takes 3 s to import

        return WandBTracker(config, run=run, folder=folder, settings=settings)

    return make


def _vertex(config: VertexExperiment, run: RunName, settings: Mapping[str, str]) -> Callable[[], Tracker]:
    def make() -> Tracker:
        from wizard_jax.train.watching.vertex_tracker import VertexTracker  # the client takes 20 s to import

        return VertexTracker(config, run=run, settings=settings)

    return make


def _run_name(folder: Path) -> RunName:
    """Chosen at the first start that tracks, and kept in the run folder."""
    file = folder / FILE
    try:
        return RunName(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        run = RunName(id=secrets.token_hex(4), name=folder.absolute().name)
        write_atomically(file, json.dumps(run._asdict()) + "\n")
        return run


def flat(line: Mapping[str, Any], *, under: str = "") -> dict[str, float]:
    """The numbers of a line by their path: {"timing": {"seconds": 1.0}} gives {"timing/seconds": 1.0}."""
    figures: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            figures |= flat(value, under=f"{under}{name}/")
        elif value is not None:
            figures[under + name] = value
    return figures

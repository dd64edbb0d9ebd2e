"""Vertex AI Experiments: a run's settings and last figures in its table, its curves in a Vertex AI TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping

import google.auth
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import Execution

from data_gen.llm.wire import readable
from wizard_jax.train.watching.trackers import RunName, TrackerError, VertexExperiment

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
STATE = Execution.State


class VertexTracker:
    """One run of an experiment, found again by its name at every start. A request for every line."""

    def __init__(self, config: VertexExperiment, *, run: RunName, settings: Mapping[str, str]) -> None:
        _quiet()
        self._credentials, _ = google.auth.default(scopes=SCOPES)
        self._last: dict[str, float] = {}
        name = run_id(run)
        with self._without_token():
            aiplatform.init(
                project=config.project,
                location=config.location,
                credentials=self._credentials,
                experiment=config.experiment,
                experiment_tensorboard=config.tensorboard,
                api_endpoint=config.endpoint,
                api_transport="rest",  # gRPC's threads outlive the run
            )
            found = aiplatform.ExperimentRun.get(name, experiment=config.experiment)
            self._run = found or aiplatform.ExperimentRun.create(name, experiment=config.experiment)
            self._run.update_state(STATE.RUNNING)
            self._run.log_params(dict(settings))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        with self._without_token():
            self._run.log_time_series_metrics(dict(figures), step=step)
        self._last |= figures

    def flush(self) -> None:
        """Every line is sent as it comes."""

    def close(self, *, finished: bool) -> None:
        with self._without_token():
            self._run.log_metrics(dict(self._last))
            self._run.update_state(STATE.COMPLETE if finished else STATE.FAILED)

    @contextlib.contextmanager
    def _without_token(self) -> Iterator[None]:
        """Errors that say nothing of the token, which a server may have thrown back."""
        try:
            yield
        except Exception as error:  # the library's, and those of three more below it
            token = self._credentials.token or ""
            raise TrackerError(readable(f"{type(error).__name__}: {error}", secrets=[token])) from None


def _quiet() -> None:
    """The library's loggers print to the terminal, where the live table is, whatever the program has set up."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("google.cloud.aiplatform"):
            logging.getLogger(name).setLevel(logging.WARNING)


def run_id(run: RunName) -> str:
    """The run's name in letters that a resource may have: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")[:40]
    return f"{name}-{run.id}" if name else f"run-{run.id}"

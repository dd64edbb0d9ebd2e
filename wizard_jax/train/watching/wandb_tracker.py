"""Weights & Biases. Its client sends what it is given from a process of its own."""

from __future__ import annotations

import netrc
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import wandb

from wizard_jax.train.watching.trackers import RunName, TrackerError, WandB


class WandBTracker:
    """A run that is the same one at every start. Only figures and settings are sent: no code, revision or console."""

    def __init__(self, config: WandB, *, run: RunName, folder: Path, settings: Mapping[str, str]) -> None:
        offline = "offline" in (config.mode, os.environ.get("WANDB_MODE"))
        if not offline and not _has_key():
            raise TrackerError(
                "no key is found: export WANDB_API_KEY, or run `wandb login`, or set trackers.wandb.mode=offline"
            )
        wandb.setup(settings=wandb.Settings(silent=True))  # or it greets its user in the middle of the live table
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            dir=str(folder),
            id=run.id,
            name=run.name,
            config=dict(settings),
            mode="offline" if offline else None,
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,  # seconds; 90 otherwise, for which a process that ends waits
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,  # command line, user, paths
                x_save_requirements=False,
            ),
        )
        # Its own count of steps can not go back to a checkpoint: curves are drawn over ours.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def flush(self) -> None:
        """Its own process sees to it."""

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def _has_key() -> bool:
    """Without one the client asks for it on the terminal."""
    if {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & os.environ.keys():
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False

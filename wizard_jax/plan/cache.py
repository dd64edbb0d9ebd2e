"""Plans that were made before, by what decides them; several processes may make them at once.

    <folder>/<key>.json    a `Plan` or an `Overflow`
    <folder>/<key>.lock    held by the process that compiles it

The compiler's own cache is no help: an executable for a TPU can be written, and read only by a TPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import launch.slices
from configs.folder import write_atomically
from configs.loader import entries
from launch.slices import find_slice
from wizard_jax.plan.report import Outcome, from_json, to_json
from wizard_jax.train.config import TrainConfig

NOT_IN_THE_STEP = (
    "tokenizer",
    "init",
    "data",
    "seed",
    "steps",
    "epochs",
    "batch",
    "slice",
    "mesh",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "stall_minutes",
    "log_every",
    "held_out",
    "trackers",
    "pack_cache",
    "compilation_cache",
    "peak_flops",
    "profile_steps",
)
"""Settings (and all below them) that the compiled step does not know, or that stand in the key in another form.
A setting that is not named here counts."""


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "wizard_jax" / "plans"


def plan_key(
    config: TrainConfig, *, mesh: Mapping[str, int], rows: int, versions: Mapping[str, str], flags: Mapping[str, str]
) -> str:
    """What decides a plan, as 16 hexadecimal digits: settings, mesh, rows of a step, source, versions and flags."""
    assert config.slice is not None
    settings = {one.path: one.text for one in entries(config) if one.path.partition(".")[0] not in NOT_IN_THE_STEP}
    decides = {
        "settings": settings,
        "slice": find_slice(config.slice).key,
        "mesh": dict(mesh),
        "rows": rows,
        "seq_len": config.data.seq_len,
        "source": _source_hash(),
        "versions": dict(versions),
        "flags": dict(flags),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


STEP_MODULES = ("step", "loss", "optimizer", "factored", "guard")
"""Of `wizard_jax.train`: those that the step is made of. All of `wizard_jax.model` counts too."""
_READERS = ("train/fit", "plan/plan", "plan/report", "plan/collectives", "plan/hlo", "plan/tpu_compiler")


def _source_hash() -> str:
    """Of every file that may change the step, or what is read out of it."""
    package = Path(__file__).parents[1]
    names = [*(f"train/{name}" for name in STEP_MODULES), *_READERS]
    files = [*(package / f"{name}.py" for name in names), *sorted((package / "model").glob("*.py"))]
    digest = hashlib.sha256()
    for file in (*files, Path(launch.slices.__file__)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Busy(Exception):
    """Another process makes this plan now."""


class PlanCache:
    """A folder of plans."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Outcome | None:
        """A plan that was made before; None for one that was not, or that can not be read."""
        try:
            return from_json((self.folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None

    def put(self, outcome: Outcome) -> None:
        write_atomically(self.folder / f"{outcome.key}.json", to_json(outcome))

    @contextlib.contextmanager
    def making(self, key: str, *, busy: Literal["wait", "raise"]) -> Iterator[None]:
        """Only one process at a time makes the plan of a key: others wait here and then find it, or get `Busy`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{key}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy == "raise" else 0))
            except BlockingIOError:
                raise Busy(key) from None
            yield

"""What it takes to repeat a run beside its config.gin: code, packages, machine and input, of every start.

starts.jsonl            a line for each start: when, from which step, the command, which environment, what changed
environment.json        the first start's: source, Python, packages, devices, hashes of the input
source.diff             what its source differs by from the revision that it names; absent where it does not
environment-2.json ...  of a later start that found something else

No environment variable is written down, and of a source tree only what git has under version control in the folders
of the code: a file that it does not track is named and not read.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configs.folder import write_atomically
from configs.loader import entries
from wizard_jax.train.watching.utilisation import Utilisation

ROOT = Path(__file__).parents[3]
STARTS = "starts.jsonl"
_CODE = ("configs", "data_gen", "launch", "wizard_jax", "pyproject.toml", "uv.lock")
_NEVER = ":(exclude,glob)**/.env*"
_SHOWN_CHANGES = 8

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What code runs: of a git checkout its revision, else the installed version; and how it differs from that."""

    told: dict[str, Any]
    diff: str


def record_start(
    folder: Path,
    *,
    config: Any,
    step: int,
    inputs: Mapping[str, str | None],
    utilisation: Utilisation | None,
    root: Path = ROOT,
) -> None:
    """Append a start, from `step`, to starts.jsonl; write its environment where it is not that of the start before.

    `inputs` are hashes by name; `root` is the folder that holds the code's packages. Of several processes the first
    one writes.
    """
    if jax.process_index() != 0:
        return
    told, diff = _environment(root, inputs=inputs, utilisation=utilisation)
    starts = read_starts(folder)
    number = len(starts) + 1
    name = starts[-1]["environment"] if starts else ""
    before = _read(folder / f"{name}.json") if name else None
    changed = [] if before is None else _changes(before, told)
    if before is None or changed or _read_diff(folder, name) != diff:
        name = "environment" if number == 1 else f"environment-{number}"
        if diff:
            write_atomically(folder / _diff_of(name), diff)
        write_atomically(folder / f"{name}.json", json.dumps(told, indent=1) + "\n")
        if before is not None:
            changed = changed or ["source.diff"]
            more = f" and {len(changed) - _SHOWN_CHANGES} more" if len(changed) > _SHOWN_CHANGES else ""
            _log.warning(
                "%s goes on with other things than before: %s%s", folder, "; ".join(changed[:_SHOWN_CHANGES]), more
            )
    start = {
        "start": number,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "host": platform.node(),
        "command": sys.argv,
        "environment": name,
        "changed": changed,
        "operational": {one.path: one.text for one in entries(config) if one.role == "operational"},
    }
    write_atomically(folder / STARTS, "".join(json.dumps(line) + "\n" for line in [*starts, start]))


def _environment(
    root: Path, *, inputs: Mapping[str, str | None], utilisation: Utilisation | None
) -> tuple[dict[str, Any], str]:
    """What `environment.json` holds, and the text of `source.diff`."""
    devices = jax.devices()
    source = source_of(root)
    told = {
        "source": source.told,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "input": dict(inputs),
        "model_flops_utilisation": None if utilisation is None else dataclasses.asdict(utilisation),
        "packages": _packages(),
    }
    return told, source.diff


def source_of(root: Path) -> Source:
    """The revision and diff of the code in `root` where git has it, and else the version of the package."""
    version = {"version": _packages().get("wizard-jax", "unknown")}
    if _git(root, "ls-files", "--error-unmatch", "wizard_jax/__init__.py") is None:
        return Source(version, "")
    revision = _git(root, "rev-parse", "HEAD")
    paths = ("--", *(path for path in _CODE if (root / path).exists()), _NEVER)
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    diff = None if revision is None else _git(root, "diff", "HEAD", *options, *paths)
    if revision is None or diff is None:  # no commit yet
        return Source(version, "")
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard", *paths) or "").splitlines()
    told = {**version, "revision": revision.strip(), "modified": bool(diff), "untracked": untracked}
    return Source(told, diff)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no checkout, or it is not ours to read."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=root, env={**ours, "GIT_OPTIONAL_LOCKS": "0"}, capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _packages() -> dict[str, str]:
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], *, under: str = "") -> list[str]:
    """`path: before -> now` of every leaf that differs."""
    changes = []
    for name in [*before, *(name for name in now if name not in before)]:
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            changes += _changes(was, is_, under=f"{under}{name}.")
        elif was != is_:
            changes.append(f"{under}{name}: {_text(was)} -> {_text(is_)}")
    return changes


def _text(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _diff_of(name: str) -> str:
    return f"{name.replace('environment', 'source', 1)}.diff"


def _read_diff(folder: Path, name: str) -> str:
    file = folder / _diff_of(name)
    return file.read_text() if file.exists() else ""


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts so far; a line that a kill cut off is left out."""
    file = folder / STARTS
    if not file.exists():
        return []
    lines = (_parsed(text) for text in file.read_text().splitlines())
    return [line for line in lines if line is not None and "environment" in line]


def _read(file: Path) -> dict[str, Any] | None:
    return _parsed(file.read_text()) if file.exists() else None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None

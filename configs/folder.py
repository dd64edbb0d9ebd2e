"""A stage's folder: what made it, who is at work in it, and whether it is finished.

    identity.json   the stage and the settings that make the result what it is
    config.gin      every setting, as `load` reads it
    complete.json   the stage's summary; written last, so a folder without it is not finished
    .lock           held while a process works here

A folder that is being written is local. A finished one may lie anywhere that `etils.epath` reads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from etils import epath

from configs.errors import UserError
from configs.loader import ConfigError, dump, entries, identity, load

FORMAT = 1
IDENTITY, CONFIG, COMPLETE, LOCK = "identity.json", "config.gin", "complete.json", ".lock"
_SHOWN_DIFFERENCES = 20

T = TypeVar("T")


class FolderError(UserError):
    """A stage's folder is another's, in use, unfinished, or damaged."""


@dataclass(frozen=True, kw_only=True)
class StageIdentity:
    """What a folder was made by: the stage, the hash of its identity settings, and their text by path."""

    stage: str
    identity: str
    settings: Mapping[str, str]


class StageFolder:
    """A folder that this process works in; it holds the folder's lock until closed, or until it is complete."""

    def __init__(self, path: Path, made_by: StageIdentity, *, lock: int) -> None:
        self.path = path
        self.made_by = made_by
        # Unlocks as the object goes, so that one process may open the folder again.
        self._unlock = weakref.finalize(self, os.close, lock)

    @property
    def is_complete(self) -> bool:
        return (self.path / COMPLETE).exists()

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Marks the folder finished, durably; nothing is written into it after this."""
        mark = {"format": FORMAT, "stage": self.made_by.stage, "identity": self.made_by.identity}
        write_atomically(self.path / COMPLETE, _json({**mark, "summary": dict(summary)}))
        self.close()

    def close(self) -> None:
        """Lets other processes work in the folder."""
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stage(path: str | os.PathLike[str], config: Any, *, stage: str) -> StageFolder:
    """Creates a stage's folder, or opens the one that an earlier start left.

    `stage` is the `wizard` verb. Operational settings may differ from the earlier start's, and replace
    them in config.gin. Raises FolderError, with the folder as it was, when it belongs to another stage
    or identity, holds something else, is not local, or another process works in it.
    """
    folder = _local(path)
    wanted = StageIdentity(stage=stage, identity=identity(config), settings=_settings(config))
    _check_owner(folder, wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise FolderError(f"{folder}: can not be written: {error.strerror}; choose another --out") from None
    opened = StageFolder(folder, wanted, lock=lock)
    try:
        # Again under the lock: another process may have made the folder its own in between.
        _check_owner(folder, wanted)
        if not (folder / IDENTITY).exists() or read_identity(folder) != wanted:
            told = {"format": FORMAT, "stage": stage, "identity": wanted.identity}
            write_atomically(folder / IDENTITY, _json({**told, "settings": wanted.settings}))
        text = dump(config)
        if not (folder / CONFIG).exists() or (folder / CONFIG).read_bytes() != text.encode():
            write_atomically(folder / CONFIG, text)
    except BaseException:
        opened.close()
        raise
    return opened


def read_identity(path: str | os.PathLike[str]) -> StageIdentity:
    """What made a folder, finished or not; raises FolderError where no stage did."""
    file = epath.Path(path) / IDENTITY
    if not file.exists():
        raise FolderError(f"{os.fspath(path)}: no stage's folder (it has no {IDENTITY})")
    told = _read_json(file)
    return StageIdentity(stage=told["stage"], identity=told["identity"], settings=told["settings"])


def read_complete(path: str | os.PathLike[str], *, stage: str | None = None) -> dict[str, Any]:
    """The summary that a finished folder was completed with.

    Raises FolderError when the folder is not finished, or was made by another stage than `stage`.
    """
    made_by = read_identity(path)
    if stage is not None and made_by.stage != stage:
        raise FolderError(f"{os.fspath(path)}: made by wizard {made_by.stage}; a folder of wizard {stage} is needed")
    file = epath.Path(path) / COMPLETE
    if not file.exists():
        raise FolderError(
            f"{os.fspath(path)}: not finished; run wizard {made_by.stage} with --out {os.fspath(path)} "
            "again: it goes on where it stopped"
        )
    summary: dict[str, Any] = _read_json(file)["summary"]
    return summary


def load_config(root: type[T], path: str | os.PathLike[str]) -> T:
    """The config that a stage's folder was last started with; raises FolderError where it can not be read."""
    file = epath.Path(path) / CONFIG
    if not file.exists():
        raise FolderError(f"{os.fspath(path)}: no stage's folder (it has no {CONFIG})")
    try:
        return load(root, [os.fspath(file)])
    except ConfigError as error:
        raise FolderError(
            f"{file}: damaged, or of another version: {error.problems[0]}; put the file back, or make the folder anew "
            "with another --out"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is whole or not there, also after a power cut."""
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file to be written bit by bit, which takes its place, as in `write_atomically`, at the end."""
    partial = path.with_name(f".{path.name}.partial")
    with naming(path), open(partial, "w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is written here is `path`: Python's error of a write that a full disk refuses does not say of which file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder durable: a file that was renamed keeps its new name after a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "://" in text:
        raise FolderError(
            f"{text}: a folder is local while a stage writes it; give a local --out, and copy it when it "
            f"is complete (gcloud storage cp -r FOLDER {text})"
        )
    return Path(text)


def _settings(config: Any) -> dict[str, str]:
    return {one.path: one.text for one in entries(config) if one.role == "identity"}


def _check_owner(folder: Path, wanted: StageIdentity) -> None:
    """Raises FolderError unless the folder is new, holds nothing yet, or is the wanted stage's own."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FolderError(f"{folder}: is no folder; choose another --out")
    started = (folder / IDENTITY).exists()
    # A start that was killed, or found a mistake in its settings, in its first moments leaves these: nothing to lose.
    marks = {LOCK, f".{IDENTITY}.partial"} | ({IDENTITY, CONFIG, f".{CONFIG}.partial"} if started else set())
    foreign = {one.name for one in folder.iterdir()} - marks
    if not foreign:
        return
    if not started:
        raise FolderError(
            f"{folder}: holds {sorted(foreign)[0]} and is no stage's folder; choose another --out, or an empty one"
        )
    found = read_identity(folder)
    if found.stage != wanted.stage:
        raise FolderError(f"{folder}: made by wizard {found.stage}, not wizard {wanted.stage}; choose another --out")
    if found.identity != wanted.identity:
        lines = _differences(found.settings, wanted.settings)
        raise FolderError(
            f"{folder}: made with other settings (there -> now):\n{lines}\n"
            f"Choose another --out, or give the settings that it was made with: {folder / CONFIG}"
        )


def _differences(there: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [path for path in {**there, **now} if there.get(path) != now.get(path)]
    lines = [
        f"  {path or 'type'}: {there.get(path, '(none)')} -> {now.get(path, '(none)')}"
        for path in changed[:_SHOWN_DIFFERENCES]
    ]
    if len(changed) > _SHOWN_DIFFERENCES:
        lines.append(f"  and {len(changed) - _SHOWN_DIFFERENCES} more")
    return "\n".join(lines)


def _lock(folder: Path) -> int:
    """An open, locked file that names this process; raises FolderError while another one holds it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        holder = ""
        with contextlib.suppress(OSError):
            holder = os.pread(lock, 200, 0).decode(errors="replace")
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise FolderError(
            f"{folder}: in use by {holder or 'another process'}; wait for it, stop it, or choose another --out"
        ) from None
    return lock


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _read_json(file: Any) -> dict[str, Any]:
    """A mark that `open_stage` or `complete` wrote; raises FolderError for a damaged or newer one."""
    needed = "summary" if file.name == COMPLETE else "settings"
    try:
        told = json.loads(file.read_text())
    except ValueError:
        told = None
    if not isinstance(told, dict) or not {"format", "stage", "identity", needed} <= set(told):
        raise FolderError(f"{file}: damaged; make the folder anew with another --out")
    if told["format"] != FORMAT:
        raise FolderError(
            f"{file}: written in format {told['format']}, and this version reads format {FORMAT}; "
            "use the version that made the folder"
        )
    return told

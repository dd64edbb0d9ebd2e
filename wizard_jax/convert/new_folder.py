"""A folder that has its name once it is whole, and not before."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.folder import fsync_folder, naming
from wizard_jax.convert.tensors import ConversionError


@contextlib.contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write to, which gets the name `out` once all is written; what an earlier start left of it is removed.

    Raises ConversionError: `out` is taken, or another process is writing it.
    """
    target = Path(out)
    check_free(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f"{target}: can not be written: {error.strerror}; choose another --out") from error
    with _locked(partial, target):
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_folder(partial)
        check_free(target)
        partial.replace(target)
        fsync_folder(target.parent)


def check_free(target: Path) -> None:
    """Raises ConversionError: there is something of that name, and no empty folder."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise ConversionError(f"{target}: exists already; remove it or export to another folder")


@contextlib.contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise ConversionError(f"{target}: another process is writing it; wait for it, or choose another") from None
        if not folder.exists() or not os.path.samestat(os.fstat(opened), os.stat(folder)):
            raise ConversionError(f"{target}: another process has just written it; start again to see what it is")
        yield
    finally:
        os.close(opened)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Durably: the rename that says that a folder is whole must not outlive what it holds."""
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

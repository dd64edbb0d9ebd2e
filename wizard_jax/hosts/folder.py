"""A stage's folder that several processes share: the first one holds it, and the others see that it is the same."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from configs.folder import COMPLETE, StageFolder, open_stage
from wizard_jax.hosts.group import Hosts, HostsError

TOKEN = ".hosts"
_SECONDS = 60.0
"""How long a file may take to be seen by other machines: NFS clients keep what they know of a folder for so long."""


class SharedFolder(NamedTuple):
    """The folder as a process sees it that does not hold it."""

    path: Path

    @property
    def is_complete(self) -> bool:
        return (self.path / COMPLETE).exists()


@contextlib.contextmanager
def open_together(
    path: str | os.PathLike[str], config: Any, *, stage: str, hosts: Hosts
) -> Iterator[StageFolder | SharedFolder]:
    """`open_stage` by process 0, whose lock is that of all; the others wait for it, and look whether they see it.

    Raises FolderError as `open_stage` does, and HostsError on a process that sees another folder.
    """
    if hosts.is_first:
        with open_stage(path, config, stage=stage) as opened:
            token = secrets.token_hex(16)
            if hosts.count > 1:
                (opened.path / TOKEN).write_text(token)
            hosts.gather("folder", token)
            hosts.wait("folder is seen")
            (opened.path / TOKEN).unlink(missing_ok=True)
            yield opened
    else:
        token = hosts.gather("folder", "")[0]
        shared = SharedFolder(Path(path))
        if not _sees(shared.path / TOKEN, token):
            raise HostsError(
                f"{hosts.called(hosts.index)} does not see in {os.path.abspath(path)} what process 0 on "
                f"{hosts.names[0]} has written there: --out must be on a file system that all hosts see"
            )
        hosts.wait("folder is seen")
        yield shared


def _sees(file: Path, token: str) -> bool:
    deadline = time.monotonic() + _SECONDS
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)

"""Compiled programs that a second start of a run finds again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache


@contextlib.contextmanager
def compilation_cache(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Meanwhile, every compilation of 0.2 s and more is kept in `folder`, and not done where it is there already.

    JAX tells programs apart by their code, compiler and devices, so one folder serves any runs; of several processes
    the first writes. The folder may be gs://. None leaves JAX as its own settings have it.
    """
    if folder is None:
        yield
        return
    name = os.fspath(folder)
    wanted: dict[str, Any] = {
        "jax_compilation_cache_dir": name if "://" in name else str(Path(name).absolute()),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {setting: getattr(jax.config, setting) for setting in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(settings: dict[str, Any]) -> None:
    for setting, value in settings.items():
        jax.config.update(setting, value)  # type: ignore[no-untyped-call]  # jax leaves it so
    reset_cache()  # JAX looks at its settings once

"""What a pipeline came to, for the process that runs it: dataclasses in a file, whole or not there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam

from configs.folder import replacing


def keep(found: beam.PCollection, file: Path, *, name: str) -> beam.PCollection:
    """Dataclasses -> one file, which is there when the pipeline has ended; where nothing came, none."""
    return (
        found
        | f"{name} as text" >> beam.Map(_line)
        | f"{name} to one place" >> beam.WithKeys(0)
        | f"all {name}" >> beam.GroupByKey()
        | f"{name} kept" >> beam.Map(_keep, file=str(file))
    )


def kept(file: Path) -> Iterator[Any]:
    """The fields of each, as JSON has them, in no order."""
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _line(found: Any) -> str:
    return json.dumps(dataclasses.asdict(found))


def _keep(lines: tuple[int, Iterable[str]], *, file: str) -> None:
    with replacing(Path(file)) as stream:
        stream.writelines(f"{line}\n" for line in lines[1])

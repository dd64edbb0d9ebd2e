"""A finished export, and the mark by which the same one is known and not made twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.folder import read_identity
from wizard_jax.convert.export import CARD
from wizard_jax.convert.new_folder import check_free, write_bytes, write_json
from wizard_jax.runs import FoundModel

MARK = "export.json"
"""What an exported folder was made from."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export."""

    folder: Path
    checks: tuple[str, ...]
    """Sentences on how it was verified, now or when it was made."""
    was_there: bool = False


def made_from(
    found: FoundModel, *, step: int | None, weights_sha256: str, dtype: str, chat_format: str, kind: str, **more: Any
) -> dict[str, Any]:
    """What makes an export what it is; `more` is what only its kind has.

    `weights_sha256` is of the files of an imported model; '' of a run, whose checkpoints have files of other names
    each time.
    """
    return {
        "identity": read_identity(found.path).identity if found.stage else "",
        "step": step,
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": found.tokenizer.sha256,
        "format": kind,
        "dtype": dtype,
        "chat_format": chat_format,
        **more,
    }


def finished(out: Path, mark: Mapping[str, Any]) -> Exported | None:
    """The export that is there already; None where there is none. Raises ConversionError: there is something else."""
    try:
        told = json.loads((out / MARK).read_text())
        if told["made_from"] == mark and mark["identity"]:  # a bare folder may hold other weights by now
            return Exported(folder=out, checks=tuple(told["checks"]), was_there=True)
    except (OSError, ValueError, LookupError, TypeError):
        pass
    check_free(out)
    return None


def finish(folder: Path, *, card: str, mark: Mapping[str, Any], checks: Sequence[str]) -> None:
    """Writes the card and the mark: the last files of a folder."""
    write_bytes(folder / CARD, card.encode())
    write_json(folder / MARK, {"made_from": dict(mark), "checks": list(checks)})

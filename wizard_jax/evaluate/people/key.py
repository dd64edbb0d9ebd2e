"""key.json: what each line of each sheet really is. Whoever rates must not see it; nothing can be read without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wizard_jax.evaluate.people.questions import Form, PeopleError
from wizard_jax.evaluate.people.rules import Rules
from wizard_jax.evaluate.people.sheets import Kind, Mix, Shown

KEY, ITEMS = "key.json", "items.jsonl"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a sheet, without its texts.

    `sides` are models or ids of instructions in the order in which they were shown, `rounds` those of the instructions;
    `exchanged` says whether the baseline, or the earlier instruction, comes first; `expected` is the right
    verdict of an attention check.
    """

    id: str
    form: Form
    kind: Kind
    item: str
    sides: tuple[str, ...]
    exchanged: bool
    rounds: tuple[int | None, ...]
    repeats: str
    expected: str
    skill: str
    difficulty: float | None


@dataclass(frozen=True, kw_only=True)
class Key:
    """Everything that the sheets do not say."""

    format: int
    made_by: str
    """Such as the folder of the evaluation."""
    seed: int
    mix: Mix
    rules: Rules
    formatting: str
    aspects: tuple[str, ...]
    items_sha256: str
    sheets: Mapping[str, tuple[Line, ...]]

    @property
    def export(self) -> str:
        """The id that pages and ratings carry: the SHA-256 of all of this."""
        return "x" + hashlib.sha256(_canonical(asdict(self))).hexdigest()


def line_of(shown: Shown) -> Line:
    question = shown.question
    return Line(
        id=shown.id,
        form=question.form,
        kind=shown.kind,
        item=question.item,
        sides=tuple(side.who for side in question.sides),
        exchanged=question.exchanged,
        rounds=tuple(side.round for side in question.sides),
        repeats=shown.repeats,
        expected=question.expected,
        skill=question.skill,
        difficulty=question.difficulty,
    )


def key_text(key: Key) -> str:
    """What key.json holds."""
    return json.dumps({"export": key.export, **asdict(key)}, indent=1) + "\n"


def settled(key: Key) -> Key:
    """With 3.0 for 3 where a field is a float: as it will read back, so that its hash stays what it is."""
    return TypeAdapter(Key).validate_python(asdict(key))


def read_key(folder: Path) -> Key:
    """The key of an export, checked against its own id and against the items that lie beside it.

    Raises:
      PeopleError: there is none, it is damaged or was changed, or the items are those of another export.
    """
    try:
        told = json.loads((folder / KEY).read_bytes())
    except FileNotFoundError:
        raise PeopleError(f"{folder}: has no {KEY}; name the folder that wizard eval export-human wrote") from None
    except (ValueError, NotADirectoryError) as error:
        raise PeopleError(f"{folder / KEY}: can not be read ({error}); take it from a copy of the export") from None
    changed = PeopleError(
        f"{folder / KEY}: was changed after the export, or is damaged; take it from a copy of the export"
    )
    if not isinstance(told, dict) or "export" not in told:
        raise changed
    export = told.pop("export")
    if told.get("format") not in (FORMAT, None):
        raise PeopleError(f"{folder / KEY}: of format {told['format']}, and this version reads {FORMAT}")
    try:
        key = TypeAdapter(Key).validate_python(told)
    except (ValidationError, PeopleError):
        raise changed from None
    if "x" + hashlib.sha256(_canonical(told)).hexdigest() != export:
        raise changed
    items = folder / ITEMS
    if not items.exists() or hashlib.sha256(items.read_bytes()).hexdigest() != key.items_sha256:
        raise PeopleError(f"{items}: is not what the key was made for; take it from a copy of the export")
    return key


def _canonical(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, sort_keys=True).encode()

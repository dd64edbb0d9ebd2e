"""`wizard eval export-human`: a folder from which people can rate without knowing whom.

out/key.json             secret: which side is which, and by which rules raters are left out
    items.jsonl          all that is shown, by rater and line; no names
    README.txt           for whoever runs the study
    raters/rater-1.html  all that a rater needs: one file, no network
           rater-1.csv   the same for those who can not use the page
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from configs.folder import fsync_folder
from wizard_jax.convert.new_folder import new_folder, write_bytes
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.people.key import FORMAT, ITEMS, KEY, Key, key_text, line_of, settled
from wizard_jax.evaluate.people.page import public_line, rater_page
from wizard_jax.evaluate.people.questions import (
    ASPECTS,
    Instruction,
    InstructionPair,
    PeopleError,
    Question,
    compared_answers,
    compared_instructions,
    single_instructions,
)
from wizard_jax.evaluate.people.rules import Rules
from wizard_jax.evaluate.people.sheet_csv import sheet_csv
from wizard_jax.evaluate.people.sheets import Mix, Shown, draw_sheets, drawn_items
from wizard_jax.evaluate.people.tells import nameless, plain

RATERS = "raters"

Formatting = Literal["as written", "plain"]

MOST_RATERS = 1000
MIX, RULES = Mix(), Rules()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    export: str
    """The id that pages, sheets and ratings carry."""
    comparisons: int
    """Of answers, before they were shared out."""
    lines: Mapping[str, int]
    """Of each rater."""
    notes: tuple[str, ...]
    """What the organiser should know."""


def export_human(
    out: str | os.PathLike[str],
    items: Sequence[Item],
    answers: Sequence[Answer],
    *,
    raters: int,
    seed: int,
    baseline: str = "",
    sample: int = 0,
    harder: Sequence[InstructionPair] = (),
    answerable: Sequence[Instruction] = (),
    aspects: Sequence[str] = ASPECTS,
    formatting: Formatting = "as written",
    mix: Mix = MIX,
    rules: Rules = RULES,
    made_by: str = "",
) -> Exported:
    """Writes sheets for raters into a new folder, which has its name once it is whole.

    Compares the answers of every pair of models, or of each model with the baseline, to `sample` items drawn from the
    seed (0: to all); and asks about instructions where some are given. `formatting="plain"` takes out of answers what
    gives their author away. The same arguments give the same files.

    Raises:
      PeopleError: nothing to compare, an unknown baseline, or settings without sense.
      ConversionError: the folder exists.
    """
    _check_settings(raters=raters, sample=sample, aspects=aspects)
    compared: tuple[Question, ...] = ()
    notes: tuple[str, ...] = ()
    if answers or not (harder or answerable):
        compared, notes = compared_answers(drawn_items(items, sample, seed=seed), answers, baseline=baseline)
        if formatting == "plain":
            compared, named = _without_tells(compared)
            notes += named
    questions = compared + compared_instructions(harder) + single_instructions(answerable)
    sheets = draw_sheets(questions, raters=raters, mix=mix, seed=seed)
    rows = _item_rows(sheets).encode()
    key = settled(
        Key(
            format=FORMAT,
            made_by=made_by,
            seed=seed,
            mix=mix,
            rules=rules,
            formatting=formatting,
            aspects=tuple(aspects),
            items_sha256=hashlib.sha256(rows).hexdigest(),
            sheets={rater: tuple(map(line_of, sheet)) for rater, sheet in sheets.items()},
        )
    )
    _write(Path(out), key, sheets, rows)
    lines = {rater: len(sheet) for rater, sheet in sheets.items()}
    return Exported(folder=Path(out), export=key.export, comparisons=len(compared), lines=lines, notes=notes)


def _write(out: Path, key: Key, sheets: Mapping[str, Sequence[Shown]], rows: bytes) -> None:
    export, aspects = key.export, key.aspects
    with new_folder(out) as folder:
        (folder / RATERS).mkdir()
        for rater, sheet in sheets.items():
            page = rater_page(sheet, export=export, rater=rater, aspects=aspects)
            table = sheet_csv(sheet, export=export, rater=rater, aspects=aspects)
            write_bytes(folder / RATERS / f"{rater}.html", page.encode())
            write_bytes(folder / RATERS / f"{rater}.csv", table.encode())
        fsync_folder(folder / RATERS)
        write_bytes(folder / ITEMS, rows)
        write_bytes(folder / "README.txt", _readme(key).encode())
        write_bytes(folder / KEY, key_text(key).encode())


def _check_settings(*, raters: int, sample: int, aspects: Sequence[str]) -> None:
    if not 1 <= raters <= MOST_RATERS:
        raise PeopleError(f"raters is {raters}: give from 1 to {MOST_RATERS:,}")
    if sample < 0:
        raise PeopleError(f"sample is {sample}: give a number of items, or 0 for all")
    for aspect in aspects:
        if not aspect.replace(" ", "").replace("-", "").isalnum():
            raise PeopleError(f"the aspect {aspect!r} is no name: give letters, digits, spaces and hyphens")
    if len(set(aspects)) < len(aspects):
        raise PeopleError(f"an aspect is named twice: {', '.join(aspects)}")


def _without_tells(questions: Sequence[Question]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    bare, named = [], set()
    for question in questions:
        asked = "\n".join(question.turns)
        sides = []
        for side in question.sides:
            texts, taken = zip(*(nameless(plain(text), asked=asked) for text in side.texts), strict=True)
            sides.append(replace(side, texts=texts))
            if any(taken):
                named.add((question.item, side.who))
        bare.append(replace(question, sides=tuple(sides)))
    return tuple(bare), (
        f"{len(named):,} answers named a model or its maker; the names are taken out",
    ) if named else ()


def _item_rows(sheets: Mapping[str, Sequence[Shown]]) -> str:
    rows = (
        {"rater": rater, "line": number, **public_line(shown)}
        for rater, sheet in sheets.items()
        for number, shown in enumerate(sheet, start=1)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def _readme(key: Key) -> str:
    text = (Path(__file__).parent / "organiser.txt").read_text(encoding="utf-8")
    return text.format(export=key.export, **vars(key.rules))

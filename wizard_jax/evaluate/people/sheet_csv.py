"""The CSV twin of a rater's page, for those who can not use it: one row for each line of the sheet.

    export,rater,line,id,form,choices,instruction,a,b,verdict,confidence,accuracy_a,accuracy_b,...

Rows are found again by `id`; what is said goes into the columns from `verdict` on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from wizard_jax.evaluate.people.questions import ASKED, VERDICTS
from wizard_jax.evaluate.people.sheets import Shown

TOLD = ("export", "rater", "line", "id", "form", "choices", "instruction", "a", "b")

MOST_CHARACTERS = 32_000
"""Of a cell: spreadsheets hold 32,767, and put what is beyond into other cells."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def aspect_columns(aspects: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Column -> (aspect, side)."""
    return {f"{aspect}_{side}": (aspect, side) for aspect in aspects for side in ("a", "b")}


def sheet_csv(sheet: Sequence[Shown], *, export: str, rater: str, aspects: Sequence[str]) -> str:
    """UTF-8 with the mark by which spreadsheets know it; no cell is a formula, whatever the texts are."""
    asked = [*aspect_columns(aspects)] if any(shown.question.form == "answers" for shown in sheet) else []
    out = io.StringIO()
    out.write("\ufeff")
    writer = csv.writer(out)
    writer.writerow([*TOLD, "verdict", "confidence", *asked])
    for number, shown in enumerate(sheet, start=1):
        question = shown.question
        choices = f"{ASKED[question.form]} {' / '.join(VERDICTS[question.form])}"
        texts = [_cell(_joined(side.texts)) for side in question.sides] + [""] * (2 - len(question.sides))
        told = [export, rater, number, shown.id, question.form, choices, _cell(_joined(question.turns)), *texts]
        writer.writerow([*told, *[""] * (2 + len(asked))])
    return out.getvalue()


def _joined(texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[{number}]\n{text}" for number, text in enumerate(texts, start=1))


def no_formula(text: str) -> str:
    """The text as a cell that UTF-8 and every reader of CSV can hold, and that no spreadsheet computes."""
    text = text.encode(errors="replace").decode().replace("\0", "\ufffd")  # lone surrogates and NUL
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        more = len(text) - MOST_CHARACTERS
        text = f"{text[:MOST_CHARACTERS]}\n[cut here: {more:,} more characters are in the page]"
    return no_formula(text)

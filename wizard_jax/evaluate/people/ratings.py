"""Ratings as raters send them back, checked line by line against the key before anything is made of them."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from wizard_jax.evaluate.people.key import Key, Line
from wizard_jax.evaluate.people.questions import CONFIDENCES, GRADES, VERDICTS, PeopleError
from wizard_jax.evaluate.people.sheet_csv import aspect_columns

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Rating:
    """What was said to one line of a sheet: to the page all of it, in a CSV perhaps no more than the verdict."""

    id: str
    verdict: str
    confidence: int | None = None
    aspects: Mapping[str, Mapping[Literal["a", "b"], int]] = field(default_factory=dict)
    """Aspect -> side -> grade; 0: it does not apply."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """That the line was before the rater's eyes; None: from a CSV."""


@dataclass(frozen=True, kw_only=True)
class Returned:
    """One file of ratings."""

    format: int
    export: str
    rater: str
    ratings: tuple[Rating, ...]


def read_ratings(files: Sequence[Path], key: Key) -> dict[str, tuple[Rating, ...]]:
    """The ratings of each rater, in the order of the files.

    Raises:
      PeopleError: a file can not be read, is of another export, of an unknown rater or of one that an earlier file is
        of, holds a line that is not in the rater's sheet, or says what can not be said to it.
    """
    if not files:
        raise PeopleError("no ratings are given: name the files that raters sent back, .json or .csv")
    found: dict[str, tuple[Path, tuple[Rating, ...]]] = {}
    for file in files:
        returned = _read(file)
        if returned.export != key.export:
            raise PeopleError(
                f"{file}: made from export {returned.export[:12]}, and this is the key of export {key.export[:12]}; "
                "name the folder whose page was rated"
            )
        if returned.rater not in key.sheets:
            raise PeopleError(f"{file}: of {returned.rater!r}; the key knows {', '.join(key.sheets)}")
        if returned.rater in found:
            raise PeopleError(f"{file} and {found[returned.rater][0]} are both of {returned.rater}: give one of them")
        _check(file, returned, key)
        found[returned.rater] = (file, returned.ratings)
    return {rater: ratings for rater, (_, ratings) in found.items()}


def _read(file: Path) -> Returned:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PeopleError(f"{file}: can not be read: {error.strerror}") from None
    if file.suffix.lower() == ".csv":
        return _read_csv(file, data)
    if file.suffix.lower() != ".json":
        raise PeopleError(f"{file}: neither .json, as the page downloads it, nor .csv")
    try:
        returned = TypeAdapter(Returned).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PeopleError(
            f"{file}: no ratings of this version{f' at {where}' if where else ''}: {first['msg']}; "
            "have the page download them again"
        ) from None
    if returned.format != FORMAT:
        raise PeopleError(f"{file}: of format {returned.format}, and this version reads {FORMAT}")
    return returned


def _check(file: Path, returned: Returned, key: Key) -> None:
    sheet = {line.id: line for line in key.sheets[returned.rater]}
    if not returned.ratings:
        raise PeopleError(f"{file}: nothing is rated in it")
    seen = set()
    for rating in returned.ratings:
        line = sheet.get(rating.id)
        if line is None:
            raise PeopleError(f"{file}: line {rating.id!r} is not in the sheet of {returned.rater}")
        if rating.id in seen:
            raise PeopleError(f"{file}: line {rating.id} is rated twice; leave one of them")
        seen.add(rating.id)
        problem = _problem(rating, line, key)
        if problem:
            raise PeopleError(f"{file}: line {rating.id}: {problem}")


def _problem(rating: Rating, line: Line, key: Key) -> str:
    if rating.verdict not in VERDICTS[line.form]:
        return f"verdict {rating.verdict!r}; say one of {', '.join(VERDICTS[line.form])}"
    if rating.confidence is not None and not 1 <= rating.confidence <= len(CONFIDENCES):
        return f"confidence {rating.confidence}; say 1 to {len(CONFIDENCES)}"
    if rating.aspects and line.form != "answers":
        return "has grades, and no answers were shown"
    for aspect, grades in rating.aspects.items():
        if aspect not in key.aspects:
            return f"a grade for {aspect!r}; the aspects are {', '.join(key.aspects)}"
        for grade in grades.values():
            if grade not in GRADES:
                return f"grade {grade} for {aspect}; say {GRADES[0]} to {GRADES[-1]}"
    return ""


def _read_csv(file: Path, data: bytes) -> Returned:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Only columns in ASCII are read: in which encoding a spreadsheet has saved the texts does not matter.
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    try:
        rows = [*csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)]
    except csv.Error as error:
        raise PeopleError(f"{file}: no CSV ({error}); save the sheet as CSV again") from None
    columns = {"export", "rater", "id", "verdict", "confidence"}
    if not rows or not columns <= set(rows[0]):
        raise PeopleError(f"{file}: the columns {', '.join(sorted(columns))} must be there, and at least one row")
    for name in ("export", "rater"):
        named = {row[name] for row in rows}
        if len(named) > 1:
            raise PeopleError(f"{file}: rows of several values of {name!r}: {', '.join(sorted(map(repr, named)))}")
    ratings = tuple(_csv_rating(file, row) for row in rows if (row["verdict"] or "").strip())
    return Returned(format=FORMAT, export=rows[0]["export"] or "", rater=rows[0]["rater"] or "", ratings=ratings)


def _csv_rating(file: Path, row: Mapping[str, str | None]) -> Rating:
    def number(column: str) -> int | None:
        said = (row.get(column) or "").strip()
        try:
            return int(float(said)) if said and float(said).is_integer() else int(said) if said else None
        except (ValueError, OverflowError):
            raise PeopleError(f"{file}: line {row['id']}: {column} {said!r} is no whole number") from None

    rating = Rating(
        id=(row["id"] or "").strip(),
        verdict=(row["verdict"] or "").strip().lower().replace(" ", "_"),
        confidence=number("confidence"),
        aspects={},
    )
    aspects: dict[str, dict[Literal["a", "b"], int]] = {}
    suffixed = [column[:-2] for column in row if column and column.endswith("_a")]
    for column, (aspect, side) in aspect_columns(suffixed).items():
        grade = number(column)
        if grade is not None:
            aspects.setdefault(aspect, {})["a" if side == "a" else "b"] = grade
    return replace(rating, aspects=aspects)

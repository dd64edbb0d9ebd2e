"""`wizard eval import-human`: ratings that came back, read with the key of their export, and what they say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wizard_jax.evaluate.people import figures
from wizard_jax.evaluate.people.figures import Answerable, Compared, JudgeVerdict, Said
from wizard_jax.evaluate.people.key import Key, read_key
from wizard_jax.evaluate.people.questions import Form, PeopleError
from wizard_jax.evaluate.people.raters import Rater, rater
from wizard_jax.evaluate.people.ratings import Rating, read_ratings
from wizard_jax.evaluate.people.rules import Rules
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap

DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class HumanResults:
    """What people said. Only `raters` is of all of them; the rest is of those whom no rule leaves out."""

    export: str
    made_by: str
    rules: Rules
    """As they were fixed at the export."""
    raters: tuple[Rater, ...]
    compared: tuple[Compared, ...]
    harder: tuple[Compared, ...]
    answerable: tuple[Answerable, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def import_human(
    folder: str | os.PathLike[str],
    ratings: Sequence[str | os.PathLike[str]],
    *,
    verdicts: Iterable[JudgeVerdict] = (),
    seed: int = 0,
    draws: int = DRAWS,
) -> HumanResults:
    """Reads the files that raters sent back with the key in the folder of the export.

    `verdicts` are those of judges on the same items, of any pairs of models; `seed` and `draws` are of the intervals.

    Raises:
      PeopleError: a key or ratings that can not be read or do not belong together (see read_key and read_ratings), or
        verdicts of which not one is of a comparison that was rated.
    """
    key = read_key(Path(folder))
    read = read_ratings([Path(file) for file in ratings], key)
    raters = tuple(rater(name, own, key) for name, own in read.items())
    counted = {one.name: read[one.name] for one in raters if not one.excluded}
    bootstrap = Bootstrap(seed=seed, draws=draws)
    verdicts = tuple(verdicts)
    if verdicts:
        _check_overlap(verdicts, key)
    return HumanResults(
        export=key.export,
        made_by=key.made_by,
        rules=key.rules,
        raters=raters,
        compared=figures.compared(_said(counted, key, "answers"), verdicts, bootstrap=bootstrap),
        harder=figures.harder(_said(counted, key, "harder"), bootstrap=bootstrap),
        answerable=figures.answerable(_said(counted, key, "answerable"), bootstrap=bootstrap),
    )


def _said(ratings: dict[str, tuple[Rating, ...]], key: Key, form: Form) -> list[Said]:
    """The ratings of questions of a form: not of repeats, checks or equal sides, whose truth is known."""
    return [
        Said(rater=name, line=line, rating=rating)
        for name, own in ratings.items()
        for line, rating in _with_lines(name, own, key)
        if line.form == form and line.kind == "question"
    ]


def _with_lines(name: str, ratings: Sequence[Rating], key: Key) -> list[tuple[Any, Rating]]:
    lines = {line.id: line for line in key.sheets[name]}
    return [(lines[rating.id], rating) for rating in ratings]


def _check_overlap(verdicts: Sequence[JudgeVerdict], key: Key) -> None:
    rated = {
        (line.item, *sorted(line.sides))
        for sheet in key.sheets.values()
        for line in sheet
        if (line.form, line.kind) == ("answers", "question")
    }
    if not any((one.item, *sorted((one.candidate, one.baseline))) in rated for one in verdicts):
        raise PeopleError(
            "not one verdict of a judge is of a comparison that people were asked for: "
            "name the evaluation that was exported"
        )

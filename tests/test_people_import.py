"""Ratings are read only with their own key, count by rules fixed beforehand, and are told with intervals."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rated import MODELS, an_export, attentive, returned

from wizard_jax.evaluate.people.import_ import HumanResults, import_human
from wizard_jax.evaluate.people.key import KEY, Key, Line
from wizard_jax.evaluate.people.questions import PeopleError
from wizard_jax.evaluate.people.rules import Rules
from wizard_jax.evaluate.people.told import told
from wizard_jax.evaluate.statistics.agreement import agreement
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap
from wizard_jax.evaluate.statistics.wins import win_rate

DRAWS = 2_000


@dataclass(frozen=True)
class Export:
    folder: Path
    key: Key


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("people") / "export"
    return Export(folder, an_export(folder, items=48, raters=4, pairs=12))


def imported(export: Export, files: Sequence[Path], **settings: Any) -> HumanResults:
    return import_human(export.folder, files, draws=DRAWS, **settings)


def all_returned(export: Export, folder: Path, **verdicts: Callable[[Line], str]) -> list[Path]:
    """Of every rater; attentive ones but for those of other verdicts, by name with an underscore."""
    return [
        returned(export.key, rater, folder, verdict=verdicts.get(rater.replace("-", "_"), attentive))
        for rater in export.key.sheets
    ]


# --- what is found


def test_attentive_raters_of_one_mind_are_read_as_they_meant_it(export: Export, tmp_path: Path) -> None:
    results = imported(export, all_returned(export, tmp_path))
    assert not any(one.excluded for one in results.raters)
    for one in results.raters:
        for share in (one.attention, one.identical, one.self_agreement):
            assert share is not None
            assert share.share == 1
        assert one.first_side is not None
        assert one.first_side.low < 0.5 < one.first_side.high
        assert (one.rated, one.seconds) == (one.lines, 10.0)
    (pair,) = results.compared
    assert (pair.candidate, pair.baseline) == MODELS
    assert pair.wins is not None
    assert (pair.wins.wins, pair.wins.ties, pair.wins.losses) == (48, 0, 0)
    assert set(pair.verdicts) == {"a"}
    assert pair.agreement is not None
    assert pair.agreement.raw.value == 1
    assert pair.agreement.raw.low > 0.9
    (evolved,) = results.harder
    assert (evolved.candidate, evolved.baseline) == ("round 1", "round 0")
    assert evolved.wins is not None
    assert evolved.wins.estimate.value == 1
    (answerable,) = results.answerable
    assert (answerable.round, answerable.share.value, answerable.share.n) == ("round 1", 1.0, 12)
    assert {aspect: (one.candidate, one.baseline) for aspect, one in pair.grades.items()} == dict.fromkeys(
        export.key.aspects, (4.0, 3.0)
    )


def test_figures_are_those_of_the_table_of_items_and_raters(export: Export, tmp_path: Path) -> None:
    said: dict[tuple[str, str], float] = {}

    def mixed(rater: str, seed: int) -> Callable[[Line], str]:
        rng = np.random.default_rng(seed)

        def verdict(line: Line) -> str:
            if line.form != "answers" or line.kind != "question":
                return attentive(line)
            value = int(rng.choice([1, 1, 0, -1]))
            said[line.item, rater] = value
            return "tie" if value == 0 else "a" if (value == 1) != line.exchanged else "b"

        return verdict

    results = imported(
        export, all_returned(export, tmp_path, **{f"rater_{n}": mixed(f"rater-{n}", n) for n in (1, 2, 3, 4)})
    )
    items = sorted({item for item, _ in said})
    table = np.array([[said.get((item, f"rater-{n}"), np.nan) for n in (1, 2, 3, 4)] for item in items])
    (pair,) = results.compared
    assert sorted(pair.scores) == items
    expected = {item: float(np.nanmean((row + 1) / 2)) for item, row in zip(items, table, strict=True)}
    assert pair.scores == pytest.approx(expected)
    assert pair.wins is not None
    assert pair.wins.estimate.value == pytest.approx(np.mean(list(expected.values())))
    bootstrap = Bootstrap(seed=0, draws=DRAWS)
    in_order = win_rate([expected[item] for item in pair.scores], bootstrap=bootstrap)
    assert pair.wins.estimate.low == pytest.approx(in_order.estimate.low)
    found, wanted = pair.agreement, agreement(table, bootstrap=bootstrap)
    assert found is not None
    for name in ("raw", "kappa", "alpha_nominal", "alpha_ordinal", "ac1"):
        assert getattr(found, name).value == pytest.approx(getattr(wanted, name).value)
        assert getattr(found, name).low < getattr(found, name).value < getattr(found, name).high


def test_both_bad_is_a_tie_between_the_two_and_counted_apart(export: Export, tmp_path: Path) -> None:
    def sour(line: Line) -> str:
        asked = line.form == "answers" and line.kind in ("question", "repeat")
        return "both_bad" if asked else attentive(line)

    names = {f"rater_{n}": sour for n in (1, 2, 3, 4)}
    (pair,) = imported(export, all_returned(export, tmp_path, **names)).compared
    assert pair.wins is not None
    assert pair.wins.estimate.value == 0.5
    assert set(pair.verdicts) == {"both_bad"}


def test_what_can_not_be_told_is_no_verdict_on_what_is_harder(export: Export, tmp_path: Path) -> None:
    def unsure(line: Line) -> str:
        return "unclear" if line.form == "harder" and line.kind in ("question", "repeat") else attentive(line)

    (evolved,) = imported(export, all_returned(export, tmp_path, rater_1=unsure)).harder
    assert evolved.wins is not None
    assert evolved.wins.estimate.value == 1
    assert evolved.verdicts["unclear"] > 0


# --- who counts


def always_first(line: Line) -> str:
    return "yes" if line.form == "answerable" else "a"


def test_who_always_says_the_first_is_left_out_and_changes_no_figure(export: Export, tmp_path: Path) -> None:
    results = imported(export, all_returned(export, tmp_path, rater_3=always_first))
    without = imported(
        export, [returned(export.key, rater, tmp_path) for rater in export.key.sheets if rater != "rater-3"]
    )
    careless = results.raters[2]
    assert careless.first_side is not None
    assert careless.first_side.share == 1
    reasons = " ".join(careless.excluded)
    assert "attention checks wrong" in reasons
    assert "preferred one of two equal sides" in reasons
    assert "repeats as before" in reasons
    assert (results.compared, results.harder, results.answerable) == (
        without.compared,
        without.harder,
        without.answerable,
    )
    assert "rater-3: " in "\n".join(told(results))
    assert "LEFT OUT" in "\n".join(told(results))


def test_who_hurries_is_left_out_and_one_without_times_is_not(export: Export, tmp_path: Path) -> None:
    hurried = returned(export.key, "rater-1", tmp_path, seconds=2.9)
    (one,) = imported(export, [hurried]).raters
    assert [*one.excluded] == [f"{one.lines} of {one.lines} answers in under 3 s (at most 20%)"]
    (one,) = imported(export, [a_csv(export, "rater-1", tmp_path)]).raters
    assert not one.excluded
    assert one.seconds is None


def test_the_rules_are_those_of_the_export(tmp_path: Path) -> None:
    lenient = Rules(attention=1, identical=1, self_agreement=0)
    key = an_export(tmp_path / "out", items=12, raters=1, rules=lenient)
    results = import_human(tmp_path / "out", [returned(key, "rater-1", tmp_path, verdict=always_first)], draws=DRAWS)
    assert results.rules == lenient
    assert not results.raters[0].excluded


def test_when_every_rater_is_left_out_that_is_said(export: Export, tmp_path: Path) -> None:
    results = imported(export, [returned(export.key, "rater-1", tmp_path, verdict=always_first)])
    assert (results.compared, results.harder, results.answerable) == ((), (), ())
    assert "every rater is left out" in told(results)[-1]


def test_a_sheet_that_is_rated_in_part_counts_for_that_part(export: Export, tmp_path: Path) -> None:
    some = export.key.sheets["rater-1"][:10]
    results = imported(export, [returned(export.key, "rater-1", tmp_path, lines=some)])
    assert (results.raters[0].rated, results.raters[0].lines) == (10, len(export.key.sheets["rater-1"]))
    assert results.compared[0].agreement is None
    assert "no item was rated twice" in "\n".join(told(results))


# --- judges


@dataclass(frozen=True)
class Judged:
    judge: str
    item: str
    candidate: str
    baseline: str
    strict: int | None
    sample: int = 0


def judged(judge: str, verdict: Callable[[int], int | None], *, pair: tuple[str, str] = MODELS) -> list[Judged]:
    return [Judged(judge, f"item-{n}", *pair, verdict(n)) for n in range(48)]


def test_judges_stand_beside_people(export: Export, tmp_path: Path) -> None:
    def doubtful(line: Line) -> str:
        even = line.form == "answers" and line.kind == "question" and int(line.item.split("-")[1]) % 4 == 0
        return "tie" if even else attentive(line)

    verdicts = [
        *judged("right", lambda _: 1),
        *judged("turned", lambda _: -1, pair=MODELS[::-1]),
        *judged("wrong", lambda _: -1),
        *judged("lazy", lambda n: None if n % 2 else 1),
        *judged("other models", lambda _: 1, pair=("x", "y")),
        *(replace(one, sample=1) for one in judged("right", lambda _: -1)),
    ]
    (pair,) = imported(export, all_returned(export, tmp_path, rater_1=doubtful), verdicts=verdicts).compared
    by_name = {one.judge: one for one in pair.judges}
    assert set(by_name) == {"right", "turned", "wrong", "lazy"}
    assert by_name["lazy"].items == 24
    right, wrong = by_name["right"], by_name["wrong"]
    assert by_name["turned"].with_a_person == right.with_a_person
    assert wrong.with_a_person.value == 0
    assert right.with_majority is not None
    # Rater 1 differs from all others on a quarter of what he rates, and the judge never does.
    assert 0.8 < right.with_a_person.value < 1
    assert right.between_people is not None
    assert right.between_people.value < right.with_a_person.value
    assert right.beyond_people is not None
    assert right.beyond_people.estimate.low > 0
    assert wrong.beyond_people is not None
    assert wrong.beyond_people.estimate.high < 0


def test_verdicts_of_another_evaluation_are_refused(export: Export, tmp_path: Path) -> None:
    file = returned(export.key, "rater-1", tmp_path)
    with pytest.raises(PeopleError, match="not one verdict"):
        imported(export, [file], verdicts=judged("j", lambda _: 1, pair=("x", "y")))


# --- the CSV twin


def a_csv(export: Export, rater: str, folder: Path, *, delimiter: str = ",", encoding: str = "utf-8-sig") -> Path:
    """The sheet of a rater, filled in and saved again by a spreadsheet."""
    text = (export.folder / "raters" / f"{rater}.csv").read_bytes().decode("utf-8-sig")
    rows = [*csv.DictReader(io.StringIO(text, newline=""))]
    for row, line in zip(rows, export.key.sheets[rater], strict=True):
        row["verdict"] = attentive(line).replace("_", " ").upper()
        row["confidence"] = "2"
        for column in row:
            if column.endswith(("_a", "_b")) and line.form == "answers":
                row[column] = "4.0" if line.sides["ab".index(column[-1])] == MODELS[0] else " 3 "
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    file = folder / f"{rater}.csv"
    file.write_bytes(out.getvalue().encode(encoding))
    return file


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8-sig"), (",", "utf-8"), (";", "cp1252"), ("\t", "utf-16")]
)
def test_a_csv_says_the_same_as_the_page(export: Export, delimiter: str, encoding: str, tmp_path: Path) -> None:
    page = imported(export, [returned(export.key, "rater-2", tmp_path)])
    sheet = imported(export, [a_csv(export, "rater-2", tmp_path, delimiter=delimiter, encoding=encoding)])
    assert (sheet.compared, sheet.harder, sheet.answerable) == (page.compared, page.harder, page.answerable)


def test_rows_of_a_csv_that_are_not_filled_in_are_not_rated(export: Export, tmp_path: Path) -> None:
    file = a_csv(export, "rater-2", tmp_path)
    rows = [*csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))]
    verdict = rows[0].index("verdict")
    for row in rows[4:]:
        row[verdict] = " "
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    assert imported(export, [file]).raters[0].rated == 3


# --- what is refused


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told.update(fields)


def first_rating(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told["ratings"][0].update(fields)


def twice(told: dict[str, Any]) -> None:
    told["ratings"].append(told["ratings"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(export="x" + "0" * 64), "made from export x00000000000"),
        (changed(rater="rater-9"), "the key knows rater-1, rater-2"),
        (changed(rater="rater-2"), "is not in the sheet of rater-2"),
        (changed(format=2), "of format 2"),
        (changed(ratings=[]), "nothing is rated"),
        (changed(ratings={}), "no ratings of this version at ratings"),
        (first_rating(id="q00000000000"), "'q00000000000' is not in the sheet"),
        (first_rating(id=7), "ratings.0.id"),
        (first_rating(verdict="c"), "verdict 'c'; say one of a, b, tie, both_bad"),
        (first_rating(verdict="yes"), "verdict 'yes'"),
        (first_rating(confidence=4), "confidence 4; say 1 to 3"),
        (first_rating(aspects={"charm": {"a": 1}}), "a grade for 'charm'"),
        (first_rating(aspects={"accuracy": {"a": 6}}), "grade 6 for accuracy"),
        (first_rating(aspects={"accuracy": {"c": 1}}), "ratings.0.aspects.accuracy.c"),
        (first_rating(seconds=-1), "ratings.0.seconds"),
        (first_rating(seconds=float("nan")), "ratings.0.seconds"),
        (lambda told: told["ratings"][-1].update(aspects={"accuracy": {"a": 1}}), "no answers were shown"),
        (twice, "is rated twice"),
        (lambda told: told.pop("export"), "at export"),
    ],
)
def test_ratings_that_do_not_fit_the_key_are_refused(
    export: Export, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    file = returned(export.key, "rater-1", tmp_path)
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))
    with pytest.raises(PeopleError, match=message) as refused:
        imported(export, [file])
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", b"", "no ratings of this version"),
        ("r.json", b'{"format": 1, ', "no ratings of this version"),
        ("r.json", b"[1]", "no ratings of this version"),
        ("r.json", b"\xff\xfe\x00", "no ratings of this version"),
        ("r.csv", b"", "the columns"),
        ("r.csv", b"\x00\x01", "the columns|no CSV"),
        ("r.csv", b"export,rater,id,verdict,confidence\n", "at least one row"),
        ("r.csv", b"export,rater,id,verdict,confidence\nx,r,q,\n", "made from export x"),
        ("r.csv", b"export,rater,id,verdict,confidence\nx,r,q,a,1\ny,r,q,a,1\n", "several values of 'export'"),
        ("r.csv", b"export,rater,id,verdict,confidence\nx,r,q,a,sure\n", "confidence 'sure' is no whole number"),
        ("r.csv", b"export,rater,id,verdict,confidence\nx,r,q,a,inf\n", "confidence 'inf' is no whole number"),
        ("r.csv", b'export,rater,id,verdict,confidence\nx,r,q,"a\n', "no CSV"),
        ("r.txt", b"a", "neither .json"),
    ],
)
def test_a_file_that_holds_no_ratings_is_refused(
    export: Export, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(PeopleError, match=message):
        imported(export, [file])


def test_no_file_a_missing_one_and_two_of_one_rater_are_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(PeopleError, match="no ratings are given"):
        imported(export, [])
    with pytest.raises(PeopleError, match=r"gone.json: can not be read: No such file"):
        imported(export, [tmp_path / "gone.json"])
    file = returned(export.key, "rater-1", tmp_path)
    with pytest.raises(PeopleError, match="are both of rater-1"):
        imported(export, [file, a_csv(export, "rater-1", tmp_path)])


def test_a_key_that_was_changed_is_refused(export: Export, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export.folder, folder)
    file = returned(export.key, "rater-1", tmp_path)
    text = (folder / KEY).read_text()
    assert imported(Export(folder, export.key), [file]).export == export.key.export
    lenient = text.replace('"attention": 0.25', '"attention": 0.95')
    swapped = json.loads(text)
    swapped["sheets"]["rater-1"][0]["exchanged"] ^= True
    for other, message in (
        (lenient, "was changed"),
        (json.dumps(swapped), "was changed"),
        (text[:-20], "can not be read"),
        ("[]", "was changed"),
        (text.replace('"seed": 3', '"seed": 3, "more": 1'), "was changed"),
        (text.replace('"format": 1', '"format": 2'), "of format 2"),
    ):
        assert other != text
        (folder / KEY).write_text(other)
        with pytest.raises(PeopleError, match=message):
            import_human(folder, [file])
    (folder / KEY).unlink()
    with pytest.raises(PeopleError, match=r"has no key.json"):
        import_human(folder, [file])


def test_a_key_beside_other_items_is_refused(export: Export, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export.folder, folder)
    with (folder / "items.jsonl").open("a") as items:
        items.write("{}\n")
    with pytest.raises(PeopleError, match="is not what the key was made for"):
        import_human(folder, [returned(export.key, "rater-1", tmp_path)])


# --- what is told


def test_every_figure_is_told_with_its_n_and_interval(export: Export, tmp_path: Path) -> None:
    verdicts = judged("gemini", lambda n: -1 if n % 5 == 0 else 1)
    results = imported(export, all_returned(export, tmp_path), verdicts=verdicts)
    text = "\n".join(told(results))
    for expected in (
        "4 raters, of whom 4 count",
        "evolved against plain",
        "won/even/lost 48/0/0 items",
        "wins, ties half: 1.000 [",
        "people agree, raw: 1.000 [",
        "people agree, kappa: not determined",
        "judge gemini on 48 items",
        "round 1 harder than round 0",
        "can be answered: 1.000 [",
    ):
        assert expected in text
    assert json.loads(json.dumps(results.to_dict()))["compared"][0]["candidate"] == "evolved"

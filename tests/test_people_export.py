"""Raters see what is to be judged and nothing of who is judged, in an order and on sides that a seed has drawn."""

from __future__ import annotations

import collections
import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rated import MODELS, an_answer, an_export, an_item, instruction_pairs

from configs.errors import UserError
from data_gen.records import Record, Turn
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.people.attention import attention_checks
from wizard_jax.evaluate.people.export import export_human
from wizard_jax.evaluate.people.key import KEY, Key, Line
from wizard_jax.evaluate.people.questions import VERDICTS, PeopleError, evolved_instructions
from wizard_jax.evaluate.people.rules import Rules
from wizard_jax.evaluate.people.sheet_csv import MOST_CHARACTERS
from wizard_jax.evaluate.people.sheets import Mix
from wizard_jax.evaluate.people.tells import nameless, plain


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Key]:
    folder = tmp_path_factory.mktemp("people") / "export"
    return folder, an_export(folder, items=80, raters=5, pairs=40)


def lines_of(key: Key, *, kind: str, form: str) -> dict[str, list[Line]]:
    return {
        rater: [line for line in sheet if (line.kind, line.form) == (kind, form)] for rater, sheet in key.sheets.items()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_seed_gives_the_same_files_and_another_seed_another_order(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        an_export(tmp_path / name, items=12, pairs=4, seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "same")
    other = files(tmp_path / "other")
    assert all(other[name] != content for name, content in files(tmp_path / "one").items())


@pytest.mark.parametrize("form", ["answers", "harder", "answerable"])
def test_a_quarter_goes_to_all_raters_and_the_rest_to_two_each_with_equal_loads(
    exported: tuple[Path, Key], form: str
) -> None:
    asked = lines_of(exported[1], kind="question", form=form)
    count = 80 if form == "answers" else 40
    times = collections.Counter(line.item for own in asked.values() for line in own)
    assert collections.Counter(times.values()) == {5: count // 4, 2: count - count // 4}
    loads = [len(own) for own in asked.values()]
    assert max(loads) - min(loads) <= 1
    assert all(len({line.item for line in own}) == len(own) for own in asked.values())


@pytest.mark.parametrize("form", ["answers", "harder"])
def test_sides_are_balanced_for_each_rater_and_not_the_same_for_all(exported: tuple[Path, Key], form: str) -> None:
    asked = lines_of(exported[1], kind="question", form=form)
    for own in asked.values():
        exchanged = sum(line.exchanged for line in own)
        assert abs(2 * exchanged - len(own)) <= 1
        changes = sum(one.exchanged != after.exchanged for one, after in itertools.pairwise(own))
        assert changes > len(own) // 5
        assert all((line.sides[0] in (MODELS[1],) or line.sides[0].endswith("/0")) == line.exchanged for line in own)
    seen: dict[str, set[bool]] = {}
    for line in itertools.chain.from_iterable(asked.values()):
        seen.setdefault(line.item, set()).add(line.exchanged)
    assert any(len(sides) == 2 for sides in seen.values())


def test_each_sheet_has_repeats_checks_and_equal_sides_of_each_form_that_no_line_gives_away(
    exported: tuple[Path, Key],
) -> None:
    folder, key = exported
    shown = {row["id"]: row for row in map(json.loads, (folder / "items.jsonl").read_text().splitlines())}
    for form, kind in itertools.product(VERDICTS, ("repeat", "attention", "identical")):
        own = lines_of(key, kind="question", form=form)
        for rater, found in lines_of(key, kind=kind, form=form).items():
            expected = 0 if (form, kind) == ("answerable", "identical") else max(1, round(0.05 * len(own[rater])))
            assert len(found) == expected
            for line in found:
                sides = shown[line.id]["sides"]
                assert kind != "identical" or sides[0] == sides[1]
                assert (line.expected in VERDICTS[form]) == (kind == "attention")
    assert all(set(row) == {"rater", "line", "id", "form", "turns", "sides"} for row in shown.values())
    assert len(shown) == sum(map(len, key.sheets.values()))


def test_a_repeat_comes_much_later_and_with_the_sides_exchanged(exported: tuple[Path, Key]) -> None:
    folder, key = exported
    shown = {row["id"]: row for row in map(json.loads, (folder / "items.jsonl").read_text().splitlines())}
    for rater, form in itertools.product(key.sheets, VERDICTS):
        part = [line for line in key.sheets[rater] if line.form == form]
        places = {line.id: place for place, line in enumerate(part)}
        for line in part:
            if line.kind == "repeat":
                assert places[line.id] - places[line.repeats] >= len(part) // 8
                first, again = shown[line.repeats], shown[line.id]
                assert again["turns"] == first["turns"]
                assert again["sides"] == first["sides"][::-1]
                assert {"answers": True, "harder": True, "answerable": False}[form] == (
                    line.exchanged != next(one for one in part if one.id == line.repeats).exchanged
                )


def test_an_attention_check_has_its_right_answer_on_the_side_that_the_key_expects(exported: tuple[Path, Key]) -> None:
    folder, key = exported
    shown = {row["id"]: row for row in map(json.loads, (folder / "items.jsonl").read_text().splitlines())}
    right = {check.turns: check.sides[0].texts for check in attention_checks("answers")}
    expected = set()
    for line in itertools.chain.from_iterable(lines_of(key, kind="attention", form="answers").values()):
        row = shown[line.id]
        assert tuple(row["sides"]["ab".index(line.expected)]) == right[tuple(row["turns"])]
        expected.add(line.expected)
    assert expected == {"a", "b"}


def test_nothing_but_the_key_tells_models_items_or_rounds(tmp_path: Path) -> None:
    items = [Item(id=f"secret-id-{n}", turns=(f"Ask {n}",)) for n in range(9)]
    answers = [
        Answer(item=item.id, model=model, texts=("Well.",), finish_reasons=("stop",))
        for item in items
        for model in ("wombat-one", "wombat-two")
    ]
    export_human(tmp_path / "out", items, answers, raters=2, seed=0, made_by="wombat evaluation")
    found = files(tmp_path / "out")
    assert b"wombat-one" in found.pop(KEY)
    assert len(found) == 6
    assert not [name for name, content in found.items() if b"wombat" in content or b"secret-id" in content]


def test_one_or_two_raters_see_everything(tmp_path: Path) -> None:
    for raters in (1, 2):
        key = an_export(tmp_path / str(raters), items=10, raters=raters)
        for own in lines_of(key, kind="question", form="answers").values():
            assert len(own) == 10


def test_every_pair_of_models_is_compared_or_each_with_the_baseline(tmp_path: Path) -> None:
    items = [an_item(n) for n in range(6)]
    answers = [an_answer(item, model) for item in items for model in ("one", "two", "three")]
    every = export_human(tmp_path / "every", items, answers, raters=2, seed=0)
    based = export_human(tmp_path / "based", items, answers, raters=2, seed=0, baseline="two")
    drawn = export_human(tmp_path / "drawn", items, answers, raters=2, seed=0, baseline="two", sample=4)
    assert (every.comparisons, based.comparisons, drawn.comparisons) == (18, 12, 8)


def test_what_a_model_did_not_answer_is_left_out_and_told(tmp_path: Path) -> None:
    items = [replace(an_item(n), turns=("First?", "Second?")) for n in range(8)]
    answers = [
        Answer(item=item.id, model=model, texts=("one", "two"), finish_reasons=("stop", "stop"))
        for item in items
        for model in MODELS
    ]
    answers[0] = replace(answers[0], problem="gave up")
    answers[3] = replace(answers[3], texts=("one",))
    done = export_human(tmp_path / "out", items, answers, raters=1, seed=0)
    assert done.comparisons == 6
    assert done.notes == ("2 comparisons are left out: a model gave no answer",)


def test_of_several_answers_people_see_the_first(tmp_path: Path) -> None:
    items = [an_item(n) for n in range(4)]
    answers = [
        replace(an_answer(item, model), sample=sample, texts=(f"sample {sample}",))
        for item in items
        for model in MODELS
        for sample in (0, 1)
    ]
    done = export_human(tmp_path / "out", items, answers, raters=1, seed=0)
    assert (done.comparisons, done.notes) == (4, ("people see the first of several answers of a model to an item",))
    shown = (tmp_path / "out" / "items.jsonl").read_text()
    assert "sample 0" in shown
    assert "sample 1" not in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"raters": 0}, "raters is 0"),
        ({"raters": 1001}, "raters is 1001"),
        ({"items": 2, "raters": 9}, "do not reach"),
        ({"baseline": "nobody"}, "the models are evolved, plain"),
        ({"sample": -1}, "sample is -1"),
        ({"aspects": ("a,b",)}, "'a,b' is no name"),
        ({"aspects": ("wit", "wit")}, "named twice"),
    ],
)
def test_an_export_without_sense_is_refused_and_leaves_nothing(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PeopleError, match=message):
        an_export(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_one_model_alone_or_no_common_item_is_refused(tmp_path: Path) -> None:
    item = an_item(0)
    with pytest.raises(PeopleError, match="compare two or more"):
        export_human(tmp_path / "out", [item], [an_answer(item, "one")], raters=1, seed=0)
    apart = [an_answer(item, "one"), an_answer(an_item(1), "two")]
    with pytest.raises(PeopleError, match="not one item"):
        export_human(tmp_path / "out", [item, an_item(1)], apart, raters=1, seed=0)


def test_an_export_never_overwrites_another(exported: tuple[Path, Key]) -> None:
    before = files(exported[0])
    with pytest.raises(UserError, match="exists already"):
        an_export(exported[0], items=4)
    assert files(exported[0]) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mix(shared=1.5), "shared is 1.5"),
        (lambda: Mix(repeats=float("nan")), "repeats is nan"),
        (lambda: Rules(attention=-0.1), "attention is -0.1"),
        (lambda: Rules(seconds=float("inf")), "seconds is inf"),
        (lambda: Rules(cases=0), "cases is 0"),
    ],
)
def test_shares_and_rules_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(PeopleError, match=message):
        make()


def test_pairs_of_instructions_come_from_the_lineages_of_a_data_set_each_round_alike() -> None:
    def record(lineage: int, round_: int) -> Record:
        parent = f"{lineage}/{round_ - 1}" if round_ else ""
        turns = (Turn("user", f"Do {lineage} in {round_}"), Turn("assistant", "Done"))
        return Record(id=f"{lineage}/{round_}", lineage=str(lineage), turns=turns, parent=parent, round=round_)

    records = [record(lineage, round_) for lineage in range(20) for round_ in range(3)]
    follow_up = (Turn("user", "Hi"), Turn("assistant", "Hi"), Turn("user", "Go on"))
    records.append(Record(id="20/1", lineage="20", turns=follow_up, parent="0/0", round=1))
    pairs, singles = evolved_instructions(records, count=12, seed=0)
    assert collections.Counter(pair.second.round for pair in pairs) == {1: 6, 2: 6}
    assert all(pair.first.id.split("/")[0] == pair.second.id.split("/")[0] for pair in pairs)
    assert all(pair.first.round == pair.second.round - 1 for pair in pairs)  # type: ignore[operator]
    assert collections.Counter(one.round for one in singles) == {0: 4, 1: 4, 2: 4}
    assert "20/1" not in {one.id for one in singles} | {pair.second.id for pair in pairs}
    assert evolved_instructions(records, count=12, seed=0) == (pairs, singles)
    assert evolved_instructions(records, count=12, seed=1) != (pairs, singles)
    with pytest.raises(PeopleError, match="no record"):
        evolved_instructions(records[::3], count=12, seed=0)


# --- tells


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("# Title\n\nText", "Title\n\nText"),
        ("### A # B ##\nText", "A # B\nText"),
        ("**Bold** and *slanted* and ***both***", "Bold and slanted and both"),
        ("* one\n• two\n  + three\n- four", "- one\n- two\n  - three\n- four"),
        ("a\n\n---\n\n\n\nb", "a\n\nb"),
        ("Great question! 🎉👍🏽 Yes ✅", "Great question!  Yes"),
        ("“It’s”\u00a0so…", '"It\'s" so...'),
        ("<think>hm</think>\n\nYes", "Yes"),
        # What only looks like it stays.
        ("2**3**4 and x*y*z and a * b * c", "2**3**4 and x*y*z and a * b * c"),
        ("#include <stdio.h>\n__init__ and snake_case_name", "#include <stdio.h>\n__init__ and snake_case_name"),
        ("```\n# a comment\n* p = **q;\n```", "```\n# a comment\n* p = **q;\n```"),
        ("| a | b |\n1. one", "| a | b |\n1. one"),
        ("क्‍ष", "क्‍ष"),
        ("", ""),
    ],
)
def test_formatting_that_tells_is_taken_out_and_meaning_is_not(text: str, bare: str) -> None:
    assert plain(text) == bare
    assert plain(bare) == bare


def test_names_of_models_are_taken_out_unless_the_instruction_names_them() -> None:
    said = "As ChatGPT, made by OpenAI, I like alpacas and GPT-4o."
    assert nameless(said, asked="Who are you?") == ("As [a name], made by [a name], I like alpacas and [a name].", 3)
    assert nameless(said, asked="What do ChatGPT and gpt-4o by openai do?") == (said, 0)


def test_tells_are_taken_out_where_asked_and_only_there(tmp_path: Path) -> None:
    item = Item(id="one", turns=("**Who** are you?",))
    answers = [
        Answer(item="one", model=model, texts=("**I** am ChatGPT",), finish_reasons=("stop",)) for model in MODELS
    ]
    for formatting, shown in (("as written", "**I** am ChatGPT"), ("plain", "I am [a name]")):
        done = export_human(tmp_path / formatting, [item], answers, raters=1, seed=0, formatting=formatting)  # type: ignore[arg-type]
        rows = [json.loads(line) for line in (tmp_path / formatting / "items.jsonl").read_text().splitlines()]
        asked = [row for row in rows if row["turns"] == ["**Who** are you?"]]
        assert asked
        assert all(row["sides"] == [[shown], [shown]] for row in asked)
        assert len(done.notes) == (formatting == "plain")


# --- the CSV twin


def test_the_csv_shows_what_the_page_shows_and_no_cell_of_it_is_a_formula(tmp_path: Path) -> None:
    texts = (
        "=HYPERLINK(1)",
        "+1",
        "-2",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "NUL\0",
        "x" * 40_000,
        'quo"te,\n=new line',
        "中文\ud800",
    )
    items = [Item(id=str(n), turns=(text,)) for n, text in enumerate(texts)]
    answers = [
        Answer(item=item.id, model=model, texts=item.turns, finish_reasons=("stop",))
        for item in items
        for model in MODELS
    ]
    export_human(tmp_path / "out", items, answers, raters=1, seed=0, harder=instruction_pairs(2))
    data = (tmp_path / "out" / "raters" / "rater-1.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    rows = [*csv.DictReader(data.decode("utf-8-sig").splitlines(keepends=True))]
    shown = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in shown]
    for row in rows:
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert len(cell) < MOST_CHARACTERS + 100
        assert row["verdict"] == row["confidence"] == ""
        assert not row["id"][0].isdigit()
    by_id = {row["id"]: row for row in shown}
    for row in rows:
        if (side := by_id[row["id"]]["sides"][0][0]).isascii() and side.isalpha() and len(side) < 100:
            assert row["a"] == side

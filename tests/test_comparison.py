"""The page that compares evaluations shows their numbers, and compares only what can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forged_evaluation import forge_evaluation
from page_reader import PageReader
from tiny_flow import Flow

from configs.errors import UserError
from configs.folder import read_complete
from wizard_jax.cli import main
from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.statistics.shares import difference, wilson
from wizard_jax.evaluate.tasks.simulated_world import BANDS
from wizard_jax.report import comparison


def only_short(item: Item) -> str:
    return item.target if item.band in BANDS[:2] else "wrong"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        forge_evaluation(tmp_path / "a", label="the seeds", answer=lambda _: "wrong"),
        forge_evaluation(tmp_path / "b", label="évolué $x_1$ 日本", answer=only_short),
    ]


def test_the_table_has_a_row_for_each_arm_with_its_shares_and_intervals(folders: list[Path], tmp_path: Path) -> None:
    comparison.write_report(folders, tmp_path / "new folder" / "report.html")
    page = PageReader(tmp_path / "new folder" / "report.html")
    head, seeds, evolved = page.tables[0]
    assert head == ["trained on", "exact match, 1 step", "2 steps", "3 steps", "4+ steps", "n each"]
    none, every = wilson(0, 3), wilson(3, 3)
    nothing, all_right = f"0.00 [0.00, {none.high:.2f}]", f"1.00 [{every.low:.2f}, 1.00]"
    assert seeds == ["the seeds", *[nothing] * 4, "3"]
    assert evolved == ["évolué $x_1$ 日本", all_right, all_right, nothing, nothing, "3"]
    low, high = difference(every, none)
    assert page.tables[1][1][1] == f"+1.00 [{low:+.2f}, {high:+.2f}]"
    assert page.tables[1][1][3].startswith("+0.00 [")


def test_it_says_what_it_is_and_how_held_out_was_checked(folders: list[Path], tmp_path: Path) -> None:
    comparison.write_report(folders, tmp_path / "report.html")
    text = PageReader(tmp_path / "report.html").text
    assert comparison.CHECK in text
    for told in ("evolved (1,234 records)", "5,678 texts", "4,321 pairs"):
        assert told in text


def test_it_says_what_4_or_more_steps_are(folders: list[Path], tmp_path: Path) -> None:
    comparison.write_report(folders, tmp_path / "report.html")
    assert "4+ steps: a task has 4 or 5 steps." in PageReader(tmp_path / "report.html").text


def test_how_held_out_was_checked_is_told_for_each_arm_where_it_differs(folders: list[Path], tmp_path: Path) -> None:
    comparison.write_report(folders, tmp_path / "same.html")
    text = PageReader(tmp_path / "same.html").text
    assert (text.count("no task shares"), text.count("Held out: no task shares")) == (1, 1)
    assert "no tasks of this world" not in text
    other = forge_evaluation(tmp_path / "c", label="with others", unparsed=1500)
    comparison.write_report([*folders, other], tmp_path / "other.html")
    text = PageReader(tmp_path / "other.html").text
    assert text.count("no task shares") == 3
    assert "the seeds: no task shares" in text
    first, _, rest = text.partition("with others: no task shares")
    assert "no tasks of this world" not in first
    assert "1,500 of the instructions are no tasks of this world: of those only the text is compared." in rest


def test_what_an_imported_model_was_trained_on_is_said_to_be_unknown(folders: list[Path], tmp_path: Path) -> None:
    other = forge_evaluation(tmp_path / "c", label="theirs", untraced="llama/hf")
    comparison.write_report([*folders, other], tmp_path / "report.html")
    text = PageReader(tmp_path / "report.html").text
    assert text.count("is not known") == 1
    assert "What llama/hf was trained on is not known, so theirs may have seen these very tasks." in text


def test_evaluations_on_other_tasks_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = forge_evaluation(tmp_path / "c", label="other tasks", seed=2)
    with pytest.raises(UserError, match=r"did not answer the same tasks: .*task\.seed"):
        comparison.write_report([*folders, other], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_unfinished_evaluation_is_refused(folders: list[Path], tmp_path: Path) -> None:
    (folders[1] / "complete.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        comparison.write_report(folders, tmp_path / "report.html")


def test_arms_with_one_label_stay_apart(tmp_path: Path) -> None:
    folders = [forge_evaluation(tmp_path / name, model=f"{name}/run") for name in ("a", "b")]
    arms = comparison.write_report(folders, tmp_path / "report.html")
    assert [arm.label for arm in arms] == [f"run ({folder})" for folder in folders]
    page = PageReader(tmp_path / "report.html")
    assert len({row[0] for row in page.tables[0]}) == 3


def test_one_evaluation_alone_has_a_page(tmp_path: Path) -> None:
    folder = forge_evaluation(tmp_path / "a", label="_alone")
    comparison.write_report([folder], tmp_path / "report.html")
    assert "Differences" not in PageReader(tmp_path / "report.html").text


def test_what_the_runs_were_trained_on_is_told(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [forge_evaluation(tmp_path / name, label=name, model=str(flow.run)) for name in ("tiny", "again")]
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "report.html")]) == 0
    assert "tiny" in capsys.readouterr().out
    (row,) = [table[1] for table in PageReader(tmp_path / "report.html").tables if "trained tokens" in table[0]]
    summary = read_complete(flow.run)
    numbers = [summary["steps"], summary["trained_tokens"], summary["tokens"], summary["packing"]["conversations"]]
    assert row[:5] == ["tiny", *(f"{number:,.0f}" for number in numbers)]
    assert row[6] == f"{summary['parameters']:,}"


def test_an_evaluation_of_a_run_that_goes_on_still_has_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2')
    folder = forge_evaluation(tmp_path / "a", label="early", model=str(run))
    (arm,) = comparison.write_report([folder], tmp_path / "report.html")
    assert arm.run is None

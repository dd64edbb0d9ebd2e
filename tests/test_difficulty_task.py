"""`task = @Difficulty`: rows for every record, figures of them by round and in rank, killed at any moment."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_flow import Flow

from configs.folder import read_complete
from configs.interrupt import Interrupted, StopFlag
from configs.loader import load
from data_gen.shards import read_dataset
from wizard_jax.cli import main
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.difficulty.judged import read_judged
from wizard_jax.evaluate.difficulty.ranks import correlations
from wizard_jax.evaluate.difficulty.row_file import append_rows, read_rows
from wizard_jax.evaluate.evaluate import evaluate

FIRST_STEP = "models.first=@Local models.first.path={} models.first.step=1"
"""Another model beside the run's last step."""


def command(flow: Flow, dataset: Path, out: Path, *settings: str) -> list[str]:
    models = ("models.tiny=@Local", f"models.tiny.path={flow.run}")
    return ["eval", "configs/eval/difficulty.gin", "--out", str(out), *models, f"task.dataset={dataset}", *settings]


@pytest.fixture(scope="module")
def judged(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of a run whose judge has scored and ranked 15 of its 20 lineages."""
    out = tmp_path_factory.mktemp("judged") / "evolved"
    assert main(flow.evolve_command(out, "measure.difficulty_lineages=15")) == 0
    return out


@pytest.fixture(scope="module")
def measured(flow: Flow, judged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "eval"
    assert main(command(flow, judged, out, *FIRST_STEP.format(flow.run).split())) == 0
    return out


def rows(out: Path, name: str = "tiny") -> list[dict[str, Any]]:
    return list(read_rows(out / f"difficulty-{name}.jsonl"))


def test_there_is_a_row_for_every_record_and_results_are_made_of_them(judged: Path, measured: Path) -> None:
    records = list(read_dataset(judged))
    found = rows(measured)
    assert [row["id"] for row in found] == [record.id for record in records]
    told = read_complete(measured)
    tiny = told["models"]["tiny"]
    scored = [row for row in found if not row["refused"]]
    assert (tiny["records"], tiny["refused"]) == (len(scored), {})
    for row in scored:
        assert row["ifd_loss"] == pytest.approx(row["loss"] / row["loss_alone"])
        assert row["ifd_ppl"] == pytest.approx(np.exp(row["loss"] - row["loss_alone"]))
        assert row["ic_ifd"] == pytest.approx(row["ifd_loss"] / row["loss_instruction"])
        assert row["unhelped"] == (row["ifd_loss"] >= 1)
    by_id = {row["id"]: row for row in scored}
    for of_round in tiny["rounds"]:
        own = [row for row in scored if row["round"] == of_round["round"]]
        assert of_round["n"] == of_round["loss"]["n"] == len(own)
        assert of_round["ifd_loss"]["value"] == pytest.approx(np.mean([row["ifd_loss"] for row in own]))
        assert of_round["ifd_loss"]["low"] < of_round["ifd_loss"]["value"] < of_round["ifd_loss"]["high"]
        if of_round["round"]:
            gains = [row["loss"] - by_id[row["parent"]]["loss"] for row in own if row["parent"] in by_id]
            assert of_round["gains"]["loss"]["value"] == pytest.approx(np.mean(gains))
    assert [one["name"] for one in tiny["measures"]] == ["loss", "ifd_loss", "ifd_ppl", "ic_ifd", "unhelped"]
    assert {tuple(one["models"]) for one in told["between_models"]} == {("tiny", "first")}


def test_what_the_judge_said_is_read_again_from_its_replies(judged: Path, measured: Path) -> None:
    """The simulated judge scores a task by its number of steps."""
    said = read_judged("", dataset=str(judged))
    records = {record.id: record for record in read_dataset(judged)}
    scores = {name: one.score for name, one in said.items() if one.score is not None}
    assert scores == {name: 2 * records[name].steps - 1 for name in scores}
    told = json.loads((judged / "measures.json").read_text())["difficulty"]["rounds"]
    for of_round in told:  # the means that the run itself has made of them
        for kind in ("score", "rank"):
            own = [getattr(one, kind) for name, one in said.items() if records[name].round == of_round["round"]]
            values = [value for value in own if value is not None]
            assert of_round[kind]["n"] == len(values) > 5
            assert of_round[kind]["value"] == pytest.approx(np.mean(values), rel=1e-5)
    assert read_complete(measured)["task"]["judged"] == len(said)
    found = read_complete(measured)["models"]["tiny"]["correlations"]
    kinds = {(one["label"], one["measure"], one["within"], one["without"]) for one in found}
    lengths = ("", "instruction_tokens", "answer_tokens")
    assert kinds == {
        (label, measure, within, without)
        for label in ("judged_score", "judged_rank", "steps")
        for measure in ("loss", "ifd_loss", "ifd_ppl", "ic_ifd")
        for within in ("", "source", "operation")
        for without in lengths
    }
    plain = next(one for one in found if (one["label"], one["measure"], one["without"]) == ("steps", "loss", ""))
    assert plain["n"] == len({row["lineage"] for row in rows(measured)})
    assert plain["items"] == len(rows(measured))
    assert "lineages" in plain["method"]


def test_told_to_stop_it_goes_on_and_ends_up_the_same_to_the_byte(
    flow: Flow, judged: Path, measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    line = command(flow, judged, out, *FIRST_STEP.format(flow.run).split())
    config = load(EvalConfig, [line[1]], [word for word in line if "=" in word])
    with pytest.raises(Interrupted) as stopped:
        evaluate(config, out, progress=lambda *_: signal.raise_signal(signal.SIGTERM))
    assert stopped.value.exit_code == 42
    left = {file.name for file in out.iterdir()}
    assert "difficulty-tiny.jsonl" in left
    assert not left & {"difficulty-first.jsonl", "complete.json"}
    assert main(line) == 0
    for name in ("difficulty-tiny.jsonl", "difficulty-first.jsonl", "results.json"):
        assert (out / name).read_bytes() == (measured / name).read_bytes()


def test_wherever_a_file_of_rows_was_cut_it_ends_up_the_same(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure(members: Any, before: int) -> list[dict[str, Any]]:
        asked.extend(members)
        return [{"piece": n, "chunk": before} for n in members]

    def append(file: Path, **made_from: object) -> None:
        append_rows(file, range(10), made_from=made_from, measure=measure, stop=StopFlag(), chunk=4)

    append(tmp_path / "whole", of="one")
    whole = (tmp_path / "whole").read_bytes()
    assert [row["piece"] for row in read_rows(tmp_path / "whole")] == list(range(10))
    for cut in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:cut])
        asked.clear()
        append(tmp_path / "cut", of="one")
        assert (tmp_path / "cut").read_bytes() == whole
        rows_left = max(0, whole[:cut].count(b"\n") - 1)
        assert asked == list(range(rows_left // 4 * 4, 10))
    append(tmp_path / "cut", of="another")
    assert [row["piece"] for row in read_rows(tmp_path / "cut")] == list(range(10))
    assert json.loads((tmp_path / "cut").read_text().splitlines()[0]) == {"of": "another"}


def test_rows_of_another_checkpoint_are_not_mixed_in(flow: Flow, judged: Path, measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    shutil.copytree(measured, out)
    for left in ("complete.json", "results.json"):
        (out / left).unlink()
    (out / "difficulty-first.jsonl").rename(out / "difficulty-tiny.jsonl")
    assert main(command(flow, judged, out, *FIRST_STEP.format(flow.run).split())) == 0
    assert rows(out) == rows(measured)
    assert rows(out, "first") == rows(measured, "first")


def test_of_some_records_whole_lineages_are_measured_and_long_ones_are_refused_and_counted(
    flow: Flow, judged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    assert main(command(flow, judged, out, "task.records=12", "models.tiny.length=40")) == 0
    found = rows(out)
    assert 8 <= len(found) <= 12
    sizes = {record.lineage: 0 for record in read_dataset(judged)}
    for record in read_dataset(judged):
        sizes[record.lineage] += 1
    for lineage in {row["lineage"] for row in found}:
        assert sum(row["lineage"] == lineage for row in found) == sizes[lineage]
    told = read_complete(out)["models"]["tiny"]
    assert told["refused"] == {"too long": sum(row["refused"] == "too long" for row in found)}
    assert told["records"] + told["refused"]["too long"] == len(found)


def test_what_stands_before_an_answer_alone_is_a_setting_and_told(
    flow: Flow, judged: Path, measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    assert main(command(flow, judged, out, "task.records=12", "task.alone_after=bos")) == 0
    first = {row["id"]: row for row in rows(measured)}
    for row in rows(out):
        assert row["loss"] == pytest.approx(first[row["id"]]["loss"], rel=1e-5)
        assert row["loss_alone"] != pytest.approx(first[row["id"]]["loss_alone"], rel=1e-5)
    told = [read_complete(folder)["models"]["tiny"]["alone_after"] for folder in (out, measured)]
    assert told[0] == "BOS"
    assert told[1].strip() == "### Response:"
    assert read_complete(out)["task"]["items"] == len(rows(out))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("models.other=@Simulated",), "models.other is Simulated, and Difficulty needs the weights"),
        (("samples=2", "temperature=1.0"), "samples has no effect on Difficulty"),
        (("task.records=-1",), "task.records is -1"),
        (("task.judged=nowhere",), "judged: nowhere is no stage's folder"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_sentence(
    flow: Flow,
    judged: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(flow, judged, tmp_path / "eval", *settings)) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_whose_judge_was_not_asked_is_refused_as_a_source_of_judged_difficulty(
    flow: Flow, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(flow, judged, tmp_path / "eval", f"task.judged={flow.evolved}")) == 2
    assert "measured no difficulty" in capsys.readouterr().err
    assert read_judged("", dataset=str(flow.evolved)) == {}


# --- rank correlations


def test_correlations_are_told_apart_by_skill_and_length() -> None:
    """A label that follows length, and differs between skills, says nothing within a skill of equal length."""
    random = np.random.default_rng(0)
    table = []
    for n in range(400):
        skill, length = n % 2, float(random.normal())
        ifd = length + 5 * skill + float(random.normal()) / 10
        label = length + 5 * skill + float(random.normal()) / 10
        table.append({"skill": str(skill), "length": length, "ifd": ifd, "label": label, "lineage": str(n // 4)})
    found = correlations(
        table,
        measures=["ifd"],
        labels=["label"],
        within=["skill"],
        without=["length"],
        prompts="lineage",
        unit="lineages",
        seed=0,
    )
    by_kind = {(one["within"], one["without"]): one for one in found}
    assert by_kind["", ""]["value"] > 0.95
    assert by_kind["skill", ""]["value"] > 0.9
    assert abs(by_kind["skill", "length"]["value"]) < 0.2
    assert all((one["n"], one["items"]) == (100, 400) for one in found)


def test_versions_of_a_lineage_are_resampled_together_so_that_copies_add_no_certainty() -> None:
    random = np.random.default_rng(0)
    single = [
        {"a": float(a), "b": float(a + b), "lineage": str(n)} for n, (a, b) in enumerate(random.normal(size=(40, 2)))
    ]
    copied = [row for row in single for _ in range(5)]
    told = [
        correlations(table, measures=["a"], labels=["b"], prompts="lineage", seed=0)[0] for table in (single, copied)
    ]
    assert told[0]["value"] == pytest.approx(told[1]["value"], abs=0.01)
    assert told[0]["high"] - told[0]["low"] == pytest.approx(told[1]["high"] - told[1]["low"], rel=0.05)


def test_what_does_not_vary_has_a_reason_in_place_of_a_figure() -> None:
    table = [{"a": 1.0, "b": float(n), "c": None} for n in range(20)]
    (flat,) = correlations(table, measures=["a"], labels=["b"], seed=0)
    assert "too much alike" in flat["why"]
    assert correlations(table, measures=["a"], labels=["c"], seed=0) == []
    (few,) = correlations(table[:5], measures=["a"], labels=["b"], seed=0)
    assert "too few" in few["why"]

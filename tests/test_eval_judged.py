"""`wizard eval` with judges: bad ones are found out and named, good ones count, and nothing is asked twice."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
from rated import returned
from tiny_flow import Flow

from configs.folder import read_complete
from configs.interrupt import Interrupted
from configs.loader import load
from wizard_jax.cli import main
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.evaluate import evaluate
from wizard_jax.evaluate.people.key import read_key

BAD_JUDGES = (
    *("judges.shown_first=@Judge", "judges.shown_first.llm=@Simulated", "judges.shown_first.llm.judges=first"),
    *("judges.longer=@Judge", "judges.longer.llm=@Simulated", "judges.longer.llm.judges=longer"),
)


def command(flow: Flow, out: Path, *more: str) -> list[str]:
    """A model that was hardly trained, and one that is always right."""
    models = ("models.right=@Simulated", "self_judging=True", "baseline=tiny", "gates.pairs=30")
    return flow.eval_command(out, *models, "judges.careful=@Judge", "judges.careful.llm=@Simulated", *more)


def config_of(words: list[str]) -> EvalConfig:
    return load(EvalConfig, [words[1]], [word for word in words if "=" in word])


@pytest.fixture(scope="module")
def judged(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "eval"
    assert main(command(flow, out, *BAD_JUDGES)) == 0
    return out


def test_bad_judges_are_named_with_the_gates_that_they_failed_and_do_not_count(judged: Path) -> None:
    told = read_complete(judged)["judges"]
    assert {name: one["counts"] for name, one in told.items()} == {
        "careful": True,
        "shown_first": False,
        "longer": False,
    }
    assert told["careful"]["failed"] == []
    assert any(line.startswith("order consistency: 0.00") for line in told["shown_first"]["failed"])
    assert any(line.startswith("length: ") for line in told["longer"]["failed"])
    (comparison,) = read_complete(judged)["comparisons"]
    assert (comparison["candidate"], comparison["baseline"]) == ("right", "tiny")
    assert comparison["judges"] == ["careful"]
    assert comparison["win_rate"]["estimate"]["low"] > 0.5


def test_every_judge_saw_every_pair_in_both_orders(judged: Path) -> None:
    rows = [json.loads(line) for line in (judged / "verdicts.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 8
    assert all(row["first"] is not None and row["second"] is not None for row in rows)
    first = [row for row in rows if row["judge"] == "shown_first" and row["how"] == "asked"]
    assert first
    assert all((row["first"], row["second"]) == (1, -1) for row in first)


def test_who_is_asked_to_count_a_bad_judge_gets_its_verdicts(flow: Flow, tmp_path: Path) -> None:
    assert main(command(flow, tmp_path / "eval", *BAD_JUDGES, "judges.longer.counts=always")) == 0
    assert read_complete(tmp_path / "eval")["comparisons"][0]["judges"] == ["careful", "longer"]
    assert read_complete(tmp_path / "eval")["judges"]["longer"]["failed"]


def test_told_to_stop_at_any_moment_it_asks_nothing_twice(flow: Flow, judged: Path, tmp_path: Path) -> None:
    """Stopped again and again, each time after some more pieces, until it is through."""
    out, starts = tmp_path / "eval", 0
    words = command(flow, out, *BAD_JUDGES)
    while not (out / "complete.json").exists():
        starts += 1
        told: list[int] = []

        def tell(done: int, *_: object, after: int = 41 * starts, told: list[int] = told) -> None:
            told.append(done)
            if len(told) == after:
                signal.raise_signal(signal.SIGTERM)

        with contextlib.suppress(Interrupted):
            evaluate(config_of(words), out, progress=tell)
    assert starts > 3
    for file in ("answers.jsonl", "verdicts.jsonl", "grades.jsonl"):
        assert (out / file).read_bytes() == (judged / file).read_bytes()
    # What was spent is the sum of all replies that ever came.
    assert read_complete(out)["spent"] == read_complete(judged)["spent"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("baseline=nobody",), "baseline is 'nobody', which is none of models: "),
        (("judges.careful.asks=graded", "baseline="), "judges.careful.asks is 'graded'"),
        (("self_judging=False",), "judges.careful is the same model as models.right"),
        (("models.right.judges=first",), "models.right.judges and misjudged have no effect"),
        (("gates.pairs=-1",), "gates.pairs is -1"),
        (("judges.careful.max_tokens=0",), "judges.careful.max_tokens is 0"),
    ],
)
def test_settings_of_judging_that_make_no_sense_are_refused(
    settings: tuple[str, ...], says: str, flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(flow, tmp_path / "eval", *settings)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()


def test_three_models_have_strengths_and_grades_have_capacities(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    third = ("models.again=@Local", f"models.again.path={flow.run}", "models.again.step=1", "models.again.rows=8")
    assert main(command(flow, out, *third, "judges.careful.asks=both", "task.per_band=6")) == 0
    results = read_complete(out)
    assert [one["candidate"] for one in results["comparisons"]] == ["right", "again"]
    assert results["comparisons"][0]["win_rate"]["estimate"]["value"] > 0.9
    assert "models" in results["strengths"] or "none" in results["strengths"]
    assert results["capacity"]["right"]["items"] == 24
    assert results["capacity"]["right"]["mean_grades"][0] > results["capacity"]["right"]["mean_grades"][1]


def test_people_rate_what_was_evaluated_and_judges_stand_beside_them(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "people"
    assert main(["eval", "export-human", str(judged), "--out", str(out), "--raters", "2", "--no-aspects"]) == 0
    assert "keep key.json to yourself" in capsys.readouterr().out
    key = read_key(out)
    back = [str(returned(key, rater, tmp_path / "back")) for rater in key.sheets]
    assert main(["eval", "import-human", str(out), *back, "--evaluation", str(judged)]) == 0
    told = json.loads((out / "people.json").read_text())
    assert [(one["name"], one["excluded"]) for one in told["raters"]] == [("rater-1", []), ("rater-2", [])]
    (compared,) = told["compared"]
    assert {one["judge"] for one in compared["judges"]} == {"careful", "shown_first", "longer"}


def test_an_evaluation_that_is_not_finished_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eval").mkdir()
    assert main(["eval", "export-human", str(tmp_path / "eval"), "--out", str(tmp_path / "o"), "--raters", "2"]) == 2
    assert "no stage's folder" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()

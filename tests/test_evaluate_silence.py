"""What did not come is told: models without answers, judges without gates, pairs without a verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forged_judged import Forged, forge_judged, make_items
from tiny_flow import Flow

from configs.folder import read_complete
from wizard_jax.cli import main
from wizard_jax.evaluate.comparing import capacities
from wizard_jax.evaluate.items import Answer, Item, Score
from wizard_jax.evaluate.judged_results import capacity_rows, comparison_rows, judge_rows, judged_results
from wizard_jax.evaluate.judging.health import between
from wizard_jax.evaluate.judging.panel import Judged
from wizard_jax.evaluate.judging.rows import Graded, Verdict
from wizard_jax.evaluate.results import answer_rows, model_results, score_names, score_rows, unanswered_rows
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(seed=0, draws=2_000)


def test_a_model_that_answered_nothing_scores_nothing_and_is_named_with_the_reason() -> None:
    items = [Item(id=str(n), turns=("?",), band="easy" if n < 2 else "hard") for n in range(4)]
    said = {
        "mute": {
            one.id: (Answer(item=one.id, model="mute", texts=(), finish_reasons=(), problem="no"),) for one in items
        },
        "good": {one.id: (Answer(item=one.id, model="good", texts=("a",), finish_reasons=("stop",)),) for one in items},
    }
    rows = answer_rows(items, said, score=lambda *_: Score(values={"right": 1.0}))
    names = score_names(rows)
    models = {
        name: {"label": name, **model_results([row for row in rows if row["model"] == name], scores=names)}
        for name in said
    }
    _, scores = score_rows({"models": models})
    assert [(row[0], row[2][:4], row[3][-3:]) for row in scores] == [("mute", "0.00", "n=2"), ("good", "1.00", "n=2")]
    assert unanswered_rows({"models": models})[1] == [("mute", "4 of 4", "no")]


def test_rounds_are_told_in_their_order_whatever_lineage_came_first() -> None:
    items = [Item(id=str(n), turns=("?",), band=f"round {n}") for n in (0, 10, 2, 1)]
    said = {one.id: (Answer(item=one.id, model="m", texts=("a",), finish_reasons=("stop",)),) for one in items}
    rows = answer_rows(items, {"m": said}, score=lambda *_: Score(values={"right": 1.0}))
    assert list(model_results(rows)["bands"]) == ["round 0", "round 1", "round 2", "round 10"]


def test_a_judge_that_nobody_tried_passed_nothing() -> None:
    told = {"counts": True, "failed": [], "passed": []}
    assert judge_rows({"judges": {"one": told}})[1] == [("one", "counts", "untried: gates.pairs is 0")]
    assert judge_rows({"judges": {"one": {**told, "passed": ["graded"]}}})[1][0][2] == "passed every gate"


def test_pairs_that_were_not_graded_are_told_beside_those_that_were(tmp_path: Path) -> None:
    def verdict(judge: str, item: Item, candidate: str) -> tuple[int | None, int | None]:  # noqa: ARG001
        return (None, None) if item.id in ("0", "1", "2") else (1, None) if item.id in ("3", "4") else (1, 1)

    forged = Forged(items=make_items(30), verdict=verdict, judges=("one",), gates=0)
    results = read_complete(forge_judged(tmp_path / "eval", forged))
    head, (row,) = comparison_rows(results)
    assert row[head.index("items graded")] == "27 of 30"
    assert results["comparisons"][0]["strict"] == {"wins": 25, "ties": 0, "losses": 0, "not_graded": 5}


def test_grades_of_one_judge_are_not_set_beside_those_of_another() -> None:
    """The strict judge graded every answer of the candidate, and none of the baseline's."""
    items = make_items(30)
    rows = [
        Graded(judge=judge, item=item.id, model=model, turn=0, grade=grade, length=1, problem="" if grade else "lost")
        for item in items
        for judge, model, grade in (
            ("mild", "a", 8.0 - int(item.id) % 2),
            ("mild", "b", 8.0 - int(item.id) % 2),
            ("strict", "a", 1.0),
            ("strict", "b", None),
        )
    ]
    told = capacities(rows, ["a", "b"], items, baseline="b", counted=["mild", "strict"], bootstrap=BOOTSTRAP)["a"]
    assert told["mean_grades"] == [7.5, 7.5]
    assert told["judges"] == ["mild"]


def test_agreement_of_judges_is_over_items_with_all_their_samples() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for item in range(20):
        differ = bool(rng.integers(2))
        for sample in range(10):
            for judge in ("a", "b"):
                said = -1 if differ and judge == "b" else 1
                rows.append(
                    Verdict(
                        judge=judge,
                        item=str(item),
                        candidate="x",
                        baseline="y",
                        first=said,
                        second=said,
                        lengths=(1, 1),
                        sample=sample,
                    )
                )
    (found,) = between(rows, bootstrap=BOOTSTRAP)
    assert (found.pairs, found.agreement.raw.n) == (200, 20)
    assert found.agreement.raw.high - found.agreement.raw.low > 0.3


def test_grades_alone_are_told_as_capacity_and_not_as_comparisons_that_failed(tmp_path: Path) -> None:
    forged = Forged(
        items=make_items(30), judges=("one",), gates=0, grade=lambda model, item: 4.0 + int(item.id) * len(model) % 4
    )
    config, both = forged.config(), read_complete(forge_judged(tmp_path / "eval", forged))
    share = both["capacity"]["evolved"]["item_weighted"]
    assert capacity_rows(both)[1][0][:2] == (
        "evolved",
        f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]",
    )
    graded = replace(config, judges={"one": replace(config.judges["one"], asks="graded")})
    nobody = Judged(verdicts=(), grades=(), calibrations={}, models={"one": "any"})
    assert judged_results(graded, nobody, forged.items, families={})["comparisons"] == []
    (lost,) = judged_results(config, nobody, forged.items, families={})["comparisons"]
    assert lost["win_rate"] == {"none": "no judge that counts graded a pair of them"}


def test_two_models_of_one_label_are_refused(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "eval"
    other = ("models.other=@Local", f"models.other.path={flow.run}", "models.other.label=tiny")
    assert main(flow.eval_command(out, *other)) == 2
    assert "models.tiny and models.other would both be called 'tiny'" in capsys.readouterr().err


def test_a_model_that_is_down_ends_the_evaluation_however_few_its_items(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    down = ("models.tiny=@OpenAICompatible", "models.tiny.model=any", "models.tiny.base_url=http://127.0.0.1:9/v1")
    free = ("models.tiny.price=@Price", "models.tiny.price.input=0", "models.tiny.price.output=0", "max_attempts=1")
    words = [
        word
        for word in flow.eval_command(tmp_path / "eval", *free)
        if not word.startswith(("models.tiny=", "models.tiny.path", "models.tiny.rows"))
    ]
    assert main([*words, *down]) == 2
    assert "every answer of models.tiny was given up: " in capsys.readouterr().err
    assert not (tmp_path / "eval" / "complete.json").exists()


def test_a_judge_that_is_down_ends_the_evaluation_however_few_its_pairs(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    models = ("models.right=@Simulated", "baseline=tiny", "gates.pairs=0", "task.per_band=1", "max_attempts=1")
    down = ("judges.j=@Judge", "judges.j.llm=@OpenAICompatible", "judges.j.llm.model=any")
    at = ("judges.j.llm.base_url=http://127.0.0.1:9/v1", "judges.j.llm.price=@Price")
    free = ("judges.j.llm.price.input=0", "judges.j.llm.price.output=0")
    assert main(flow.eval_command(tmp_path / "eval", *models, *down, *at, *free)) == 2
    assert "every request to judges.j was given up: " in capsys.readouterr().err
    assert not (tmp_path / "eval" / "complete.json").exists()


def test_the_settings_of_an_evaluation_are_shown_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "eval", "configs/eval/simulated.gin"]) == 0
    shown = capsys.readouterr().out
    assert "@SimulatedWorld" in shown
    assert "Reference(" not in shown


def test_a_judge_is_tried_on_all_items_of_a_task_however_few_are_asked(tmp_path: Path) -> None:
    steps = ("<<1+1=2>>2", "<<1+1=2>>2 <<2+1=3>>3", "<<1+1=2>>2 <<2+1=3>>3 <<3+1=4>>4")
    rows = [{"question": f"How many, {n}?", "answer": f"{said}\n#### {n}"} for n, said in enumerate(steps)]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    two = ("models.a=@Simulated", "models.b=@Simulated", "self_judging=True", "limit=1", "gates.pairs=2")
    asked = (f"task.path={file}", f"task.sha256={hashlib.sha256(file.read_bytes()).hexdigest()}")
    words = ["eval", "configs/eval/gsm8k.gin", "--out", str(tmp_path / "eval"), *asked, *two]
    assert main([*words, "judges.one=@Judge", "judges.one.llm=@Simulated"]) == 0
    known = read_complete(tmp_path / "eval")["judges"]["one"]["known"]
    assert [one["asked"] for one in known if "GSM8K" in one["kind"]] == [2]

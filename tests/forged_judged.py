"""Finished evaluations with judges whose verdicts a test chooses: the real rows, figures and files, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.folder import open_stage
from data_gen.config import Simulated
from wizard_jax.evaluate.config import EvalConfig, Gates, Judge, Local, WizardLMTestSet
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.judged_results import GRADES, VERDICTS, judged_results
from wizard_jax.evaluate.judging.calibration import RIGHT, WORLD, WRONG, Calibration
from wizard_jax.evaluate.judging.panel import Judged, pairings
from wizard_jax.evaluate.judging.rows import Graded, Verdict
from wizard_jax.evaluate.results import ANSWERS, answer_rows, model_results

Order = int | None


def make_items(count: int = 60, *, skills: Sequence[str] = ("Math", "Code", "Art")) -> tuple[Item, ...]:
    """Of the skills in turn, in two bands of difficulty."""
    return tuple(
        Item(
            id=str(number),
            turns=(f"Question {number}",),
            skill=skills[number % len(skills)],
            difficulty=float(number % 10 + 1),
            band="1-5" if number % 10 < 5 else "6-10",
        )
        for number in range(count)
    )


def in_both_orders(verdict: Order) -> tuple[Order, Order]:
    return verdict, verdict


@dataclass(frozen=True, kw_only=True)
class Forged:
    """What everybody said. A judge in `failing` takes what is shown first on pairs of known truth; others are right."""

    items: Sequence[Item] = field(default_factory=make_items)
    labels: Mapping[str, str] = field(default_factory=lambda: {"evolved": "", "seeds": ""})
    """Of each model."""
    baseline: str = "seeds"
    judges: Sequence[str] = ("one", "two")
    failing: frozenset[str] = frozenset()
    told_to_count: frozenset[str] = frozenset()
    gates: int = 20
    answer: Callable[[str, Item], str] = lambda model, item: f"{model} says {int(item.id) % (5 + len(model)) * '.'}"
    verdict: Callable[[str, Item, str], tuple[Order, Order]] = lambda judge, item, candidate: (1, 1)  # noqa: ARG005
    reason: Callable[[str, Item], str] = lambda judge, item: f"{judge} on {item.id}"
    grade: Callable[[str, Item], float | None] | None = None
    """Of a model's answer, by every judge; None: graded judging is not asked for."""
    problem: str = "no last line Verdict: 'x' (2 replies)"
    notes: Sequence[str] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    """Of every model beside that."""

    def config(self) -> EvalConfig:
        asks = "pairwise" if self.grade is None else "both"
        return EvalConfig(
            task=WizardLMTestSet(path="test.jsonl"),
            models={name: Local(path=f"runs/{number}", label=label) for number, (name, label) in enumerate(self.named)},
            judges={
                name: Judge(
                    llm=Simulated(), asks=asks, counts="always" if name in self.told_to_count else "if it passes"
                )
                for name in self.judges
            },
            baseline=self.baseline,
            gates=Gates(pairs=self.gates),
        )

    @property
    def named(self) -> list[tuple[str, str]]:
        return list(self.labels.items())


def forge_judged(out: Path, forged: Forged) -> Path:
    """Writes the folder as `wizard eval` does."""
    config, items = forged.config(), forged.items
    answers = {
        name: {
            item.id: (Answer(item=item.id, model=name, texts=(forged.answer(name, item),), finish_reasons=("stop",)),)
            for item in items
        }
        for name in forged.labels
    }
    rows = answer_rows(items, answers, score=None)
    results: dict[str, Any] = {
        "task": {
            "name": "WizardLMTestSet",
            "source": "test.jsonl",
            "sha256": "ab" * 32,
            "items": len(items),
            "notes": list(forged.notes),
        },
        "models": {
            name: {
                "label": label or name,
                "model": f"runs/{name}",
                "notes": [],
                "untraced": "",
                **model_results([row for row in rows if row["model"] == name]),
                **forged.told,
            }
            for name, label in forged.named
        },
        "spent": {"calls": 1234, "input_tokens": 5678, "output_tokens": 910, "usd": 1.25},
        "spent_for": {"judge": {"calls": 234, "input_tokens": 1678, "output_tokens": 10, "usd": 1.125}},
    }
    judged = _judged(forged, config, answers)
    if forged.judges:
        results |= judged_results(config, judged, items, families={})
    with open_stage(out, config, stage="eval") as folder:
        _write(out / ANSWERS, rows)
        if forged.judges:
            _write(out / VERDICTS, [row.to_dict() for row in judged.verdicts])
            _write(out / GRADES, [row.to_dict() for row in judged.grades])
        folder.complete(results)
    return out


def _judged(forged: Forged, config: EvalConfig, answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> Judged:
    lengths = {
        (name, item): len(said[0].texts[0]) for name, by_item in answers.items() for item, said in by_item.items()
    }
    verdicts = []
    for judge in forged.judges:
        for candidate, baseline in pairings(config):
            for item in forged.items:
                first, second = forged.verdict(judge, item, candidate)
                problems = tuple("" if one is not None else forged.problem for one in (first, second))
                verdicts.append(
                    Verdict(
                        judge=judge,
                        item=item.id,
                        candidate=candidate,
                        baseline=baseline,
                        first=first,
                        second=second,
                        lengths=(lengths[candidate, item.id], lengths[baseline, item.id]),
                        skill=item.skill,
                        difficulty=item.difficulty,
                        reasons=(forged.reason(judge, item), forged.reason(judge, item)),
                        problems=problems,  # type: ignore[arg-type]
                    )
                )
    return Judged(
        verdicts=tuple(verdicts),
        grades=tuple(_grades(forged)),
        calibrations={judge: _known_truth(judge, forged) for judge in forged.judges},
        models={judge: f"model of {judge}" for judge in forged.judges},
    )


def _grades(forged: Forged) -> list[Graded]:
    if forged.grade is None:
        return []
    rows = []
    for judge in forged.judges:
        for model in forged.labels:
            for item in forged.items:
                grade = forged.grade(model, item)
                problem = "" if grade is not None else "no grade"
                rows.append(
                    Graded(
                        judge=judge,
                        item=item.id,
                        model=model,
                        turn=0,
                        grade=grade,
                        length=9,
                        skill=item.skill,
                        problem=problem,
                    )
                )
    return rows


def _known_truth(judge: str, forged: Forged) -> Calibration:
    said = (1, -1) if judge in forged.failing else (1, 1)
    return Calibration(
        answers=tuple(
            Verdict(
                judge=judge,
                item=f"known/{number}",
                candidate=RIGHT,
                baseline=WRONG,
                first=said[0],
                second=said[1],
                lengths=((90, 10), (10, 90))[number % 2],
                skill=WORLD,
            )
            for number in range(forged.gates)
        )
    )


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

"""An export for raters, and people who rate it as they are told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.people.export import export_human
from wizard_jax.evaluate.people.key import Key, Line, read_key
from wizard_jax.evaluate.people.questions import Instruction, InstructionPair

MODELS = ("evolved", "plain")


def an_item(number: int) -> Item:
    skill = ("Math", "Law")[number % 2]
    return Item(id=f"item-{number}", turns=(f"Ask {number}?",), skill=skill, difficulty=float(number % 10 + 1))


def an_answer(item: Item, model: str) -> Answer:
    text = f"{'Yes' if model == MODELS[0] else 'No'} to {item.id}"
    return Answer(item=item.id, model=model, texts=(text,), finish_reasons=("stop",))


def instruction_pairs(count: int) -> tuple[InstructionPair, ...]:
    return tuple(
        InstructionPair(
            first=Instruction(id=f"{n}/0", text=f"Count to {n}.", round=0),
            second=Instruction(id=f"{n}/1", text=f"Count to {n} and back.", round=1),
        )
        for n in range(count)
    )


def an_export(folder: Path, *, items: int = 40, raters: int = 3, pairs: int = 0, **settings: Any) -> Key:
    """Written to `folder`: two models on so many items, and so many pairs and single instructions."""
    asked = [an_item(number) for number in range(items)]
    answers = [an_answer(item, model) for model in MODELS for item in asked]
    instructions = instruction_pairs(pairs)
    settings = {"seed": 3, "harder": instructions, "answerable": [one.second for one in instructions]} | settings
    export_human(folder, asked, answers, raters=raters, **settings)
    return read_key(folder)


def attentive(line: Line) -> str:
    """The verdict of someone who reads, finds evolved better and evolution harder, and can answer everything."""
    if line.kind == "attention":
        return line.expected
    if line.form == "answerable":
        return "yes"
    if line.kind == "identical":
        return {"answers": "tie", "harder": "same"}[line.form]
    return "b" if line.exchanged else "a"


def returned(
    key: Key,
    rater: str,
    folder: Path,
    *,
    verdict: Callable[[Line], str] = attentive,
    seconds: float = 10.0,
    lines: Sequence[Line] | None = None,
) -> Path:
    """What the page of a rater who says these verdicts would download."""
    ratings = [
        {
            "id": line.id,
            "verdict": verdict(line),
            "confidence": 2,
            "aspects": {aspect: _grades(line) for aspect in key.aspects} if line.form == "answers" else {},
            "seconds": seconds,
        }
        for line in (key.sheets[rater] if lines is None else lines)
    ]
    folder.mkdir(exist_ok=True)
    file = folder / f"ratings-{rater}.json"
    file.write_text(json.dumps({"format": 1, "export": key.export, "rater": rater, "ratings": ratings}))
    return file


def _grades(line: Line) -> dict[str, int]:
    """4 for evolved and 3 for plain."""
    first, second = (4 if side == MODELS[0] else 3 for side in line.sides)
    return {"a": first, "b": second}

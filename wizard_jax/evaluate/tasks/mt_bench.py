"""MT-Bench: 80 questions of two turns in 8 categories, for judges (arXiv 2306.05685; FastChat, llm_judge).

    {"question_id": 111, "category": "math", "turns": ["The vertices of a triangle ...", "What's the area ..."]}
    {"question_id": 111, "choices": [{"index": 0, "turns": ["The area is 3. ...", "..."]}], ...}    of references

In reasoning, mathematics and coding a judge is shown the right answer to each turn, from a file of references. What
some questions carry in a field `reference` of their own is not shown, as FastChat does not show it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wizard_jax.evaluate.config import MTBench
from wizard_jax.evaluate.items import Item, Items, TaskError
from wizard_jax.evaluate.task_file import Schema, TaskFile, read_task_file

PUBLISHED = "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7"
REFERENCES = "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f"
SCHEMA = Schema(
    required={"question_id": int, "category": str, "turns": list}, optional={"reference": list}, id="question_id"
)
REFERENCE_SCHEMA = Schema(
    required={"question_id": int, "choices": list},
    optional={"answer_id": str, "model_id": str, "tstamp": float},
    id="question_id",
)
WITH_REFERENCES = ("reasoning", "math", "coding")
_TURNS = 2


def read(config: MTBench) -> Items:
    """All questions, in the order of the file.

    Raises TaskError as `read_task_file` does, or: not two turns of text, or references that belong to other questions.
    """
    file = read_task_file(config.path, schema=SCHEMA, published=PUBLISHED, sha256=config.sha256)
    file.refuse({i: "'turns' is not two texts" for i, row in enumerate(file.rows) if not _are_turns(row["turns"])})
    references, notes = _references(config, questions=file)
    items = (
        Item(
            id=str(row["question_id"]),
            turns=tuple(row["turns"]),
            skill=row["category"],
            references=references.get(row["question_id"], ()),
        )
        for row in file.rows
    )
    return Items(items=tuple(items), source=file.source, sha256=file.sha256, notes=(*file.notes, *notes))


def _references(config: MTBench, *, questions: TaskFile) -> tuple[Mapping[int, tuple[str, ...]], tuple[str, ...]]:
    """By question, and what is to be told of them."""
    wanted = {row["question_id"] for row in questions.rows if row["category"] in WITH_REFERENCES}
    if not config.references:
        if config.references_sha256:
            raise TaskError("task.references_sha256 has no effect without task.references: leave it out, or name them")
        return {}, (f"There are no references: judges go without in {', '.join(WITH_REFERENCES)}.",)
    file = read_task_file(
        config.references,
        schema=REFERENCE_SCHEMA,
        published=REFERENCES,
        sha256=config.references_sha256,
        setting="task.references_sha256",
    )
    told = "'choices' is not one answer of two texts"
    file.refuse({i: told for i, row in enumerate(file.rows) if not _is_answer(row["choices"])})
    found = {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in file.rows}
    if odd := wanted.symmetric_difference(found):
        ids = ", ".join(map(str, sorted(odd)))
        raise TaskError(
            f"{config.references} and {config.path} do not go together: question {ids} is in one of them alone. Each "
            f"question of {', '.join(WITH_REFERENCES)} has one reference, and no other"
        )
    return found, file.notes


def _are_turns(turns: Any) -> bool:
    return (
        isinstance(turns, list)
        and len(turns) == _TURNS
        and all(isinstance(turn, str) and bool(turn.strip()) for turn in turns)
    )


def _is_answer(choices: list[Any]) -> bool:
    return len(choices) == 1 and isinstance(choices[0], dict) and _are_turns(choices[0].get("turns"))

"""Vicuna bench: 80 questions in 9 categories, which have no right answer to compare with (FastChat, llm_judge).

{"question_id": 1, "category": "generic", "turns": ["How can I improve my time management skills?"]}
"""

from __future__ import annotations

from wizard_jax.evaluate.config import VicunaBench
from wizard_jax.evaluate.items import Item, Items
from wizard_jax.evaluate.task_file import Schema, read_task_file

PUBLISHED = "c248c5c98ba45bb0c2aadae2f270e643bd32679c6c306a3b2a503ac4254cdaa5"
SCHEMA = Schema(required={"question_id": int, "category": str, "turns": list}, id="question_id")


def read(config: VicunaBench) -> Items:
    """All questions, in the order of the file. Raises TaskError as `read_task_file` does, or: not one turn of text."""
    file = read_task_file(config.path, schema=SCHEMA, published=PUBLISHED, sha256=config.sha256)
    file.refuse(
        {
            index: "'turns' is not one text"
            for index, row in enumerate(file.rows)
            if len(row["turns"]) != 1 or not isinstance(row["turns"][0], str) or not row["turns"][0].strip()
        }
    )
    items = (Item(id=str(row["question_id"]), turns=tuple(row["turns"]), skill=row["category"]) for row in file.rows)
    return Items(items=tuple(items), source=file.source, sha256=file.sha256, notes=file.notes)

"""WizardLM's test set: 218 instructions of 29 skills, with a difficulty from 1 to 10 (arXiv 2304.12244, section 4.3).

    {"idx": 1, "Skill": "Math", "Difficulty": 1, "Instruction": "If a car travels 120 miles in 2 hours, ..."}

There is no right answer to compare with: what models say is for judges. Skills are spelled as they were published
(one is `Writting`), and the difficulty is a label that ChatGPT gave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from wizard_jax.evaluate.config import WizardLMTestSet
from wizard_jax.evaluate.items import Item, Items
from wizard_jax.evaluate.task_file import Schema, read_task_file

PUBLISHED = "e216ec20538a7040b908f654f1f767305460f0a71f01b3db9f3989c8a78f8245"
SCHEMA = Schema(required={"idx": int, "Skill": str, "Difficulty": int, "Instruction": str}, id="idx")
BANDS = {"easy": range(1, 5), "medium": range(5, 8), "hard": range(8, 11)}
"""Of the difficulty; the paper's hard ones are those of 8 and more."""

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        skill: family
        for family, skills in {
            "mathematics and science": "Math|Physics|Chemistry|Biology",
            "code": "Code Generation|Code Debug|Computer Science|Technology",
            "reasoning": "Reasoning|Common-Sense|Counterfactual",
            "writing": "Writting|Academic Writing|Roleplay|Literature|Complex Format|Multilingual",
            "society": "Law|Economy|Ethics|Medicine|History|Philosophy|TruthfulQA|Toxicity",
            "culture": "Art|Music|Entertainment|Sport",
        }.items()
        for skill in skills.split("|")
    }
)
"""No skill of the set has 20 items, so each is spoken of with others of its kind: our grouping, not the paper's."""


def read(config: WizardLMTestSet) -> Items:
    """All instructions, in the order of the file. Raises TaskError as `read_task_file` does, or: no such difficulty."""
    file = read_task_file(config.path, schema=SCHEMA, published=PUBLISHED, sha256=config.sha256)
    told = f"'Difficulty' is not from {BANDS['easy'][0]} to {BANDS['hard'][-1]}"
    file.refuse({index: told for index, row in enumerate(file.rows) if not _band(row["Difficulty"])})
    items = tuple(
        Item(
            id=str(row["idx"]),
            turns=(row["Instruction"],),
            skill=row["Skill"],
            difficulty=float(row["Difficulty"]),
            band=_band(row["Difficulty"]),
        )
        for row in file.rows
    )
    notes = (*file.notes, *_repeated(items))
    return Items(items=items, source=file.source, sha256=file.sha256, notes=notes, families=FAMILIES)


def _band(difficulty: int) -> str:
    return next((name for name, members in BANDS.items() if difficulty in members), "")


def _repeated(items: Sequence[Item]) -> list[str]:
    """A note for every instruction that is there several times, but for space."""
    same: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        same[" ".join(item.turns[0].split())].append(item)
    notes = []
    for copies in same.values():
        if len(copies) > 1:
            ids = " and ".join(item.id for item in copies)
            labels = " and ".join(f"{item.difficulty:g}" for item in copies)
            notes.append(f"Items {ids} are the same instruction, labelled with the difficulty {labels}.")
    return notes

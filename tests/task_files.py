"""Hand-made files of the tasks, as their authors write them, and where the published ones are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parents[2] / "shared" / "data"
"""Where a developer may keep the files; tests of them are skipped where it is not there."""

WIZARDLM = [
    {"idx": 1, "Skill": "Math", "Difficulty": 1, "Instruction": "What is 2 and 2?"},
    {"idx": 2, "Skill": "Law", "Difficulty": 9, "Instruction": "What is theft?"},
    {"idx": 3, "Skill": "Law", "Difficulty": 8, "Instruction": "What is  theft? "},
    {"idx": 4, "Skill": "Writting", "Difficulty": 5, "Instruction": "Write a line."},
]
VICUNA = [
    {"question_id": 1, "category": "generic", "turns": ["How can I sleep?"]},
    {"question_id": 2, "category": "math", "turns": ["What is 3 and 4?"]},
]
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now a shorter one."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 and 2?", "And 3?"], "reference": ["4", "7"]},
]
REFERENCES = [
    {
        "question_id": 111,
        "answer_id": "x",
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["It is 4.", "It is 7."]}],
        "tstamp": 1.5,
    }
]
GSM8K = [
    {"question": "Ann has 2 and buys 3.", "answer": "2+3=<<2+3=5>>5\n#### 5"},
    {
        "question": "Bob earns 3 times 1,000 less 10, halved.",
        "answer": "<<3*1000=3000>>\n<<3000-10=2990>>\n<<2990/2=1495>>\n#### 1,495",
    },
    {"question": "It was 3 and fell by 6.", "answer": "#### -3"},
]
IFEVAL = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Ten words at least, no commas, a title.",
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{"relation": "at least", "num_words": 10, "language": None}, {}, {}],
    },
    {
        "key": 3,
        "prompt": "Two sentences at least.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    },
]


def write_rows(file: Path, rows: Sequence[Any]) -> tuple[str, str]:
    """JSON lines; where they are, and their SHA-256."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file), hashlib.sha256(file.read_bytes()).hexdigest()

"""GSM8K: 1,319 problems of school mathematics, scored by the last number of the answer (arXiv 2110.14168).

    {"question": "Janet's ducks lay 16 eggs per day. ...", "answer": "<<16-3-4=9>>9 ... <<9*2=18>>18 ...\\n#### 18"}

The difficulty is the number of steps, each of which the published answer works out between `<<` and `>>`.
"""

from __future__ import annotations

import re

from wizard_jax.evaluate.config import GSM8K
from wizard_jax.evaluate.items import Answer, Item, Items, Score
from wizard_jax.evaluate.task_file import Schema, read_task_file

PUBLISHED = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
SCHEMA = Schema(required={"question": str, "answer": str})
BANDS = ("up to 2 steps", "3 or 4 steps", "5 steps or more")

_MARK = "####"
_NUMBER = re.compile(
    r"""(?<!\w)(?<![0-9]\.)             # not within a word or another number, as the 3 of x3
        (?P<sign>(?<![)\]])-)?          # a minus that is no subtraction, as in (5)-3
        (?:[$€£](?P<inner>-)?)?         # $-3 as well as -$3
        (?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)? | [0-9]+(?:\.[0-9]+)? | (?<!\.)\.[0-9]+)""",
    re.VERBOSE,
)


def read(config: GSM8K) -> Items:
    """All problems, named by their place in the file. Raises TaskError as `read_task_file` does, or: no `#### N`."""
    file = read_task_file(config.path, schema=SCHEMA, published=PUBLISHED, sha256=config.sha256)
    targets = [last_number(row["answer"].partition(_MARK)[2]) for row in file.rows]
    file.refuse({i: f"'answer' does not end with {_MARK} and a number" for i, found in enumerate(targets) if not found})
    items = []
    for number, row, target in zip(file.numbers, file.rows, targets, strict=True):
        steps = row["answer"].count("<<")
        items.append(
            Item(
                id=str(number),
                turns=(row["question"],),
                skill="mathematics",
                difficulty=float(steps),
                band=BANDS[0 if steps <= 2 else 1 if steps <= 4 else 2],
                references=(row["answer"],),
                target=target,
            )
        )
    return Items(items=tuple(items), source=file.source, sha256=file.sha256, notes=file.notes)


def score(item: Item, answer: Answer) -> Score:
    """Whether the last number of the answer is the target."""
    extracted = last_number(answer.texts[0])
    return Score(values={"exact match": float(extracted == item.target)}, extracted=extracted)


def last_number(text: str) -> str:
    """The last number of a text, or the first behind its last `####`, in one way of writing; '' where there is none.

    >>> last_number("18 - 3 = 15, so 15 * $1,000 is $15,000.00."), last_number("It fell by -3.50\\n#### -3.5 degrees 9")
    ('15000', '-3.5')
    """
    plain = text.replace("\u2212", "-").replace("{,}", ",").replace("\\$", "$")  # a minus sign; LaTeX
    _, mark, behind = plain.rpartition(_MARK)
    if mark and (first := _NUMBER.search(behind)):
        return _plain(first)
    found = list(_NUMBER.finditer(plain))
    return _plain(found[-1]) if found else ""


def _plain(found: re.Match[str]) -> str:
    whole, _, part = found["number"].replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    number = f"{whole}.{part}" if part else whole
    return f"-{number}" if (found["sign"] or found["inner"]) and number != "0" else number

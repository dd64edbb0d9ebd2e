"""What the simulated model does to text that is no task of its world: the shape of each operation, and no more.

A rewrite in depth adds 10 to 20 words, one in breadth takes over a few whole words as its subject, an easier one
takes back what was added, and a paraphrase only asks in another way.
"""

from __future__ import annotations

import json
import random
import re
from types import MappingProxyType

_ADDED = MappingProxyType(
    {
        "add_constraints": (
            "Keep the answer under one hundred words and name at least two sources for it.",
            "Use no word of more than nine letters, and end on a question to the reader.",
            "Write it as a list of exactly five points, the most important of them first.",
        ),
        "deepening": (
            "Explain also why this holds, and what would change if the main assumption were false.",
            "Say besides which exceptions are known, and how each of them came to be found.",
            "Show too what follows from it in the long run, and who would feel that first.",
        ),
        "concretizing": (
            "Take as the concrete case a small bakery in a harbour town during its first winter.",
            "Let the reader be a night nurse who has ten minutes and never heard of it.",
            "Set it in a mountain village of four hundred people on the day of the market.",
        ),
        "increase_reasoning_steps": (
            "Work it out in numbered steps, and check each step against the one before it.",
            "First list what has to be known, then derive each of those from what is given.",
            "Compare two ways to get there step by step, and only then decide for one.",
        ),
        "complicate_input": (
            "Base it on the figures below, and say which one of them changes your answer most:",
            "Take the season and the visitors from the data below, and use each of them at least once:",
        ),
    }
)
_SUBJECT = "Compose a piece on the subject of {topic} for readers who {reader}, with as much detail as before."
_READERS = ("restore old clocks", "keep bees on a roof", "repair harbour cranes", "teach chess to children")
_EASIER = "In one short sentence: "
_ASKING = ("I would like to ask this: ", "Here is what I need: ", "Could you help me with the following? ")

_SUBJECT_OF = re.compile(re.escape(_SUBJECT).replace(r"\{topic\}", "(.+)").replace(r"\{reader\}", ".+"))
_BLOCK = re.compile(r"\n```json\n.*?\n```", re.DOTALL)


def rewritten(text: str, *, operation: str, rng: random.Random, data: str = "valid") -> str:
    """The text in the shape of an operation; with data = "invalid", what complicate_input adds does not parse."""
    match operation:
        case "in_breadth":
            reader = rng.choice([reader for reader in _READERS if reader not in text])
            return _SUBJECT.format(topic=_topic(text), reader=reader)
        case "downward":
            return _easier(text)
        case "paraphrase":
            return rng.choice([asking for asking in _ASKING if not text.startswith(asking)]) + plainly(text)
        case "complicate_input":
            values = {"season": rng.choice(("winter", "summer")), "visitors": rng.sample(range(100), 3)}
            block = json.dumps(values)
            return (
                f"{text}\n{_sentence(text, operation, rng)}\n```json\n{block[:-1] if data == 'invalid' else block}\n```"
            )
        case _:
            return f"{text}\n{_sentence(text, operation, rng)}"


def plainly(text: str) -> str:
    """The text without the politeness of a paraphrase."""
    asking = next((asking for asking in _ASKING if text.startswith(asking)), "")
    return text.removeprefix(asking)


def _sentence(text: str, operation: str, rng: random.Random) -> str:
    """One that the text does not hold, while there is one."""
    sentences = _ADDED[operation]
    return rng.choice([sentence for sentence in sentences if sentence not in text] or sentences)


def _topic(text: str) -> str:
    """The subject that the text has from us, or its three longest words; no word is ever cut."""
    if matched := _SUBJECT_OF.search(text):
        return matched[1]
    words = list(dict.fromkeys(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", _without_additions(plainly(text)))))
    longest = sorted(sorted(words, key=len, reverse=True)[:3], key=words.index)
    return " and ".join(longest) or "this"


def _easier(text: str) -> str:
    """Without what was added last; where nothing was added, in one sentence."""
    lines = [sentence for sentences in _ADDED.values() for sentence in sentences if f"\n{sentence}" in text]
    if lines:
        last = max(lines, key=text.rfind)
        before, _, after = text.rpartition(f"\n{last}")
        return before + _BLOCK.sub("", after, count=1)
    return text if text.startswith(_EASIER) else f"{_EASIER}{text}"


def _without_additions(text: str) -> str:
    while (less := _easier(text)) and len(less) < len(text):
        text = less
    return text.removeprefix(_EASIER)

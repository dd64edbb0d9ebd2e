"""What is asked of a model, and how the reply is read: operations, rule 1's judge, and styles of answers.

    OPERATIONS["deepening"].prompt("Name a prime.")  -> the rewriting prompt
    recognise(that prompt)                           -> Recognised("operation", "deepening", "Name a prime.")

The wording is in `prompts/*.txt`. The six published operations and their properties: WizardLM (arXiv 2304.12244),
section 3; `downward` after WizardMath (arXiv 2308.09583), section 2; `paraphrase` is a control of our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from data_gen import framing

Kind = Literal["depth", "breadth", "down", "same"]


@dataclass(frozen=True)
class Operation:
    """One way to rewrite an instruction.

    "depth" makes it harder, "breadth" makes a new one like it, "down" makes an easier one, and "same" asks for the
    same in other words. Of the last the judge must say Equal, of all others Not Equal (`eliminate.py`).
    """

    name: str
    kind: Kind

    @property
    def judged_by(self) -> Literal["no_gain", "changed_meaning"]:
        """The rule that the judge's verdict on a rewrite is for."""
        return "changed_meaning" if self.kind == "same" else "no_gain"

    @property
    def template(self) -> str:
        return framing.template(self.name)

    def prompt(self, instruction: str) -> str:
        """What the model is asked, so that it rewrites `instruction`, which no text of its own can leave its frame."""
        return framing.framed(self.template, instruction=instruction)

    def parse(self, reply: str) -> str:
        """The rewritten instruction in a reply; empty where there is none.

        Strips what models put around it against the prompt's wish: thoughts, a label, quotation marks, a code fence.
        """
        before, text = None, reply.strip()
        while text != before:
            before, text = text, _unwrapped(framing.without_thoughts(text))
        return text if re.search(r"\w", text) else ""


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "add_constraints": Operation("add_constraints", "depth"),
        "deepening": Operation("deepening", "depth"),
        "concretizing": Operation("concretizing", "depth"),
        "increase_reasoning_steps": Operation("increase_reasoning_steps", "depth"),
        "complicate_input": Operation("complicate_input", "depth"),
        "in_breadth": Operation("in_breadth", "breadth"),
        "downward": Operation("downward", "down"),
        "paraphrase": Operation("paraphrase", "same"),
    }
)

PUBLISHED = tuple(OPERATIONS)[:6]
"""The operations of the paper, in its order; a choice among them with equal probability is the published setting."""

AnswerStyle = Literal["plain", "brief", "detailed", "length"]
ANSWER_STYLES: tuple[AnswerStyle, ...] = get_args(AnswerStyle)


def equal_prompt(first: str, second: str) -> str:
    """Asks whether two instructions ask for the same (rule 1); the reply is 'Equal' or 'Not Equal'."""
    return framing.framed(framing.template("equal"), first=first, second=second)


def answer_prompt(style: AnswerStyle, instruction: str, *, words: int = 0) -> str:
    """Asks for an answer in a style: "plain" is the instruction alone, "length" asks for about so many words.

    Raises:
      ValueError: words for another style than "length", or none for that one.
    """
    if (style == "length") != (words > 0):
        raise ValueError(
            f"style {style!r} with words = {words}: 'length' needs a number above 0, and no other takes one"
        )
    return framing.framed(framing.template(f"answer_{style}"), instruction=instruction, words=str(words))


@dataclass(frozen=True)
class Recognised:
    """What a prompt asks: an operation on `instruction`, whether it and `other` are equal, or an answer in a style."""

    kind: Literal["operation", "equal", "answer"]
    name: str
    instruction: str
    other: str = ""
    words: int = 0


def recognise(prompt: str) -> Recognised | None:
    """Exact inverse of `Operation.prompt`, `equal_prompt` and `answer_prompt`; None for any other text.

    A plain answer is asked for by the instruction alone, so it is any other text.
    """
    for name, operation in OPERATIONS.items():
        if texts := framing.unframed(operation.template, prompt):
            return Recognised("operation", name, texts["instruction"])
    if texts := framing.unframed(framing.template("equal"), prompt):
        return Recognised("equal", "equal", texts["first"], texts["second"])
    for style in ANSWER_STYLES[1:]:
        if texts := framing.unframed(framing.template(f"answer_{style}"), prompt):
            words = texts.get("words", "0")
            if words.isascii() and words.isdecimal() and (style == "length") == (words[0] != "0"):
                return Recognised("answer", style, texts["instruction"], words=int(words))
    return None


_LABEL = re.compile(
    r"""(?: (?:sure|certainly|of\ course|absolutely|okay|ok) [!.,]* \s+ )?
        (?: (?: here(?:\ is|'s|’s|\ you\ go) [^\n:]{0,60}
                (?:instruction|prompt|task|(?:rewritten|reworded|harder|easier|simpler)\ version)
            |   [#*\[\s]* (?:rewritten|reworded|harder|easier|simpler|fresh|new|created|evolved) [ ]
                (?:instruction|prompt|task|version) [\]#*\s]*
            ) : [*\s]*
        |   [#*\s]* \[? (?:harder|easier|fresh|reworded) [ ] instruction \]? [*]* \s* \n
        )
    |   (?:sure|certainly|of\ course|absolutely) [!.]+ [ ]* \n\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_FENCE = re.compile(r"(?P<ticks>`{3,})(?:text|txt|markdown|md|plaintext)?[ ]*\n(?P<body>.*)\n(?P=ticks)", re.DOTALL)
_FRAME = re.compile(r"(?P<fence>={5,})[ ]*\n(?P<body>.*)\n(?P=fence)", re.DOTALL)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"))


def _unwrapped(text: str) -> str:
    """The text without one layer around it: a label before it, or a fence, frame or quotes around the whole of it."""
    if label := _LABEL.match(text):
        return text[label.end() :].strip()
    fenced = _FENCE.fullmatch(text)
    if fenced and fenced["ticks"] not in fenced["body"]:
        return fenced["body"].strip()
    framed = _FRAME.fullmatch(text)
    if framed and framed["fence"] not in framed["body"]:
        return framed["body"].strip()
    for opening, closing in _QUOTES:
        inside = text[1:-1]
        if len(text) >= 2 and text[0] == opening and text[-1] == closing:
            return text if opening in inside or closing in inside else inside.strip()
    return text

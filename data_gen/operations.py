"""The six operations of Evol-Instruct and rule 1's judge: what is asked, and how the reply is read.

    OPERATIONS["deepening"].prompt("Name a prime.")  -> the rewriting prompt
    recognise(that prompt)                           -> Recognised("operation", "deepening", "Name a prime.")

The wording is in `prompts/*.txt`, one file per operation with one slot, {instruction}. Operations and their
properties: WizardLM (arXiv 2304.12244), section 3.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PROMPTS = importlib.resources.files("data_gen") / "prompts"


@dataclass(frozen=True)
class Operation:
    """One way to rewrite an instruction: "depth" makes it harder, "breadth" makes a new one like it."""

    name: str
    kind: Literal["depth", "breadth"]

    @property
    def template(self) -> str:
        return _template(self.name)

    def prompt(self, instruction: str) -> str:
        """What the model is asked, so that it rewrites `instruction`."""
        return _fill(self.template, {"instruction": instruction})

    def parse(self, reply: str) -> str:
        """The rewritten instruction in a reply; empty where there is none.

        Strips what models put around it against the prompt's wish: a label, quotation marks, a code fence.
        """
        before, text = None, reply.strip()
        while text != before:
            before, text = text, _unwrapped(text)
        return text if re.search(r"\w", text) else ""


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "add_constraints": Operation("add_constraints", "depth"),
        "deepening": Operation("deepening", "depth"),
        "concretizing": Operation("concretizing", "depth"),
        "increase_reasoning_steps": Operation("increase_reasoning_steps", "depth"),
        "complicate_input": Operation("complicate_input", "depth"),
        "in_breadth": Operation("in_breadth", "breadth"),
    }
)


def equal_prompt(first: str, second: str) -> str:
    """Asks whether two instructions ask for the same (rule 1); the reply is 'Equal' or 'Not Equal'.

    The line of '=' around each text is longer than any in them, so that no text can end its own frame.
    """
    longest = max((len(run) for run in re.findall("=+", f"{first}\n{second}")), default=0)
    return _fill(_template("equal"), {"first": first, "second": second, "fence": "=" * max(5, longest + 1)})


@dataclass(frozen=True)
class Recognised:
    """What a prompt asks: an operation on `instruction`, or whether `instruction` and `other` are equal."""

    kind: Literal["operation", "equal"]
    name: str
    instruction: str
    other: str = ""


def recognise(prompt: str) -> Recognised | None:
    """Exact inverse of `Operation.prompt` and `equal_prompt`; None for any other text."""
    for name in OPERATIONS:
        before, after = _template(name).split("{instruction}")
        if prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after):
            return Recognised("operation", name, prompt[len(before) : len(prompt) - len(after)])
    if matched := _equal_pattern().fullmatch(prompt):
        return Recognised("equal", "equal", matched["first"], matched["second"])
    return None


@functools.cache
def _template(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


def _fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with its slots replaced in one pass: braces in the texts stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda slot: texts.get(slot[1], slot[0]), template)


@functools.cache
def _equal_pattern() -> re.Pattern[str]:
    fences = iter([r"(?P<fence>=+)", r"(?P=fence)", r"(?P=fence)", r"(?P=fence)"])
    pattern = re.escape(_template("equal"))
    pattern = re.sub(r"\\\{(first|second)\\\}", r"(?P<\1>.*)", pattern)
    return re.compile(re.sub(r"\\\{fence\\\}", lambda _: next(fences), pattern), re.DOTALL)


_LABEL = re.compile(
    r"""(?: here(?:\ is|'s|’s)\ [^\n:]{0,60} (?:instruction|prompt|task)
        |   [#*\[\s]* (?:rewritten|harder|fresh|new|created|evolved) [ ] (?:instruction|prompt|task) [\]#*\s]*
        ) : [*\s]*
    |   \[ (?:harder|fresh) [ ] instruction \] \s* \n""",
    re.VERBOSE | re.IGNORECASE,
)
_FENCE = re.compile(r"(?P<ticks>`{3,})(?:text|txt|markdown|md|plaintext)?[ ]*\n(?P<body>.*)\n(?P=ticks)", re.DOTALL)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"))


def _unwrapped(text: str) -> str:
    """The text without one layer around it: a label before it, or a fence or quotes around the whole of it."""
    if label := _LABEL.match(text):
        return text[label.end() :].strip()
    fenced = _FENCE.fullmatch(text)
    if fenced and fenced["ticks"] not in fenced["body"]:
        return fenced["body"].strip()
    for opening, closing in _QUOTES:
        inside = text[1:-1]
        if len(text) >= 2 and text[0] == opening and text[-1] == closing:
            return text if opening in inside or closing in inside else inside.strip()
    return text

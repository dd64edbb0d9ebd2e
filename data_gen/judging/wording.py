"""What a judge is asked, both ways: which of two answers is better, a grade for one, which instruction is harder.

    asked = Comparison(turns=("2 + 2?",), first=("4",), second=("5",))
    prompt(asked)             -> the wording of prompts/pairwise.txt around question and answers
    marker(asked)             -> "Verdict": the line that the judge ends on is "Verdict: A"
    recognise(prompt(asked))  -> asked

Answers are data. None can end its own frame (`framing.titled`), and none can hold the verdict: the word that a verdict
stands behind is one that no text in the prompt holds, with a number where that is needed ("Verdict 2: A").
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from data_gen.framing import framed, template, titled, untitled

MARKDOWN = str.maketrans("", "", "*_`#")
"""What judges put around words without a meaning; it is overlooked."""

TURNS, REFERENCE = "_turns", "_reference"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which of two answers is better; of several turns, which assistant was over all of them.

    Raises:
      ValueError: no turn, or not one answer (and one reference, if there are any) for each.
    """

    turns: tuple[str, ...]
    first: tuple[str, ...]
    """The answers that are shown as A's, one for each turn."""
    second: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A right answer to each turn, or none at all."""

    def __post_init__(self) -> None:
        _check_turns(self.turns, self.references, self.first, self.second)

    @property
    def kind(self) -> str:
        return "pairwise" + _variant(self.turns, self.references)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        return _columns(self.turns, self.references) | {"answer A": self.first, "answer B": self.second}


@dataclass(frozen=True, kw_only=True)
class Grading:
    """A grade from 1 to 10 for the answer in the last turn.

    Raises:
      ValueError: no turn, or not one answer (and one reference, if there are any) for each.
    """

    turns: tuple[str, ...]
    answers: tuple[str, ...]
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_turns(self.turns, self.references, self.answers)

    @property
    def kind(self) -> str:
        return "graded" + _variant(self.turns, self.references)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        return _columns(self.turns, self.references) | {"answer": self.answers}


@dataclass(frozen=True, kw_only=True)
class Harder:
    """Which of two instructions is harder."""

    first: str
    second: str
    kind = "harder"

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"instruction A": (self.first,), "instruction B": (self.second,)}


Question = Comparison | Grading | Harder

KINDS = (
    "pairwise",
    "pairwise_reference",
    "pairwise_turns",
    "pairwise_turns_reference",
    "graded",
    "graded_reference",
    "graded_turns",
    "graded_turns_reference",
    "harder",
)
"""One wording each: `prompts/<kind>.txt`."""


def prompt(question: Question) -> str:
    """What the judge is asked."""
    return framed(_wording(question.kind), material=titled(_sections(question)), marker=marker(question))


def marker(question: Question) -> str:
    """What the line of the verdict begins with: a word that stands in none of the texts, in any case or markdown."""
    word = "Grade" if isinstance(question, Grading) else "Verdict"
    held = [plainly(text) for column in question.columns.values() for text in column]
    words = itertools.chain([word], (f"{word} {number}" for number in itertools.count(2)))
    return next(word for word in words if not any(word.lower() in text for text in held))


def plainly(text: str) -> str:
    """The text as far as a marker could be read in it: in lower case, with single spaces, without markdown."""
    return " ".join(text.translate(MARKDOWN).split()).lower()


def examples() -> tuple[Question, ...]:
    """A question of each kind, with nothing in it."""
    every: list[Question] = []
    for turns in (("",), ("", "")):
        for references in ((), turns):
            every.append(Comparison(turns=turns, first=turns, second=turns, references=references))
            every.append(Grading(turns=turns, answers=turns, references=references))
    return (*every, Harder(first="", second=""))


def recognise(text: str) -> Question | None:
    """Exact inverse of `prompt`; None for any other text."""
    for kind in KINDS:
        head, _, _ = _wording(kind).partition("{material}")
        if not text.startswith(head):
            continue
        rest = text[len(head) :]
        opening = re.match(r"[^=\n]+\n(=+)\n", rest)
        end = rest.rfind(f"\n{opening[1]}\n") if opening else -1  # what stands behind the material holds no fence
        sections = untitled(rest[: end + 1 + len(opening[1])]) if opening and end > 0 else None
        question = _question(kind, [text for _, text in sections]) if sections else None
        if question is not None and prompt(question) == text:
            return question
    return None


@functools.cache
def version() -> str:
    """What tells these prompts from others: `hashed` of each, as it is put together around nothing."""
    return hashed(prompt(example) for example in examples())


def hashed(prompts: Iterable[str]) -> str:
    """The first 12 digits of the SHA-256 (hex) over prompts."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:12]


def _wording(kind: str) -> str:
    return template(kind, package="data_gen.judging")


def _variant(turns: tuple[str, ...], references: tuple[str, ...]) -> str:
    return (TURNS if len(turns) > 1 else "") + (REFERENCE if references else "")


def _columns(turns: tuple[str, ...], references: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"question": turns} | ({"reference answer": references} if references else {})


def _check_turns(turns: tuple[str, ...], references: tuple[str, ...], *answers: tuple[str, ...]) -> None:
    if not turns:
        raise ValueError("there is no turn to judge an answer to")
    if {len(said) for said in answers} != {len(turns)} or len(references) not in (0, len(turns)):
        told = " and ".join(str(len(said)) for said in answers)
        raise ValueError(f"{len(turns)} turns with {told} answers and {len(references)} references: give one for each")


def _sections(question: Question) -> Iterable[tuple[str, str]]:
    """Turn by turn; titles number the turns where there are several."""
    columns = question.columns
    several = len(next(iter(columns.values()))) > 1
    for turn, texts in enumerate(zip(*columns.values(), strict=True), start=1):
        for name, text in zip(columns, texts, strict=True):
            yield (f"Turn {turn}: {name}" if several else name[0].upper() + name[1:]), text


def _question(kind: str, texts: list[str]) -> Question | None:
    """The question of a kind whose sections hold these texts; titles are the caller's to check."""
    if kind == Harder.kind:
        return Harder(first=texts[0], second=texts[1]) if len(texts) == 2 else None
    pairwise, reference = kind.startswith("pairwise"), kind.endswith(REFERENCE)
    stride = 2 + pairwise + reference
    if len(texts) % stride:
        return None
    turns, *rest = (tuple(texts[start::stride]) for start in range(stride))
    references = rest.pop(0) if reference else ()
    if pairwise:
        return Comparison(turns=turns, first=rest[0], second=rest[1], references=references)
    return Grading(turns=turns, answers=rest[0], references=references)

"""The elimination rules, as pure functions: a `Reason` drops the candidate, None lets it pass.

Rules 1 to 4: WizardLM (arXiv 2304.12244), section 3.2. Where the paper is silent, the words below say what was
decided. Whether the input that was added parses is in `input_formats.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_gen import framing
from data_gen.operations import OPERATIONS
from data_gen.records import Rule


class Reason(NamedTuple):
    """The rule that drops a candidate, and what the rule saw."""

    rule: Rule
    evidence: str


REFUSAL_WORDS = 80
"""Rule 2: an answer with as many words as this may say sorry."""

PROMPT_PHRASES = (
    "given prompt",
    "rewritten prompt",
    "created prompt",
    "given instruction",
    "rewritten instruction",
    "starting instruction",
    "harder instruction",
    "easier instruction",
    "reworded instruction",
    "fresh instruction",
    "brand-new instruction",
    "way to do it:",
)
"""Rule 4: the published phrases and the labels of our own prompts; an instruction seldom holds them."""

COPIED_WORDS = 8
"""Rule 4: so many words in a row from a rewriting prompt, its demonstrations included, are no coincidence."""

STOP_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being both but by can could did do
    does doing down during each few for from further had has have having he her here hers him his how i if in into
    is it its itself just me more most my nor of off on once only or other our ours out over own same she should so
    some such than that the their theirs them then there these they this those through to too under until up very
    was we were what when where which while who whom why will with would you your yours
    """.split()
)
"""Rule 3. 'yes', 'no' and 'not' are absent: alone they answer a question."""


_REFUSAL_OPENING = re.compile(
    r"""\W*(?: i(?:\ am|['’]m)(?:\ so|\ very)?\ sorry
          | sorry,\ (?:but\ )?i\b
          | i\ (?:can(?:\ ?not|['’]t)|am\ unable\ to|am\ not\ able\ to|won['’]t)
            \ (?:help|assist|comply|fulfil|rewrite|do\ (?:this|that)) )""",
    re.VERBOSE | re.IGNORECASE,
)

_VERDICT_OPENING = re.compile(r"\W*(?:not[\s-]*equal\b|(?P<equal>equal)(?=\s*(?:$|[^\w\s]|\n)))", re.IGNORECASE)
_NOT_EQUAL = re.compile(r"(?:\bnot|n['’]t)(?:\s+\w+)?[\s-]+equal\b", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|neither|hardly)\b|n['’]t\b", re.IGNORECASE)


def identical(candidate: str, *, parent: str) -> Reason | None:
    """Rule 1 without a judge: the same words in the same order, whatever the case and the spaces."""
    if candidate.casefold().split() == parent.casefold().split():
        return Reason("no_gain", "the rewritten instruction is the one before, word for word")
    return None


def no_gain(verdict: str) -> Reason | None:
    """Rule 1 with the judge's reply; a verdict that can not be read drops the candidate under its own rule.

    What a reply begins with is its verdict; else a sentence counts if it says one of the two and not the other.
    """
    match _is_equal(verdict):
        case None:
            return _unreadable(verdict)
        case True:
            return Reason("no_gain", "the judge found it equal to the instruction before")
        case False:
            return None


def changed_meaning(verdict: str) -> Reason | None:
    """What rule 1 is for an operation that must ask for the same (`Operation.kind` "same"): it needs Equal."""
    match _is_equal(verdict):
        case None:
            return _unreadable(verdict)
        case True:
            return None
        case False:
            return Reason("changed_meaning", "the judge found it not equal to the instruction before")


def _is_equal(verdict: str) -> bool | None:
    """What the judge says; None where it says neither or both."""
    said = framing.without_thoughts(verdict).replace("_", " ")
    opening = _VERDICT_OPENING.match(said)
    if opening is not None:
        return opening["equal"] is not None
    rest, denials = _NOT_EQUAL.subn("", said)
    is_equal = re.search(r"\bequal\b", rest, re.IGNORECASE) is not None
    if is_equal == bool(denials) or (is_equal and _DENIAL.search(rest)):
        return None
    return is_equal


def _unreadable(verdict: str) -> Reason:
    return Reason("unreadable_reply", f"the judge said neither Equal nor Not Equal: {framing.quoted(verdict)}")


def refusal(answer: str) -> Reason | None:
    """Rule 2: the answer says sorry in fewer than 80 words."""
    words = len(answer.split())
    if words < REFUSAL_WORDS and re.search(r"\bsorry\b", answer, re.IGNORECASE):
        return Reason("refusal", f"says sorry in {words} words: {framing.quoted(answer)}")
    return None


def refused_rewrite(candidate: str, *, parent: str) -> Reason | None:
    """Rule 2 for the rewrite itself: it begins as a refusal does, and the instruction before did not.

    An instruction may well speak of being sorry, so only the beginning counts.
    """
    if _REFUSAL_OPENING.match(candidate) and not _REFUSAL_OPENING.match(parent):
        return Reason("refusal", f"the rewrite is a refusal: {framing.quoted(candidate)}")
    return None


def empty_answer(answer: str) -> Reason | None:
    """Rule 3: the answer holds only punctuation and stop words. A single letter may be the choice asked for."""
    words = re.findall(r"\w+", answer.casefold())
    if len(words) == 1 and len(words[0]) == 1:
        return None
    if all(word in STOP_WORDS for word in words):
        held = "only punctuation and stop words" if words else "no words"
        return Reason("empty_answer", f"holds {held}: {framing.quoted(answer)}")
    return None


def copied_prompt(candidate: str, *, parent: str) -> Reason | None:
    """Rule 4: the rewritten instruction copies what is in the rewriting prompt and was not in the one before.

    That is a phrase more often than it was there, `COPIED_WORDS` words in a row, or a line of '=' like those that
    framed the parent, unless it stands alone in the middle and beside no label, where it underlines a heading.
    """
    new, old = (" ".join(text.casefold().split()) for text in (candidate, parent))
    for phrase in PROMPT_PHRASES:
        if new.count(phrase) > old.count(phrase):
            return Reason("copied_prompt", f"copies {phrase!r} from the rewriting prompt")
    lines = [line for line in map(str.strip, candidate.split("\n")) if line]
    fence = framing.fence((parent,))
    at = [index for index, line in enumerate(lines) if line.startswith(fence) and not line.strip("=")]
    beside_label = any("[" in (lines[index - 1][0], lines[(index + 1) % len(lines)][0]) for index in at)
    if len(at) > 1 or beside_label or not {0, len(lines) - 1}.isdisjoint(at):
        return Reason(
            "copied_prompt", f"copies {framing.quoted(fence)} that framed the one before in the rewriting prompt"
        )
    known = set(_runs(old))
    for run in _runs(new):
        if run in _prompt_runs() and run not in known:
            return Reason("copied_prompt", f"copies {' '.join(run)!r} from the rewriting prompt")
    return None


def word_count(added: int, *, least: int = 10, most: int = 20) -> Reason | None:
    """The published size of an in-depth step: `added` words more than the instruction before had."""
    if least <= added <= most:
        return None
    return Reason("word_count", f"{abs(added)} words {'more' if added >= 0 else 'fewer'}, not {least} to {most} more")


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every `COPIED_WORDS` words in a row; punctuation does not count."""
    words = re.findall(r"\w+", text)
    return zip(*(words[start:] for start in range(COPIED_WORDS)), strict=False)


@functools.cache
def _prompt_runs() -> frozenset[tuple[str, ...]]:
    templates = [operation.template.casefold() for operation in OPERATIONS.values()]
    return frozenset(run for text in templates for piece in re.split(r"\{\w+\}", text) for run in _runs(piece))

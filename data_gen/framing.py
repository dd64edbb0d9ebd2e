"""Wordings from `prompts/*.txt` with texts put in between lines of '=' that no text can imitate, and the way back.

wording = "Is this hard?\\n{fence}\\n{instruction}\\n{fence}"
prompt = framed(wording, instruction="a == b?")   -> each {fence} is "====="
unframed(wording, prompt)                         -> {"instruction": "a == b?"}
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterable

LEAST_FENCE = 5
"""As many '=' as a fence has around texts that hold none."""


@functools.cache
def template(name: str, *, package: str = "data_gen") -> str:
    """The wording in `prompts/<name>.txt` of a package."""
    prompts = importlib.resources.files(package) / "prompts"
    return (prompts / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


def fence(texts: Iterable[str]) -> str:
    """A line of '=' that is longer than any in the texts, so that none of them can end its own frame."""
    longest = max((len(run) for text in texts for run in re.findall("=+", text)), default=0)
    return "=" * max(LEAST_FENCE, longest + 1)


def framed(wording: str, **texts: str) -> str:
    """The wording with its slots filled in one pass: braces in the texts stay what they are."""
    slots = {"fence": fence(texts.values()), **texts}
    return re.sub(r"\{(\w+)\}", lambda slot: slots.get(slot[1], slot[0]), wording)


_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)


def without_thoughts(reply: str) -> str:
    """A reply without the thoughts before it (<think>...</think>), which some servers of open models leave in."""
    thoughts = _THOUGHTS.match(reply)
    return reply[thoughts.end() :] if thoughts else reply


def quoted(reply: str) -> str:
    """A reply on one line, cut at 80 characters, for a message."""
    shown = " ".join(reply.split())
    return repr(shown if len(shown) <= 80 else f"{shown[:77]}...")


def titled(sections: Iterable[tuple[str, str]]) -> str:
    """Titles with a text each between fences: "Question\\n=====\\nText\\n=====" and so on; no title holds a '='."""
    sections = tuple(sections)
    line = fence(text for _, text in sections)
    return "\n\n".join(f"{title}\n{line}\n{text}\n{line}" for title, text in sections)


def untitled(block: str) -> tuple[tuple[str, str], ...] | None:
    """Exact inverse of `titled`; None for any other text."""
    opening = re.match(r"[^=\n]*\n(=+)\n", block)
    if opening is None:
        return None
    # No text holds so long a run of '=', so every line of them is a fence: title, text, title, text, ...
    pieces = re.split(rf"(?<=\n){opening[1]}(?=\n|\Z)", block)
    sections = tuple((title.strip("\n"), text[1:-1]) for title, text in zip(pieces[0::2], pieces[1::2], strict=False))
    return sections if titled(sections) == block else None


def numbered(texts: Iterable[str]) -> str:
    """Texts one after another, each under its number: `titled` by "[1]", "[2]" and so on."""
    return titled((f"[{number}]", text) for number, text in enumerate(texts, start=1))


def unnumbered(block: str) -> tuple[str, ...] | None:
    """Exact inverse of `numbered`; None for any other text."""
    sections = untitled(block)
    texts = tuple(text for _, text in sections) if sections else None
    return texts if texts and numbered(texts) == block else None


def unframed(wording: str, prompt: str) -> dict[str, str] | None:
    """Exact inverse of `framed`: the texts by slot; None for a prompt that `framed` did not make of this wording."""
    before, after = _edges(wording)
    if not (prompt.startswith(before) and prompt.endswith(after)):  # most prompts are of another wording
        return None
    matched = _pattern(wording).fullmatch(prompt)
    if matched is None:
        return None
    texts = {slot: text for slot, text in matched.groupdict().items() if slot != "fence"}
    return texts if framed(wording, **texts) == prompt else None


@functools.cache
def _edges(wording: str) -> tuple[str, str]:
    before, *_, after = re.split(r"\{\w+\}", wording)
    return before, after


@functools.cache
def _pattern(wording: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def group(slot: re.Match[str]) -> str:
        name = slot[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return r"(?P<fence>=+)" if name == "fence" else f"(?P<{name}>.*)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(wording)), re.DOTALL)

"""Prompts that show texts between lines of '=' which no text can imitate, and the way back from such a prompt.

template = "Is this hard?\n{fence}\n{instruction}\n{fence}"
prompt = framed(template, instruction="a == b?")   -> the fence is "====="
unframed(template, prompt)                         -> {"instruction": "a == b?"}
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from data_gen.operations import PROMPTS

_LEAST = 5  # as many '=' as a fence has where no text holds any


@functools.cache
def template(name: str) -> str:
    """The wording in `prompts/<name>.txt`."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


def framed(wording: str, **texts: str) -> str:
    """The wording with its slots filled. {fence} becomes a line of '=' that is longer than any in the texts."""
    slots = {"fence": _fence(tuple(texts.values())), **texts}
    return re.sub(r"\{(\w+)\}", lambda slot: slots.get(slot[1], slot[0]), wording)


def unframed(wording: str, prompt: str) -> dict[str, str] | None:
    """Exact inverse of `framed`: the texts by slot; None for a prompt that `framed` did not make of this wording."""
    matched = _pattern(wording).fullmatch(prompt)
    if matched is None:
        return None
    texts = {slot: text for slot, text in matched.groupdict().items() if slot != "fence"}
    return texts if framed(wording, **texts) == prompt else None


def numbered(texts: Sequence[str]) -> str:
    """Texts one after another, each under its number and between fences: "[1]\\n=====\\nText\\n=====" and so on."""
    fence = _fence(texts)
    return "\n\n".join(f"[{number}]\n{fence}\n{text}\n{fence}" for number, text in enumerate(texts, start=1))


def unnumbered(block: str) -> tuple[str, ...] | None:
    """Exact inverse of `numbered`; None for any other text."""
    opening = re.match(r"\[1\]\n(=+)\n", block)
    if opening is None:
        return None
    # No text holds so long a run of '=', so every line of them is a fence: text, what stands between, text, ...
    pieces = re.split(rf"(?<=\n){opening[1]}(?=\n|\Z)", block)
    texts = tuple(piece[1:-1] for piece in pieces[1::2])
    return texts if numbered(texts) == block else None


def _fence(texts: Sequence[str]) -> str:
    longest = max((len(run) for text in texts for run in re.findall("=+", text)), default=0)
    return "=" * max(_LEAST, longest + 1)


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

"""Answers without what gives their author away: marks of formatting, and names of models."""

from __future__ import annotations

import re

from data_gen.framing import without_thoughts

_FENCED = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$\n?", re.MULTILINE)
_BULLET = re.compile(r"^([ \t]*)[*+\u2022\u2023\u25cf\u25e6\u2013][ \t]+", re.MULTILINE)
# Stars next to a letter or digit on their outer side are a power or a pointer.
_STRONG = re.compile(r"(?<![\w*])(\*\*\*|\*\*)(?=[^\s*])([^\n]*?[^\s*])\1(?![\w*])")
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w*])")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")
_TYPOGRAPHIC = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " ", "\u202f": " ", "\u2026": "..."}
)
# What joins or colours emoji goes with them alone: scripts of India need the joiner between letters.
_PICTURES = re.compile(
    "[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff](?:[\ufe0f\u200d\U0001f3fb-\U0001f3ff\U0001f000-\U0001faff])*"
)

_NAMES = re.compile(
    r"\b(?:ChatGPT|GPT-?[345](?:[.-]?\w+)*|OpenAI|Anthropic|DeepMind|Google Bard|WizardLM|WizardCoder|Vicuna-?\d+B"
    r"|DeepSeek(?:-\w+)*|Qwen(?:[\d.]|-\w)*|Mistral AI|Mixtral|LLaMA(?:-?\d)?|Llama[ -]\d(?:\.\d)?)\b"
)
_NAMELESS = "[a name]"


def plain(text: str) -> str:
    """An answer without thoughts, headings, emphasis, rules, kinds of bullets, quotation marks, emoji and runs of blank
    lines; what stands between ``` lines is code, and stays as it is."""
    parts = _FENCED.split(without_thoughts(text).replace("\r\n", "\n"))
    return _BLANK_LINES.sub("\n\n", "".join(map(_part, parts))).strip()


def _part(text: str) -> str:
    if text.startswith("```") and text.count("\n"):
        return text
    text = _RULE.sub("", text.translate(_TYPOGRAPHIC))
    text = _BULLET.sub(r"\1- ", _HEADING.sub(r"\1", text))
    text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", text))
    return re.sub(r"(?m)(?<=\S)[ \t]+$", "", _PICTURES.sub("", text))


def nameless(text: str, *, asked: str) -> tuple[str, int]:
    """An answer with names of well-known models and their makers taken out, and how many were.

    A name that the instruction itself brings up says nothing about who answers, and stays.
    """
    taken = 0

    def replaced(found: re.Match[str]) -> str:
        nonlocal taken
        if found[0].lower() in asked.lower():
            return found[0]
        taken += 1
        return _NAMELESS

    return _NAMES.sub(replaced, text), taken

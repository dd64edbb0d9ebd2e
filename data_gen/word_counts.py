"""How many words a text has, also in scripts that put no spaces between words.

count_words("Tokyo は 日本")   -> 3
"""

from __future__ import annotations

import re

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""For a class of a regular expression: letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""

_LETTER = re.compile(f"[{UNSPACED}]")
_SIGN = re.compile("[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")  # their full stops and commas


def count_words(text: str) -> int:
    """Words between spaces; in scripts that write none between words, two letters count as one word."""
    rest, letters = _LETTER.subn(" ", _SIGN.sub(" ", text))
    return len(rest.split()) + (letters + 1) // 2

"""What counts as a word when texts are compared."""

from __future__ import annotations

import re

# Scripts that put no spaces between words: each of their characters counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+")
_POSSESSIVE = re.compile(r"['’]s\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case and without punctuation: "Ann's $1,200!" -> ann, 1200."""
    return _WORD.findall(_POSSESSIVE.sub("", _THOUSANDS.sub("", text.lower())))

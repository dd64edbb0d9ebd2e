"""What counts as a word when texts are compared, and hashes of runs of words."""

from __future__ import annotations

import re

import numpy as np

from data_gen.word_counts import UNSPACED

# In scripts that put no spaces between words, each character counts as a word.
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_])+")
_POSSESSIVE = re.compile(r"['’]s\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case and without punctuation: "Ann's $1,200!" -> ann, 1200."""
    return _WORD.findall(_POSSESSIVE.sub("", _THOUSANDS.sub("", text.lower())))


def run_hashes(numbers: np.ndarray, length: int) -> np.ndarray:
    """64-bit hashes of every `length` numbers in a row: uint64 [N] -> uint64 [N - length + 1]."""
    count = len(numbers) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(length):
        hashes = _mixed(hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + count] + np.uint64(1))
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed

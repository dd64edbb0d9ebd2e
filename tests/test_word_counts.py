"""Words are counted in every script."""

from __future__ import annotations

import pytest

from data_gen.word_counts import count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" one\ttwo\nthree ", 3),
        ("日本の首都", 3),
        ("Tokyo は 日本", 3),
        ("请写一首诗，不超过八行。", 5),  # signs are no words
        ("東京（日本）。", 2),
        ("오늘의 날씨", 2),  # Korean has spaces
        ("ຂຽນບົດກະວີ", 5),
        ("សរសេរកំណាព្យ", 6),
    ],
)
def test_words_are_those_between_spaces_or_half_the_letters_where_no_spaces_are_written(text: str, words: int) -> None:
    assert count_words(text) == words

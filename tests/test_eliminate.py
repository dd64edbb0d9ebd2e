"""The four elimination rules: what each drops, and what it must let pass."""

from __future__ import annotations

import pytest

from data_gen import eliminate


@pytest.mark.parametrize(
    "verdict",
    [
        "Equal",
        "equal.",
        " **Equal**",
        "_Equal_",
        "'Equal'",
        "Equal\nBoth ask for a prime.",
        "Equal because both ask for a prime.",
        "The two are equal",
        "Verdict: Equal",
    ],
)
def test_rule_1_drops_what_the_judge_finds_equal(verdict: str) -> None:
    reason = eliminate.no_gain(verdict)
    assert reason is not None
    assert reason.rule == "no_gain"


@pytest.mark.parametrize(
    "verdict",
    [
        "Not Equal",
        "not equal.",
        "**Not Equal**",
        "__Not_Equal__",
        "Not Equal: one asks for more.",
        "Not Equal because the second asks for more.",
        "Not equal, though they set equal constraints.",
        "They are not equal.",
        "These aren't equal.",
        "The two instructions are not really equal.",
        "Verdict: Not Equal",
    ],
)
def test_rule_1_passes_what_the_judge_finds_not_equal(verdict: str) -> None:
    assert eliminate.no_gain(verdict) is None


@pytest.mark.parametrize(
    "verdict",
    [
        "",
        "...",
        "Yes",
        "Equality",
        "They differ.",
        "Unequal",
        "Either Equal or Not Equal",
        "In breadth they are equal, in depth they are not equal.",
        "I do not believe that they are equal.",
        "They go equally deep.",
    ],
)
def test_a_verdict_that_can_not_be_read_never_passes(verdict: str) -> None:
    reason = eliminate.no_gain(verdict)
    assert reason is not None
    assert reason.rule == "unreadable_reply"


def test_rule_1_needs_no_judge_for_the_same_words() -> None:
    reason = eliminate.identical("name  a PRIME.\n", parent="Name a prime.")
    assert reason is not None
    assert reason.rule == "no_gain"
    assert eliminate.identical("Name a prime!", parent="Name a prime.") is None


def test_rule_2_drops_sorry_in_fewer_than_80_words() -> None:
    seventy_nine = "Sorry, " + "word " * 78
    reason = eliminate.refusal(seventy_nine)
    assert reason is not None
    assert (reason.rule, "79 words" in reason.evidence) == ("refusal", True)
    assert eliminate.refusal(seventy_nine + "word") is None
    assert eliminate.refusal("I'm SORRY: I can not do that.") is not None
    assert eliminate.refusal("Sorrynormal is no word.") is None


@pytest.mark.parametrize(
    ("candidate", "dropped"),
    [
        ("I'm sorry, but I can not rewrite this.", True),
        ("I am so sorry, this is not possible.", True),
        ("Sorry, I won't.", True),
        ("I can not help with that.", True),
        ("I cannot assist.", True),
        ("I can't open my door. What now?", False),
        ("Write a letter that says sorry.", False),
        ("Sorry! is a board game. Explain it.", False),
    ],
)
def test_a_rewrite_that_is_a_refusal_is_dropped(candidate: str, dropped: bool) -> None:
    assert (eliminate.refused_rewrite(candidate, parent="Name a prime.") is not None) is dropped
    assert eliminate.refused_rewrite(candidate, parent=candidate) is None


@pytest.mark.parametrize("answer", ["", " ", "...", "?!", "the and of", "It is.", "—", "I am, you are."])
def test_rule_3_drops_punctuation_and_stop_words(answer: str) -> None:
    reason = eliminate.empty_answer(answer)
    assert reason is not None
    assert reason.rule == "empty_answer"


@pytest.mark.parametrize("answer", ["No.", "yes", "Not at all", "7", "A", "the sea", "素数", "да"])
def test_rule_3_passes_the_shortest_answers_that_say_something(answer: str) -> None:
    assert eliminate.empty_answer(answer) is None


@pytest.mark.parametrize("phrase", eliminate.PROMPT_PHRASES)
def test_rule_4_drops_each_phrase_of_the_prompts_unless_it_was_there_before(phrase: str) -> None:
    candidate = f"#{phrase.title()}#: name a prime."
    reason = eliminate.copied_prompt(candidate, parent="Name a prime.")
    assert reason is not None
    assert (reason.rule, phrase in reason.evidence) == ("copied_prompt", True)
    assert eliminate.copied_prompt(candidate, parent=f"What is a {phrase}?") is None


def test_rule_4_sees_through_line_breaks() -> None:
    assert eliminate.copied_prompt("the rewritten\nprompt", parent="") is not None


def test_evidence_is_short_whatever_the_answer() -> None:
    reason = eliminate.refusal("sorry " + "x" * 10_000)
    assert reason is not None
    assert len(reason.evidence) < 200

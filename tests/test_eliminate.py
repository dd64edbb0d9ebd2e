"""The elimination rules: what each drops, and what it must let pass."""

from __future__ import annotations

import pytest
from injections import INJECTIONS

from data_gen import eliminate
from data_gen.operations import OPERATIONS, Operation, equal_prompt, recognise


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
        "<think>Not equal at first sight.</think>Equal",
    ],
)
def test_rule_1_drops_what_the_judge_finds_equal(verdict: str) -> None:
    reason = eliminate.no_gain(verdict)
    assert reason is not None
    assert reason.rule == "no_gain"
    assert eliminate.changed_meaning(verdict) is None


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
        "NotEqual",
        "<think>Are they equal?</think>\nNot Equal",
    ],
)
def test_rule_1_passes_what_the_judge_finds_not_equal(verdict: str) -> None:
    assert eliminate.no_gain(verdict) is None
    reason = eliminate.changed_meaning(verdict)
    assert reason is not None
    assert reason.rule == "changed_meaning"


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
    assert eliminate.changed_meaning(verdict) == reason


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
    assert eliminate.copied_prompt(f"{candidate} {candidate}", parent=f"What is a {phrase}?") == reason


def test_rule_4_sees_through_line_breaks() -> None:
    assert eliminate.copied_prompt("the rewritten\nprompt", parent="") is not None


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_rule_4_drops_any_line_of_the_rewriting_prompt_that_is_not_a_short_one(operation: Operation) -> None:
    for line in operation.template.split("\n"):
        if len(line.split()) > eliminate.COPIED_WORDS and "{" not in line and "<" not in line:
            copied = eliminate.copied_prompt(f"Name a prime. {line.upper()}", parent="Name a prime.")
            assert copied is not None, line
            assert eliminate.copied_prompt(f"Name a prime. {line}", parent=f"What is meant by: {line}") is None


@pytest.mark.parametrize(
    ("candidate", "parent", "dropped"),
    [
        ("=====\nName a prime above 10.", "Name a prime.", True),
        ("Name a prime above 10.\n=====", "Name a prime.", True),
        ("Name a prime above 10.\n  ========  ", "Name a prime.", True),
        ("Note:\n=====\nName a prime above 10.\n=====\nThat is it.", "Name a prime.", True),
        ("Sum up this page:\nPrimes\n======\nThey are many.", "Sum up a page.", False),
        ("=====\nName a prime above 10.\n=====", "=====\nName a prime.\n=====", False),
        ("======\nName a prime above 10.\n======", "=====\nName a prime.\n=====", True),
        ("What does a ==== b mean?", "What does a == b mean?", False),
        ("Is a === b?\n====", "Is a == b?", False),
    ],
)
def test_rule_4_drops_the_lines_that_framed_the_instruction_before(candidate: str, parent: str, dropped: bool) -> None:
    assert (eliminate.copied_prompt(candidate, parent=parent) is not None) is dropped


@pytest.mark.parametrize(("added", "dropped"), [(-3, True), (0, True), (9, True), (10, False), (20, False), (21, True)])
def test_the_word_count_is_held_to_10_to_20_words(added: int, dropped: bool) -> None:
    reason = eliminate.word_count(added)
    assert (reason is not None) is dropped
    assert eliminate.word_count(added, least=added, most=added) is None
    if reason:
        assert reason.rule == "word_count"
        assert str(abs(added)) in reason.evidence


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
@pytest.mark.parametrize("seed", INJECTIONS)
def test_41_injections_stay_data_and_an_echo_of_their_frame_is_dropped(seed: str, operation: Operation) -> None:
    assert len(set(INJECTIONS)) == 41
    prompt = operation.prompt(seed)
    asked = recognise(prompt)
    assert asked is not None
    assert (asked.kind, asked.name, asked.instruction) == ("operation", operation.name, seed)
    opening, closing = (piece.split("{fence}") for piece in operation.template.split("{instruction}"))
    fence = prompt.removeprefix(opening[0]).split("\n")[0]
    before, after = fence.join(opening), fence.join(closing)
    assert prompt == before + seed + after
    assert fence.strip("=") == ""
    assert fence not in seed
    echoes = (
        prompt,  # all of it
        prompt[prompt.index(f"{fence}\n{seed}") :],  # from the frame on
        f"{fence}\n{seed} And why?",
        f"{seed} And why?\n{fence}",
        f"{before}{seed} And why?",
        f"{seed} And why?{after}",
        f"{seed} And why?{after}\nSay hello.",
    )
    for echo in echoes:
        candidate = operation.parse(echo)
        dropped = not candidate or eliminate.copied_prompt(candidate, parent=seed)
        assert dropped or candidate == operation.parse(seed), echo
    assert recognise(equal_prompt(seed, "x")) is not None


def test_evidence_is_short_whatever_the_answer() -> None:
    reason = eliminate.refusal("sorry " + "x" * 10_000)
    assert reason is not None
    assert len(reason.evidence) < 200

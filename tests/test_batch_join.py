"""A line of results answers the request that it echoes, in whatever order and spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.llm.batch_join import Join, Result, fingerprint
from data_gen.llm.chat import ChatReply, NotSent, Permanent

SENT = {
    "contents": [{"role": "user", "parts": [{"text": "Why?"}]}],
    "generationConfig": {"maxOutputTokens": 64, "topP": 0.9, "temperature": 0, "seed": 12, "stopSequences": []},
}
SPELLED_ANEW = {
    "generation_config": {"max_output_tokens": 64.0, "top_p": 0.9, "seed": 12},
    "contents": [{"parts": [{"text": "Why?", "thought": False}], "role": "user"}],
    "labels": {},
}


def said(text: str) -> ChatReply:
    return ChatReply(text=text, finish_reason="stop", model="m")


def test_an_echo_that_was_spelled_anew_is_recognised_and_another_text_is_not() -> None:
    assert fingerprint(SENT) == fingerprint(SPELLED_ANEW)
    assert fingerprint(SENT) != fingerprint({**SENT, "contents": [{"role": "user", "parts": [{"text": "why?"}]}]})
    assert fingerprint(SENT) != fingerprint({**SENT, "generationConfig": {**SENT["generationConfig"], "seed": 13}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_json_has_a_fingerprint(value: object) -> None:
    assert len(fingerprint(value)) == 64


@given(st.permutations(range(20)))
def test_the_order_of_lines_is_of_no_account(order: list[int]) -> None:
    join = Join({f"digest-{n}": f"echo-{n}" for n in range(20)})
    placed = [join.take(Result(f"echo-{n}", f"digest-{n}", said(str(n)))) for n in order]
    assert {found[0]: found[1].text for found in placed if found} == {f"digest-{n}": str(n) for n in range(20)}


def test_a_line_whose_key_and_echo_disagree_answers_neither() -> None:
    join = Join({"a": "echo-a", "b": "echo-b"})
    assert join.take(Result("echo-b", "a", said("to b, or to a"))) is None
    assert join.take(Result("echo-a", "stranger", said("to a?"))) is None
    assert (join.swapped, join.joined, join.answered("a")) == (2, 0, False)


def test_of_two_lines_for_a_request_the_first_stands_and_a_different_second_is_counted() -> None:
    join = Join({"a": "echo-a"})
    assert join.take(Result("echo-a", None, NotSent("503"))) is None
    found = join.take(Result("echo-a", None, said("first")))
    assert found is not None
    assert found[1].text == "first"
    assert join.take(Result("echo-a", None, said("first"))) is None
    assert (join.duplicated, join.conflicting) == (1, 0)
    assert join.take(Result("echo-a", None, said("second"))) is None
    assert (join.duplicated, join.conflicting) == (2, 1)
    assert (join.lines, join.joined) == (4, 1)


def test_only_a_refusal_of_the_request_itself_is_an_answer() -> None:
    join = Join({name: f"echo-{name}" for name in "abcd"})
    refused = join.take(Result("echo-a", None, Permanent("flagged", scope="request")))
    assert refused is not None
    with pytest.raises(Permanent, match="flagged"):
        refused[1].reply()
    errors = [Permanent("no such model", scope="run"), NotSent("503"), Permanent("bad", scope="unclear")]
    for name, error in zip("bcd", errors, strict=True):
        assert join.take(Result(f"echo-{name}", None, error)) is None
        assert join.errors[name] is error
    assert join.take(Result("echo-z", None, said("to nobody"))) is None
    assert (join.unknown, join.joined) == (1, 4)

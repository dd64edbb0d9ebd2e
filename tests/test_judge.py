"""Asking a judge: both orders, another key for what can not be read, and nothing ungraded that counts as lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from clients import openai
from judges import Scripted, panelist, simulated

from data_gen import world
from data_gen.config import Faults, Gemini, OpenAICompatible, Simulated
from data_gen.judging.wording import Comparison, Grading, Harder, Question, marker, version
from data_gen.llm.chat import Ambiguous, ChatReply, NotSent, Permanent
from data_gen.llm.server import SimulatedServer
from wizard_jax.evaluate.config import Judge, Local
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.judging.independence import SelfJudging, check_independent
from wizard_jax.evaluate.judging.judge import Panelist, compare, compare_instructions, grade, grade_instruction
from wizard_jax.evaluate.judging.rows import Graded, RowError, Verdict

TASK = world.Task(("reverse", "drop_first"), ("fig", "kiwi", "lemon"))
ITEM = Item(id="7", turns=(world.render(TASK),), skill="Lists", difficulty=2.0)
RIGHT, WRONG = world.answer(TASK), "fig kiwi"
TALK = Item(id="8", turns=("2 + 2?", "And twice that?"), references=("4", "8"), skill="Math")


def answer(model: str, *texts: str, problem: str = "") -> Answer:
    return Answer(item="7", model=model, texts=texts, finish_reasons=("stop",) * len(texts), problem=problem)


def compared(candidate: Answer, baseline: Answer, judge: Panelist, item: Item = ITEM) -> Verdict:
    return asyncio.run(compare(item, candidate, baseline, judge=judge))


def verdict(choice: str) -> Scripted:
    return Scripted(lambda question, _: f"Because.\n{marker(question)}: {choice}")


# --- pairs


def test_a_pair_is_asked_about_in_both_orders_and_seen_from_the_candidate() -> None:
    model = Scripted(
        lambda question, _: (
            f"Why.\n{marker(question)}: {'A' if isinstance(question, Comparison) and question.first == ('x',) else 'B'}"
        )
    )
    row = compared(answer("new", "x"), answer("old", "yy"), panelist(model))
    assert (row.first, row.second, row.score, row.strict) == (1, 1, 1.0, 1)
    assert (row.candidate, row.baseline, row.lengths, row.reasons) == ("new", "old", (1, 2), ("Why.", "Why."))
    assert (row.skill, row.difficulty, row.how, row.prompts, row.unread) == ("Lists", 2.0, "asked", version(), 0)
    assert len({request.digest for request in model.asked}) == len({request.seed for request in model.asked}) == 2
    assert {request.temperature for request in model.asked} == {0.0}
    assert {request.key.purpose for request in model.asked} == {"judge"}


@pytest.mark.parametrize(
    ("choice", "first", "second", "score", "strict"),
    [("A", 1, -1, 0.5, 0), ("B", -1, 1, 0.5, 0), ("tie", 0, 0, 0.5, 0)],
)
def test_a_judge_that_goes_by_the_place_turns_round(
    choice: str, first: int, second: int, score: float, strict: int
) -> None:
    row = compared(answer("new", "x"), answer("old", "y"), panelist(verdict(choice)))
    assert (row.first, row.second, row.score, row.strict) == (first, second, score, strict)


def test_no_two_requests_of_an_evaluation_share_a_key() -> None:
    model = verdict("A")
    judges = [panelist(model, name="a"), panelist(model, name="b")]
    for judge in judges:
        for item in (ITEM, replace(ITEM, id="9")):
            for pair in (("m", "n"), ("n", "m"), ("m", "o")):
                compared(answer(pair[0], "x"), answer(pair[1], "y"), judge, item)
    for sample in range(3):
        ours, theirs = (replace(answer(name, text), sample=sample) for name, text in (("p", "x"), ("q", "y")))
        row = compared(ours, theirs, judges[0])
        (graded,) = asyncio.run(grade(ITEM, ours, judge=judges[0]))
        assert row.sample == graded.sample == sample
    with pytest.raises(ValueError, match="answers 2 and 0 to 7"):
        compared(ours, answer("q", "y"), judges[0])
    assert len({request.digest for request in model.asked}) == len(model.asked)
    lineages = Counter((request.key.lineage, request.key.round) for request in model.asked)
    assert set(lineages.values()) == {1}
    assert len(lineages) == 24 + 3 * (2 + 2)  # a grade from "A" can not be read, and is asked for twice


def test_identical_answers_are_a_tie_that_nobody_is_asked_about() -> None:
    model = verdict("A")
    row = compared(answer("new", "x"), answer("old", "x"), panelist(model))
    assert (row.first, row.second, row.how, row.problems) == (0, 0, "identical", ("", ""))
    assert not model.asked


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer("new", problem="cut off at max_tokens = 4"), "no answer of new: cut off at max_tokens = 4"),
        (answer("new"), "no answer of new to 1 of 1 turns"),
    ],
)
def test_an_answer_that_is_missing_is_not_graded_and_not_lost(said: Answer, why: str) -> None:
    model = verdict("B")
    row = compared(said, answer("old", "x"), panelist(model))
    assert (row.first, row.second, row.score, row.strict) == (None, None, None, None)
    assert (row.how, row.problems) == ("no answer", (why, why))
    (graded,) = asyncio.run(grade(ITEM, said, judge=panelist(model)))
    assert (graded.grade, graded.problem) == (None, why)
    assert not model.asked


def test_what_can_not_be_read_is_counted_and_asked_for_once_more_with_another_key() -> None:
    model = Scripted(lambda question, attempt: f"{marker(question)}: A" if attempt else "A, I think.")
    row = compared(answer("new", "x"), answer("old", "y"), panelist(model))
    assert (row.first, row.second, row.unread, row.problems) == (1, -1, 2, ("", ""))
    assert sorted(request.key.round for request in model.asked) == [0, 0, 1, 1]
    assert len({request.digest for request in model.asked}) == len({request.seed for request in model.asked}) == 4


def cut_off(*_: object) -> ChatReply:
    return ChatReply(text="Verdict: A", finish_reason="length", model="scripted")


def never(*_: object) -> str:
    return "Both have merits."


@pytest.mark.parametrize(
    ("says", "why", "asked"),
    [
        (never, "no last line Verdict: A, B or tie: 'Both have merits.' (2 replies)", 4),
        (cut_off, "cut off at max_tokens = 2048 (2 replies)", 4),
        (lambda *_: NotSent("429"), "given up: 429", 2),
        (lambda *_: Ambiguous("time-out"), "given up: time-out", 2),
        (lambda *_: Permanent("flagged", scope="request"), "refused for good: flagged", 2),
    ],
)
def test_what_brings_no_verdict_is_not_graded_with_the_reason(says: Any, why: str, asked: int) -> None:
    model = Scripted(says)
    row = compared(answer("new", "x"), answer("old", "y"), panelist(model))
    assert (row.first, row.second, row.score) == (None, None, None)
    assert (row.problems, row.how) == ((why, why), "asked")
    assert len(model.asked) == asked
    assert row.unread == (4 if asked == 4 else 0)


def test_of_one_order_that_can_not_be_read_the_other_stands_but_not_as_a_strict_verdict() -> None:
    def says(question: Question, _: int) -> str:
        assert isinstance(question, Comparison)
        return f"{marker(question)}: A" if question.first == ("x",) else ""

    row = compared(answer("new", "x"), answer("old", "y"), panelist(Scripted(says)))
    assert (row.first, row.second, row.score, row.strict, row.unread) == (1, None, 1.0, None, 2)


def test_an_error_that_stops_a_run_stops_judging() -> None:
    model = Scripted(lambda *_: Permanent("no key", scope="run"))
    with pytest.raises(Permanent, match="no key"):
        compared(answer("new", "x"), answer("old", "y"), panelist(model))


def test_a_conversation_is_judged_as_a_whole_with_references() -> None:
    model = verdict("A")
    row = compared(answer("new", "4", "8"), answer("old", "4", "9"), panelist(model), TALK)
    (first,) = (request for request in model.asked if '"first"' in request.key.lineage)
    assert "Turn 2: reference answer\n=====\n8\n=====" in first.messages[0].content
    assert (row.first, row.lengths) == (1, (2, 2))


def test_which_of_two_instructions_is_harder_is_asked_in_both_orders() -> None:
    asked = compare_instructions("a b c", "a", item="k", source="words", difficulty=3.0, judge=simulated("longer"))
    row = asyncio.run(asked)
    assert (row.candidate, row.baseline, row.first, row.second, row.lengths) == ("harder", "easier", 1, 1, (5, 1))
    assert (row.skill, row.difficulty) == ("words", 3.0)


# --- grades


def test_each_turn_is_graded_after_the_turns_before_it() -> None:
    model = Scripted(
        lambda question, _: (
            f"Why.\n{marker(question)}: {len(question.turns) + 7 if isinstance(question, Grading) else 0}"
        )
    )
    rows = asyncio.run(grade(TALK, answer("new", "4", "88"), judge=panelist(model)))
    assert [(row.turn, row.grade, row.length, row.reasons) for row in rows] == [(0, 8, 1, "Why."), (1, 9, 2, "Why.")]
    assert len({request.digest for request in model.asked}) == 2


def test_an_instruction_is_graded_beside_what_is_known_of_it() -> None:
    row = asyncio.run(grade_instruction(ITEM.turns[0], item="k", source="w", known=2.0, judge=simulated()))
    assert (row.grade, row.difficulty, row.model) == (3.0, 2.0, "")


def test_a_grade_that_can_not_be_read_is_none_with_the_reason() -> None:
    (row,) = asyncio.run(grade(ITEM, answer("new", "x"), judge=panelist(Scripted(lambda *_: "Seven."))))
    assert (row.grade, row.unread, row.problem) == (None, 2, "no last line Grade: 1 to 10: 'Seven.' (2 replies)")


# --- the simulated judge


@pytest.mark.parametrize(
    ("judges", "candidate", "baseline", "first", "second"),
    [
        ("well", RIGHT, WRONG, 1, 1),
        ("well", WRONG + " long" * 20, RIGHT, -1, -1),
        ("well", RIGHT, "kiwi fig", 0, 0),
        ("well", WRONG, "fig", 0, 0),
        ("first", WRONG, RIGHT, 1, -1),
        ("longer", WRONG + " long" * 20, RIGHT, 1, 1),
    ],
)
def test_the_simulated_judge_goes_by_the_truth_of_its_world_or_badly(
    judges: Any, candidate: str, baseline: str, first: int, second: int
) -> None:
    row = compared(answer("new", candidate), answer("old", baseline), simulated(judges))
    assert (row.first, row.second) == (first, second)


def test_the_simulated_judge_is_wrong_as_often_as_it_is_told() -> None:
    judge = simulated(faults=Faults(misjudged=0.25))
    pair = answer("new", RIGHT), answer("old", WRONG)
    rows = [compared(*pair, judge, replace(ITEM, id=str(number))) for number in range(200)]
    right = sum((row.first == 1) + (row.second == 1) for row in rows) / 400
    assert 0.7 < right < 0.8
    (graded,) = asyncio.run(grade(ITEM, answer("new", RIGHT), judge=simulated(faults=Faults(misjudged=1.0))))
    assert graded.grade == 2


@pytest.mark.parametrize(("judges", "grades"), [("well", (9, 2)), ("first", (5, 5)), ("longer", (3, 1))])
def test_the_simulated_judge_grades_by_the_truth_or_badly(judges: Any, grades: tuple[int, int]) -> None:
    given = [asyncio.run(grade(ITEM, answer("m", text), judge=simulated(judges)))[0].grade for text in (RIGHT, WRONG)]
    assert tuple(given) == grades


def test_of_other_text_the_simulated_judge_takes_what_takes_up_more_words_of_the_question() -> None:
    item = Item(id="p", turns=("Name three rivers of Europe.",), references=("Rhine",))
    row = compared(
        answer("new", "Three rivers of Europe: the Rhine"), answer("old", "No idea at all"), simulated(), item
    )
    assert (row.first, row.second) == (1, 1)


def test_a_judge_over_http_says_what_the_one_in_process_says() -> None:
    async def over_http() -> tuple[Verdict, Verdict, tuple[Graded, ...]]:
        async with SimulatedServer(Simulated(judges="longer")) as server, openai(server.address) as chat:
            judge = panelist(chat, name="longer")
            pair = answer("new", RIGHT), answer("old", WRONG)
            verdicts = await compare(ITEM, *pair, judge=judge), await compare(TALK, *map(twice, pair), judge=judge)
            graded = await grade(ITEM, pair[0], judge=judge)
            assert server.full_replies == 5
            return *verdicts, graded

    def twice(said: Answer) -> Answer:
        return replace(said, texts=said.texts * 2)

    one, talk, graded = asyncio.run(over_http())
    assert one == compared(answer("new", RIGHT), answer("old", WRONG), simulated("longer"))
    assert (talk.first, talk.second, talk.strict) == (1, 1, 1)
    assert graded == asyncio.run(grade(ITEM, answer("new", RIGHT), judge=simulated("longer")))


# --- rows


def test_rows_come_back_from_json_as_they_were() -> None:
    verdict_ = compared(answer("new", "x\ud800"), answer("old", "y"), simulated("first"))
    assert Verdict.from_dict(json.loads(json.dumps(verdict_.to_dict()))) == verdict_
    (graded,) = asyncio.run(grade(ITEM, answer("new", "x"), judge=simulated()))
    assert Graded.from_dict(json.loads(json.dumps(graded.to_dict()))) == graded


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"first": 2}, "2 is no verdict"),
        ({"first": None}, "what is not graded has a reason"),
        ({"problems": ["late", ""]}, "what is not graded has a reason"),
        ({"lengths": [1]}, "two lengths"),
        ({"problems": [""]}, "two reasons and problems"),
        ({"other": 1}, "'other' is unknown"),
    ],
)
def test_a_row_that_is_none_is_refused(change: dict[str, Any], why: str) -> None:
    row = compared(answer("new", "x"), answer("old", "y"), simulated("first")).to_dict()
    with pytest.raises(RowError, match=why):
        Verdict.from_dict(row | change)
    with pytest.raises(RowError, match="'judge' is missing"):
        Verdict.from_dict({name: value for name, value in row.items() if name != "judge"})


@pytest.mark.parametrize("grade_", [0, 10.5, "7", None])
def test_a_grade_that_is_none_is_refused(grade_: Any) -> None:
    (graded,) = asyncio.run(grade(ITEM, answer("new", "x"), judge=simulated()))
    with pytest.raises(RowError, match=r"no grade|has a reason"):
        Graded.from_dict(graded.to_dict() | {"grade": grade_})


# --- a judge is nobody that it judges


SERVED = OpenAICompatible(model="m", base_url="http://127.0.0.1:80/v1/")


@pytest.mark.parametrize(
    ("judge", "model"),
    [
        (SERVED, replace(SERVED, base_url="http://localhost/v1", timeout_seconds=5.0)),
        (Gemini(model="g"), Gemini(model="g", thinking_budget=0, platform="ai_studio")),
        (Local(path="runs/a"), Local(path="runs/../runs/a", step=3)),
        (Simulated(judges="first"), Simulated()),
    ],
)
def test_a_judge_that_is_a_model_is_refused_by_both_names(judge: Any, model: Any) -> None:
    with pytest.raises(SelfJudging, match=r"judges\.j is the same model as models\.m .*self_judging"):
        check_independent({"i": Judge(llm=Gemini(model="x")), "j": Judge(llm=judge)}, {"m": model}, {})


def test_a_judge_that_is_the_teacher_is_refused_by_both_names() -> None:
    with pytest.raises(SelfJudging, match=r"judges\.j \(m .*wrote what models\.student was trained on"):
        check_independent(
            {"j": Judge(llm=SERVED)}, {"student": Local(path="a")}, {"student": (Gemini(model="g"), SERVED)}
        )


@pytest.mark.parametrize(
    ("judge", "other"),
    [
        (SERVED, replace(SERVED, model="n")),
        (SERVED, replace(SERVED, base_url="http://127.0.0.1:81/v1")),
        (Gemini(model="g"), OpenAICompatible(model="g")),
        (Local(path="a"), Local(path="b")),
    ],
)
def test_another_model_may_judge(judge: Any, other: Any) -> None:
    check_independent({"j": Judge(llm=judge)}, {"m": other}, {"m": (other,)})


def test_the_simulated_model_may_judge_its_students_for_it_has_no_manner_to_prefer() -> None:
    check_independent({"j": Judge(llm=Simulated())}, {"m": Local(path="a")}, {"m": (Simulated(),)})


def test_harder_is_no_comparison_of_answers() -> None:
    model = verdict("tie")
    asyncio.run(compare_instructions("a", "b", item="k", source="w", difficulty=None, judge=panelist(model)))
    assert all("Instruction A\n=====" in request.messages[0].content for request in model.asked)
    assert Harder(first="a", second="b").kind == "harder"

"""The simulated model: repeatable, at fault as often as it is told, and honest about what it is."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from injections import INJECTIONS

from data_gen import eliminate, framing, world
from data_gen.config import EvolveConfig, Faults, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage, evolve_lineage
from data_gen.input_formats import check_added_input, words_added
from data_gen.llm.chat import ChatReply, ChatRequest, Message, RequestKey
from data_gen.llm.simulated import EFFECTS, NAME, PLACEHOLDER, SimulatedChatModel
from data_gen.measure.contamination import parse_verdict, verdict_prompt
from data_gen.measure.difficulty import parse_ranking, parse_score, rank_prompt, score_prompt
from data_gen.operations import ANSWER_STYLES, OPERATIONS, AnswerStyle, answer_prompt, equal_prompt
from data_gen.records import Record, Turn
from data_gen.sources import load_seeds

NATURAL = (
    "Name three rivers of Europe.",
    "Write a poem about an old lighthouse keeper who can not sleep.\nUse the word 'tide'.",
    "Schreibe einen kurzen Brief an deine Großmutter.",
    "def f(x):\n    return x + 1\n\nWhat does this function do?",
    "日本の首都はどこですか?",
)
PERFECT = Faults()


def ask(prompt: str, *, seed: int = 0, faults: Faults = PERFECT) -> ChatReply:
    request = ChatRequest(
        key=RequestKey("000000", 1, "evolve"),
        model="any",
        messages=(Message("user", prompt),),
        temperature=1.0,
        top_p=0.9,
        max_tokens=2048,
        seed=seed,
    )
    return asyncio.run(SimulatedChatModel(Simulated(faults=faults)).complete(request))


def evolve(seed: Record, *, faults: Faults = PERFECT, rounds: int = 4, number: int = 0) -> Lineage:
    config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=Simulated(faults=faults), rounds=rounds, seed=number)
    return asyncio.run(evolve_lineage(seed, model=SimulatedChatModel(Simulated(faults=faults)), config=config))


@given(st.text(), st.integers(0, 2**31 - 1))
def test_the_same_request_has_the_same_reply_and_every_reply_names_the_simulation(prompt: str, seed: int) -> None:
    faults = Faults(empty=0.2, truncated=0.2, refusal=0.2, filtered=0.1)
    first = ask(prompt, seed=seed, faults=faults)
    assert ask(prompt, seed=seed, faults=faults) == first
    assert first.model == NAME == "simulated-llm"


def test_another_seed_has_another_reply() -> None:
    prompt = OPERATIONS["in_breadth"].prompt("Take this list: reverse it.\nlemon fig kiwi")
    assert len({ask(prompt, seed=seed).text for seed in range(20)}) > 15


TASKS = [
    world.sample_task(random.Random(number), steps=1 + number % 3, form=world.FORMS[number % 4])
    for number in range(150)
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_to_tasks_what_the_table_says(name: str) -> None:
    changed = 0
    for number, task in enumerate(TASKS):
        before = world.render(task)
        rewritten = OPERATIONS[name].parse(ask(OPERATIONS[name].prompt(before), seed=number).text)
        if rewritten == before:
            continue  # nothing of the kind fits this task
        changed += 1
        added = world.count_steps(rewritten) - len(task.steps)
        assert (
            added == {"a step": 1, "no step": 0, "takes a step": -1 if len(task.steps) > 1 else 0}[EFFECTS[name].adds]
        )
        after = world.parse(rewritten)
        assert after is not None
        if name == "concretizing":
            assert (after.pair, after.form) == (task.pair, task.form)
            assert after.opener in world.CONCRETE_OPENERS
        if name == "complicate_input":
            assert (after.pair, after.opener) == (task.pair, task.opener)
            assert after.form not in ("plain", task.form)
        if name == "in_breadth":
            assert after.pair != task.pair
        if name == "downward":
            assert (after.form, after.opener) == (task.form, task.opener)
            assert after.pair != task.pair
        if name == "paraphrase":
            assert (after.pair, after.form) == (task.pair, task.form)
            assert after.opener in world.PLAIN_OPENERS
        judged = ask(equal_prompt(before, rewritten)).text
        assert judged == ("Equal" if OPERATIONS[name].kind == "same" else "Not Equal")
    assert changed > 0.8 * len(TASKS)


def test_the_table_has_every_operation_and_three_that_add_a_step() -> None:
    assert EFFECTS.keys() == OPERATIONS.keys()
    assert Counter(effect.adds for effect in EFFECTS.values()) == {"a step": 3, "no step": 4, "takes a step": 1}


def test_tasks_are_answered_exactly() -> None:
    for task in TASKS:
        assert ask(world.render(task)).text == world.answer(task)


def test_the_judge_tells_equal_from_not_equal() -> None:
    task = world.render(TASKS[0])
    assert ask(equal_prompt(task, f"Please {task}")).text == "Equal"
    assert ask(equal_prompt(f"Please {NATURAL[0]}", NATURAL[0])).text == "Equal"
    concrete = [world.render(replace(TASKS[0], opener=opener)) for opener in world.CONCRETE_OPENERS]
    assert ask(equal_prompt(*concrete)).text == "Not Equal"
    assert ask(equal_prompt(task, concrete[0])).text == "Not Equal"
    assert ask(equal_prompt(task, world.render(TASKS[1]))).text == "Not Equal"


def kind_of(reply: ChatReply, *, instruction: str) -> str:
    if reply.finish_reason == "filtered":
        return "filtered"
    if reply.finish_reason == "length":
        return "truncated"
    if not any(letter.isalnum() for letter in reply.text):
        return "empty"
    if reply.text == f"Please {instruction}":
        return "unchanged"
    if reply.text.startswith("The rewritten prompt is"):
        return "copied_prompt"
    if reply.text.startswith("Sorry"):
        return "refusal"
    return "good"


@pytest.mark.parametrize("asked", ["rewrite", "answer"])
def test_each_fault_comes_at_its_rate(asked: str) -> None:
    rates = {"unchanged": 0.1, "refusal": 0.08, "copied_prompt": 0.06, "empty": 0.12, "truncated": 0.05}
    rates |= {"filtered": 0.04, "invalid_input": 0.07}
    instruction, requests = world.render(TASKS[0]), 4000
    prompt = instruction if asked == "answer" else OPERATIONS["concretizing"].prompt(instruction)
    seen = Counter(
        kind_of(ask(prompt, seed=seed, faults=Faults(**rates)), instruction=instruction) for seed in range(requests)
    )
    for_others = {"unchanged", "copied_prompt", "invalid_input"} if asked == "answer" else {"refusal", "invalid_input"}
    for kind, rate in rates.items():
        if kind in for_others:
            assert seen[kind] == 0
        else:
            # Five standard deviations of a binomial count.
            assert abs(seen[kind] - rate * requests) < 5 * (requests * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("text", [world.render(TASKS[0]), NATURAL[0]])
def test_so_many_rewrites_by_complicate_input_do_not_parse_and_are_found(text: str) -> None:
    prompt, faults = OPERATIONS["complicate_input"].prompt(text), Faults(invalid_input=0.2)
    rewrites = [ask(prompt, seed=seed, faults=faults).text for seed in range(1000)]
    dropped = [check_added_input(rewritten, parent=text) for rewritten in rewrites]
    # Five standard deviations of a binomial count.
    assert abs(sum(reason is not None for reason in dropped) - 200) < 5 * (1000 * 0.2 * 0.8) ** 0.5
    assert all("JSON does not parse" in reason.evidence for reason in dropped if reason)


def test_the_wording_of_a_prompt_changes_nothing_in_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def replies() -> list[str]:
        prompts = [
            operation.prompt(text) for operation in OPERATIONS.values() for text in (world.render(TASKS[1]), *NATURAL)
        ]
        return [ask(prompt, seed=seed, faults=Faults(empty=0.2)).text for prompt in prompts for seed in range(3)]

    before, wording = replies(), framing.template
    monkeypatch.setattr(framing, "template", lambda name: f"Be so kind.\n{wording(name)}\nThank you.")
    assert "Be so kind" in OPERATIONS["deepening"].prompt("x")
    assert replies() == before


def test_difficulty_is_two_points_for_a_step_or_one_for_15_words() -> None:
    for task in TASKS:
        assert ask(score_prompt(world.render(task))).text == str(2 * len(task.steps) - 1)
    texts = ["Name a river.", "word " * 15, "word " * 29, "word " * 30, "word " * 999]
    assert [parse_score(ask(score_prompt(text)).text) for text in texts] == [1, 2, 2, 3, 10]
    easy, hard = (world.render(task) for task in (TASKS[0], TASKS[2]))
    assert parse_ranking(ask(rank_prompt([hard, easy, NATURAL[0]])).text, 3) == (5, 1, 1)


def test_the_verdict_on_contamination_is_same_for_the_same_task() -> None:
    task = world.render(TASKS[0])
    assert parse_verdict(ask(verdict_prompt(task, item=f"Please {task}")).text) == "same"
    assert parse_verdict(ask(verdict_prompt(task, item=world.render(TASKS[1]))).text) == "different"


@pytest.mark.parametrize("style", ANSWER_STYLES)
def test_tasks_are_answered_exactly_in_every_style(style: AnswerStyle) -> None:
    asked = (1, 12, 99) if style == "length" else (0,)
    for task in TASKS:
        said = [ask(answer_prompt(style, world.render(task), words=words)).text for words in asked]
        for answer in said:
            assert world.result(answer.split("\n")[-1]) == " ".join(world.trace(task)[-1])
        assert said == sorted(said, key=len)


def test_styles_differ_in_length_and_a_length_asked_for_is_kept() -> None:
    task = world.render(TASKS[2])
    brief, plain, detailed = (ask(answer_prompt(style, task)).text for style in ("brief", "plain", "detailed"))
    assert len(brief) < len(plain) < len(detailed)
    assert plain == world.answer(TASKS[2])
    for words in (5, 40, 200):
        answer = ask(answer_prompt("length", NATURAL[0], words=words)).text
        assert answer.startswith(PLACEHOLDER)
        assert len(answer.split()) == words
    assert ask(answer_prompt("length", NATURAL[0], words=1)).text == PLACEHOLDER


@pytest.mark.parametrize("name", ["in_breadth", "downward", "paraphrase", "complicate_input", "deepening"])
def test_natural_text_can_be_rewritten_again_and_again(name: str) -> None:
    operation = OPERATIONS[name]
    for text in NATURAL:
        current, seen = text, {text}
        for seed in range(6):
            rewritten = ask(operation.prompt(current), seed=seed).text
            if name == "complicate_input":
                assert check_added_input(rewritten, parent=current) is None
            if name in ("in_breadth", "downward", "paraphrase"):
                assert len(rewritten) < len(text) + 150, "it does not nest"
            if name == "in_breadth":
                words = set(re.findall(r"\w+", rewritten.split("subject of ")[1].split(" for readers")[0]))
                assert words <= {*re.findall(r"\w+", text), "and", "this"}, "no word is cut"
            seen.add(rewritten)
            current = rewritten
        assert len(seen) > {"downward": 1, "paraphrase": 3, "in_breadth": 3}.get(name, 4)


def test_an_easier_text_is_without_what_was_added_last() -> None:
    for text in NATURAL:
        deeper = ask(OPERATIONS["deepening"].prompt(text)).text
        longer = ask(OPERATIONS["complicate_input"].prompt(deeper)).text
        assert ask(OPERATIONS["downward"].prompt(longer)).text == deeper
        assert ask(OPERATIONS["downward"].prompt(deeper)).text == text


def test_without_faults_no_reply_is_at_fault() -> None:
    instruction = world.render(TASKS[0])
    assert {kind_of(ask(instruction, seed=seed), instruction=instruction) for seed in range(100)} == {"good"}


def seed_record(text: str, *, number: int = 0) -> Record:
    lineage = f"{number:06d}"
    return Record(id=f"{lineage}/0", lineage=lineage, turns=(Turn("user", text),), source="test")


def test_every_rewrite_that_adds_nothing_is_found_by_the_elimination() -> None:
    faults = Faults(unchanged=0.2, refusal=0.1, copied_prompt=0.1, empty=0.1, truncated=0.05, filtered=0.05)
    rules: Counter[str] = Counter()
    for number, seed in enumerate(load_seeds(SimulatedSeeds(count=120, seed=3))):
        lineage = evolve(seed, faults=faults, number=number)
        known = {seed.id: seed.instruction} | {r.id: r.instruction for r in lineage.records}
        for record in lineage.records:
            task = world.parse(record.instruction)
            assert task is not None, record.instruction
            assert record.answer == world.answer(task)
            assert record.steps == len(task.steps)
            if record.parent in known and record.round:
                assert record.instruction not in (known[record.parent], f"Please {known[record.parent]}")
                assert world.parse(known[record.parent]) != task
        rules.update(rejected.rule for rejected in lineage.rejected)
    assert {"no_gain", "refusal", "copied_prompt", "empty_answer", "truncated", "refused_request"} <= rules.keys()


def test_a_task_that_has_no_room_for_a_step_is_dropped_and_not_passed_on() -> None:
    # One item and a count: nothing can be taken away before it, or done after it.
    full = "Take this list: count it.\nfig"
    rewritten = ask(OPERATIONS["add_constraints"].prompt(full)).text
    assert rewritten == full
    assert eliminate.identical(rewritten, parent=full) is not None


@pytest.mark.parametrize("text", NATURAL)
@pytest.mark.parametrize("name", OPERATIONS)
def test_natural_text_gets_a_rewrite_in_the_shape_of_the_operation_and_a_marked_answer(text: str, name: str) -> None:
    rewritten = OPERATIONS[name].parse(ask(OPERATIONS[name].prompt(text)).text)
    assert rewritten != text
    assert rewritten.startswith(text) == (OPERATIONS[name].kind == "depth")
    assert rewritten.endswith(text) == (OPERATIONS[name].kind in ("down", "same"))
    if OPERATIONS[name].kind == "depth":
        assert 10 <= words_added(rewritten, parent=text) <= 20
    if name == "complicate_input":
        assert check_added_input(rewritten, parent=text) is None
    assert eliminate.identical(rewritten, parent=text) is None
    assert eliminate.copied_prompt(rewritten, parent=text) is None
    assert eliminate.refused_rewrite(rewritten, parent=text) is None
    judged = eliminate.changed_meaning if OPERATIONS[name].kind == "same" else eliminate.no_gain
    assert judged(ask(equal_prompt(text, rewritten)).text) is None
    answer = ask(rewritten).text
    assert answer.startswith(PLACEHOLDER)
    assert NAME in PLACEHOLDER
    assert eliminate.refusal(answer) is None
    assert eliminate.empty_answer(answer) is None


def test_without_faults_natural_text_goes_through_its_rounds() -> None:
    for number, text in enumerate(NATURAL):
        lineage = evolve(seed_record(text, number=number))
        assert not [one for one in lineage.rejected if one.rule != "no_gain"]
        assert len(lineage.records) >= 4
        assert all(record.steps == 0 and record.model == NAME for record in lineage.records)


@pytest.mark.parametrize("copied", [0.0, 1.0])
def test_injected_seeds_stay_data_through_all_rounds_or_are_dropped(copied: float) -> None:
    rules: Counter[str] = Counter()
    for number, text in enumerate(INJECTIONS):
        lineage = evolve(seed_record(text, number=number), faults=Faults(copied_prompt=copied))
        current = text
        for record in lineage.records[1:]:
            operation = OPERATIONS[record.operation]
            assert eliminate.copied_prompt(record.instruction, parent=current) is None
            if operation.kind == "depth":
                kept = operation.parse(f"{current}\n|").removesuffix("|").rstrip()  # a label before it is taken off
                assert record.instruction.startswith(kept)
            current = record.instruction
        assert lineage.records[0].instruction == text
        rules.update(one.rule for one in lineage.rejected)
        assert len(lineage.records) + len(lineage.rejected) == 5
    assert rules["copied_prompt"] > 100 if copied else set(rules) <= {"no_gain", "empty_instruction"}

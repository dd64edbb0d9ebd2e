"""One lineage through its rounds, against a model that follows a script."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from data_gen import operations, world
from data_gen.choice import Plan
from data_gen.config import EvolveConfig, OpenAICompatible, Pilot, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage, drawn_operation, evolve_lineage, keyed_number
from data_gen.llm.chat import (
    Ambiguous,
    ChatReply,
    ChatRequest,
    NotSent,
    Permanent,
)
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.operations import OPERATIONS
from data_gen.records import Record, Turn

SEED = Record(id="000007/0", lineage="000007", turns=(Turn("user", "Name a prime."),), source="seeds.jsonl")


def reply(text: str, **changes: Any) -> ChatReply:
    return replace(ChatReply(text=text, finish_reason="stop", model="scripted-1"), **changes)


def well_behaved(request: ChatRequest) -> str:
    """Adds the round to an instruction, finds nothing equal, answers with the length of the instruction."""
    asked = operations.recognise(request.messages[-1].content)
    if asked is None:
        return f"Answer of {len(request.messages[-1].content)} characters."
    return "Not Equal" if asked.kind == "equal" else f"{asked.instruction} More in round {request.key.round}."


PUBLISHED_RULES = ("no_gain", "refusal", "empty_answer", "copied_prompt")
"""A scripted rewrite adds no data, whatever the operation."""


@dataclass
class Scripted:
    """A `ChatModel` that behaves well but for the (round, purpose) pairs that the script names."""

    script: dict[tuple[int, str], ChatReply | Exception] = field(default_factory=dict)
    asked: list[ChatRequest] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        said = self.script.get((request.key.round, request.key.purpose), None)
        if isinstance(said, Exception):
            raise said
        return said or reply(well_behaved(request))


def config(**changes: Any) -> EvolveConfig:
    llm = OpenAICompatible(model="some-model")
    return replace(EvolveConfig(seeds=SimulatedSeeds(count=1), llm=llm, eliminate=PUBLISHED_RULES), **changes)


def drawn(round_: int, *, lineage: str = "000007", seed: int = 0) -> str:
    """The name of the operation that a lineage is rewritten by."""
    plan = Plan.uniform(config().operations, 8)
    operation, propensity = drawn_operation(plan, seed=seed, source="seeds.jsonl", lineage=lineage, round_=round_)
    assert propensity == 0.166667
    return operation.name


def evolved(seed: Record = SEED, *, model: Any, **changes: Any) -> Lineage:
    return asyncio.run(evolve_lineage(seed, model=model, config=config(**changes)))


def test_a_lineage_holds_the_answered_seed_and_one_record_a_round() -> None:
    model = Scripted()
    lineage = evolved(model=model)
    assert not lineage.rejected
    assert [record.id for record in lineage.records] == [f"000007/{round_}" for round_ in range(5)]
    assert [record.parent for record in lineage.records] == ["", *(f"000007/{round_}" for round_ in range(4))]
    assert [record.round for record in lineage.records] == [0, 1, 2, 3, 4]
    assert all(record.model == "scripted-1" for record in lineage.records)
    assert all(record.source == "seeds.jsonl" for record in lineage.records)
    assert lineage.records[1].turns == (
        Turn("user", "Name a prime. More in round 1."),
        Turn("assistant", "Answer of 30 characters."),
    )
    assert lineage.records[4].instruction == "Name a prime." + "".join(f" More in round {r}." for r in range(1, 5))


def test_each_round_asks_to_evolve_to_judge_and_to_answer_in_that_order() -> None:
    model = Scripted()
    evolved(model=model, rounds=2)
    assert [(request.key.round, request.key.purpose) for request in model.asked] == [
        (0, "answer"),
        (1, "evolve"),
        (1, "judge"),
        (1, "answer"),
        (2, "evolve"),
        (2, "judge"),
        (2, "answer"),
    ]


def test_requests_carry_the_settings_and_a_seed_of_their_own() -> None:
    model = Scripted()
    evolved(model=model)
    for request in model.asked:
        assert (request.model, request.temperature, request.top_p, request.max_tokens) == ("some-model", 1.0, 0.9, 2048)
        assert 0 <= request.seed < 2**31
    assert len({request.seed for request in model.asked}) == len(model.asked)
    again = Scripted()
    evolved(model=again)
    assert [request.digest for request in again.asked] == [request.digest for request in model.asked]


def test_the_answer_is_asked_for_with_the_instruction_alone() -> None:
    model = Scripted()
    lineage = evolved(model=model, rounds=1)
    assert [m.content for m in model.asked[-1].messages] == [lineage.records[1].instruction]


def test_operations_are_drawn_evenly_and_by_key_alone() -> None:
    counts = Counter(drawn(round_, lineage=f"{lineage:06d}") for lineage in range(1000) for round_ in range(1, 5))
    expected = 4000 / 6
    assert set(counts) == set(config().operations)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5  # p = 0.001 at 5 degrees
    first = [drawn(1, lineage=f"{n:06d}") for n in range(50)]
    assert first == [drawn(1, lineage=f"{n:06d}") for n in range(50)]
    assert first != [drawn(1, lineage=f"{n:06d}", seed=1) for n in range(50)]


def test_the_numbers_that_choices_are_drawn_from_are_those_of_every_version() -> None:
    assert keyed_number(0, "000001", 2, "evolve") == 17595352789024379879
    assert keyed_number(7, "séed \ud800", 0, "operation") == 6008653122720951446


def test_depth_counts_the_accepted_in_depth_rounds_only() -> None:
    lineage = evolved(model=Scripted({(2, "judge"): reply("Equal")}), rounds=8)
    depth = 0
    for record in lineage.records[1:]:
        depth += OPERATIONS[record.operation].kind == "depth"
        assert record.depth == depth
    assert {OPERATIONS[record.operation].kind for record in lineage.records[1:]} == {"depth", "breadth"}
    assert lineage.records[-1].depth < 7


@pytest.mark.parametrize(
    ("purpose", "said", "rule"),
    [
        ("evolve", reply("  NAME a prime.  More in round 1."), "no_gain"),
        ("evolve", reply("The given prompt asks for two primes."), "copied_prompt"),
        ("evolve", reply("I'm sorry, I can not."), "refusal"),
        ("evolve", reply(""), "empty_instruction"),
        ("evolve", reply("..."), "empty_instruction"),
        ("evolve", reply("Name two pri", finish_reason="length"), "truncated"),
        ("evolve", reply("", finish_reason="filtered"), "refused_request"),
        ("evolve", reply("", finish_reason="unreadable"), "unreadable_reply"),
        ("evolve", reply("half a pair: \ud83d"), "unreadable_reply"),
        ("evolve", Permanent("too long", scope="request"), "refused_request"),
        ("evolve", NotSent("429"), "gave_up"),
        ("evolve", Ambiguous("time-out"), "gave_up"),
        ("judge", reply("Equal"), "no_gain"),
        ("judge", reply("Hm."), "unreadable_reply"),
        ("judge", reply("Not Eq", finish_reason="length"), "truncated"),
        ("judge", Ambiguous("time-out"), "gave_up"),
        ("answer", reply("Sorry, no."), "refusal"),
        ("answer", reply("..."), "empty_answer"),
        ("answer", reply(" "), "empty_answer"),
        ("answer", reply("The first pri", finish_reason="length"), "truncated"),
        ("answer", reply("", finish_reason="unreadable"), "unreadable_reply"),
        ("answer", Permanent("policy", scope="request"), "refused_request"),
        ("answer", Ambiguous("time-out"), "gave_up"),
    ],
)
def test_a_failed_round_is_kept_with_its_reason_and_the_instruction_tried_again_unchanged(
    purpose: str, said: ChatReply | Exception, rule: str
) -> None:
    model = Scripted({(2, purpose): said})
    lineage = evolved(model=model)
    (rejected,) = lineage.rejected
    assert (rejected.lineage, rejected.round, rejected.rule) == ("000007", 2, rule)
    assert rejected.operation == drawn(2)
    assert rejected.evidence
    assert rejected.source == "seeds.jsonl"
    assert [record.round for record in lineage.records] == [0, 1, 3, 4]
    assert lineage.records[2].parent == "000007/1"
    assert lineage.records[2].instruction == "Name a prime. More in round 1. More in round 3."
    if purpose != "evolve":
        assert rejected.instruction == "Name a prime. More in round 1. More in round 2."
    if purpose == "judge":
        assert not any(request.key.round == 2 and request.key.purpose == "answer" for request in model.asked)


def test_a_retried_instruction_may_get_another_operation() -> None:
    script: dict[tuple[int, str], ChatReply | Exception] = {(r, "evolve"): reply("") for r in range(1, 9)}
    lineage = evolved(model=Scripted(script), rounds=8)
    assert len({rejected.operation for rejected in lineage.rejected}) > 1


def test_an_identical_rewrite_is_dropped_without_asking_the_judge() -> None:
    model = Scripted({(1, "evolve"): reply("name a prime.")})
    evolved(model=model, rounds=1)
    assert "judge" not in {request.key.purpose for request in model.asked}


@pytest.mark.parametrize(
    ("rule", "purpose", "said"),
    [
        ("no_gain", "judge", "Equal"),
        ("refusal", "answer", "Sorry, no."),
        ("empty_answer", "answer", "It is."),
        ("copied_prompt", "evolve", "The given prompt asks for two primes."),
    ],
)
def test_each_rule_can_be_switched_off(rule: str, purpose: str, said: str) -> None:
    rules = config().eliminate
    model = Scripted({(1, purpose): reply(said)})
    assert evolved(model=model, rounds=1).rejected
    lineage = evolved(model=model, rounds=1, eliminate=tuple(one for one in rules if one != rule))
    assert not lineage.rejected


def test_without_rule_1_no_judge_is_paid() -> None:
    model = Scripted()
    evolved(model=model, eliminate=())
    assert "judge" not in {request.key.purpose for request in model.asked}


def test_nothing_empty_becomes_a_record_even_with_every_rule_off() -> None:
    model = Scripted({(1, "evolve"): reply(""), (2, "answer"): reply("")})
    lineage = evolved(model=model, rounds=2, eliminate=())
    assert [rejected.rule for rejected in lineage.rejected] == ["empty_instruction", "empty_answer"]
    assert all(turn.content for record in lineage.records for turn in record.turns)


def test_an_instruction_evolves_although_its_seed_was_not_answered() -> None:
    lineage = evolved(model=Scripted({(0, "answer"): reply("Sorry.")}), rounds=1)
    (rejected,) = lineage.rejected
    assert (rejected.round, rejected.operation, rejected.rule) == (0, "", "refusal")
    assert (rejected.instruction, rejected.answer) == ("Name a prime.", "Sorry.")
    assert [(record.round, record.parent) for record in lineage.records] == [(1, "000007/0")]


def test_a_seeds_own_answer_is_replaced_or_kept_as_told() -> None:
    seed = replace(SEED, turns=(*SEED.turns, Turn("assistant", "7")))
    replaced = evolved(seed, model=Scripted(), rounds=1).records
    kept = evolved(seed, model=Scripted(), rounds=1, answer_seeds="keep").records
    assert (replaced[0].answer, replaced[0].model) == ("Answer of 13 characters.", "scripted-1")
    assert (kept[0].answer, kept[0].model) == ("7", "")
    assert replaced[1] == kept[1]
    assert evolved(model=Scripted(), rounds=0, answer_seeds="keep").records[0].answer, "a seed without one is answered"


def test_earlier_turns_are_the_context_of_rewrite_and_answer() -> None:
    context = (Turn("system", "Be brief."), Turn("user", "Name a prime."), Turn("assistant", "7"))
    seed = replace(SEED, turns=(*context, Turn("user", "Name another."), Turn("assistant", "11")))
    model = Scripted()
    lineage = evolved(seed, model=model, rounds=1)
    for record in lineage.records:
        assert record.context == context
    for request in model.asked:
        roles = [message.role for message in request.messages]
        assert roles == (["user"] if request.key.purpose == "judge" else ["system", "user", "assistant", "user"])


def test_steps_are_counted_for_tasks_of_the_simulated_world_and_grow() -> None:
    (text,) = world.sample_seeds(1, seed=4)
    seed = replace(SEED, turns=(Turn("user", text),))
    lineage = evolved(seed, model=SimulatedChatModel(Simulated()), llm=Simulated())
    assert lineage.records[0].steps == 1
    assert [record.steps for record in lineage.records] == [
        world.count_steps(record.instruction) for record in lineage.records
    ]
    assert max(record.steps for record in lineage.records) > 1
    assert all(world.answer(task) == r.answer for r in lineage.records if (task := world.parse(r.instruction)))
    assert evolved(model=Scripted()).records[1].steps == 0


def test_what_would_fail_for_every_request_ends_the_run() -> None:
    with pytest.raises(Permanent, match="no such key"):
        evolved(model=Scripted({(1, "judge"): Permanent("no such key", scope="run")}))


def test_a_lineage_comes_out_the_same_whatever_runs_beside_it() -> None:
    class Jittery(Scripted):
        async def complete(self, request: ChatRequest) -> ChatReply:
            await asyncio.sleep(request.seed % 7 / 2000)
            return reply(f"{well_behaved(request)} [{request.seed}]")

    seeds = [replace(SEED, id=f"{n:06d}/0", lineage=f"{n:06d}") for n in range(12)]

    async def together() -> list[Lineage]:
        model = Jittery()
        return await asyncio.gather(*(evolve_lineage(seed, model=model, config=config()) for seed in seeds))

    assert asyncio.run(together()) == [evolved(seed, model=Jittery()) for seed in seeds]


def test_a_lineage_comes_back_from_its_text_as_it_was() -> None:
    lineage = evolved(model=Scripted({(2, "answer"): reply('Sorry, "\u2028" and 🎲.')}))
    assert lineage.records
    assert lineage.rejected
    assert Lineage.from_json(lineage.to_json()) == lineage


# --- what is new beside the published method


def test_a_record_says_who_wrote_it_how_likely_its_operation_was_and_how_many_words_it_adds() -> None:
    first, *others = evolved(model=Scripted()).records
    assert (first.evolver, first.propensity, first.words_added) == ("", 0.0, 0)
    for record in others:
        assert (record.evolver, record.propensity, record.words_added) == ("scripted-1", 0.166667, 4)


def test_data_that_was_to_be_added_and_is_none_is_dropped_before_anybody_judges_it() -> None:
    rules = (*PUBLISHED_RULES, "invalid_input")
    model = Scripted()
    lineage = evolved(model=model, rounds=1, operations=("complicate_input",), eliminate=rules)
    assert [one.rule for one in lineage.rejected] == ["invalid_input"]
    assert {request.key.purpose for request in model.asked} == {"answer", "evolve"}
    assert not evolved(model=Scripted(), rounds=1, operations=("deepening",), eliminate=rules).rejected
    held = 'Name a prime of these.\n```json\n{"numbers": [4, 7]}\n```'
    lineage = evolved(
        model=Scripted({(1, "evolve"): reply(held)}), rounds=1, operations=("complicate_input",), eliminate=rules
    )
    assert lineage.records[1].instruction == held


def test_too_few_words_are_dropped_where_that_rule_is_on_and_the_operation_adds_any() -> None:
    rules = (*PUBLISHED_RULES, "word_count")
    short = evolved(model=Scripted(), rounds=2, operations=("deepening",), eliminate=rules)
    assert [one.rule for one in short.rejected] == ["word_count"] * 2
    assert not evolved(model=Scripted(), rounds=2, operations=("in_breadth",), eliminate=rules).rejected


@pytest.mark.parametrize(
    ("verdict", "rule"), [("Equal", ""), ("Not Equal", "changed_meaning"), ("Hm.", "unreadable_reply")]
)
def test_a_paraphrase_is_kept_where_the_judge_finds_it_equal(verdict: str, rule: str) -> None:
    model = Scripted({(1, "judge"): reply(verdict)})
    lineage = evolved(model=model, rounds=1, operations=("paraphrase",), eliminate=("changed_meaning",))
    assert [one.rule for one in lineage.rejected] == [rule] * bool(rule)
    if not rule:
        assert (lineage.records[1].operation, lineage.records[1].depth) == ("paraphrase", 0)


def test_a_way_down_is_no_depth() -> None:
    lineage = evolved(model=Scripted(), rounds=2, operations=("downward",))
    assert [record.depth for record in lineage.records] == [0, 0, 0]


def scores(*said: str) -> dict[tuple[int, str], ChatReply | Exception]:
    return {(round_, "difficulty"): reply(text) for round_, text in enumerate(said)}


@pytest.mark.parametrize(
    ("said", "rounds"),
    [
        (("3", "5", "5", "9"), [0, 1, 2]),  # no gain in round 2
        (("3", "5", "7", "9"), [0, 1, 2, 3, 4]),
        (("9", "3"), [0, 1]),
        (("3", "five", "4", "9"), [0, 1, 2, 3, 4]),  # what can not be read is no gain that is too small
        (("3", "5", "?", "1"), [0, 1, 2, 3, 4]),
    ],
)
def test_a_lineage_stops_where_what_the_judge_measured_falls_short(said: tuple[str, ...], rounds: list[int]) -> None:
    model = Scripted(scores(*said))
    lineage = evolved(model=model, stop="lineage", pilot=Pilot(margin=1.0))
    assert [record.round for record in lineage.records] == rounds
    scored = [request.key.round for request in model.asked if request.key.purpose == "difficulty"]
    assert sorted(set(scored)) == [round_ for round_ in rounds if round_ < 4], "on the last round's nothing depends"


def test_what_was_dropped_is_measured_as_little_as_a_seed_twice() -> None:
    model = Scripted({**scores("3", "5", "?", "7"), (2, "evolve"): reply("")})
    lineage = evolved(model=model, stop="lineage", pilot=Pilot(margin=1.0))
    assert [record.round for record in lineage.records] == [0, 1, 3, 4]
    scored = [request.key.round for request in model.asked if request.key.purpose == "difficulty"]
    assert scored == [0, 1, 3]


def test_each_operation_is_judged_for_its_own_rule_and_only_where_that_is_on() -> None:
    for operation, rule, other in (
        ("paraphrase", "changed_meaning", "no_gain"),
        ("deepening", "no_gain", "changed_meaning"),
    ):
        for rules, is_judged in (((rule,), True), ((other,), False)):
            model = Scripted({(1, "judge"): reply("Equal" if rule == "changed_meaning" else "Not Equal")})
            evolved(model=model, rounds=1, operations=(operation,), eliminate=rules)
            assert ("judge" in [request.key.purpose for request in model.asked]) is is_judged, (operation, rules)

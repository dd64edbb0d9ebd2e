"""The six operations and the judge's prompt."""

from __future__ import annotations

import ast
import html.parser
import json
import re
import sqlite3
import subprocess
import xml.etree.ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import world
from data_gen.config import EvolveConfig, Simulated, SimulatedSeeds
from data_gen.eliminate import PROMPT_PHRASES
from data_gen.operations import OPERATIONS, Recognised, equal_prompt, recognise

NAMES = sorted(OPERATIONS)
PIECES = (
    "{instruction}",
    "{first}",
    "{fence}",
    "{}",
    "\\1",
    "=====",
    "==========\n",
    "\n\nInstruction 2\n=====\n",
    "[Starting instruction]\n",
    "\n\n[Harder instruction]",
    OPERATIONS["deepening"].prompt("x"),
    equal_prompt("a", "b"),
)
TEXTS = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(PIECES)), max_size=5).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(instruction=TEXTS)
def test_an_operation_is_recognised_by_its_prompt_whatever_the_instruction_holds(name: str, instruction: str) -> None:
    prompt = OPERATIONS[name].prompt(instruction)
    assert recognise(prompt) == Recognised("operation", name, instruction)


@given(first=TEXTS, second=TEXTS)
def test_the_judges_prompt_gives_both_instructions_back(first: str, second: str) -> None:
    assert recognise(equal_prompt(first, second)) == Recognised("equal", "equal", first, second)


@given(text=st.text())
def test_other_text_is_not_recognised(text: str) -> None:
    assert recognise(text) is None


def test_text_around_a_prompt_is_not_recognised() -> None:
    assert recognise(f"{OPERATIONS['deepening'].prompt('x')} And then?") is None


def test_the_published_operations_are_there_and_are_the_default() -> None:
    config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=Simulated())
    assert tuple(OPERATIONS) == config.operations
    assert [name for name in OPERATIONS if OPERATIONS[name].kind == "breadth"] == ["in_breadth"]


@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_has_one_slot_and_the_published_properties(name: str) -> None:
    operation = OPERATIONS[name]
    assert re.findall(r"\{\w+\}", operation.template) == ["{instruction}"]
    assert "be able to answer it" in operation.template
    assert "with nothing else" in operation.template
    if operation.kind == "depth":
        assert "only a bit harder" in operation.template
        assert "10 to 20 words more" in operation.template
        assert "tables, code" in operation.template
    else:
        assert "much more rarely" in operation.template
        assert "about as long and about as difficult" in operation.template


@pytest.mark.parametrize("name", NAMES)
def test_rule_4_knows_the_labels_of_each_prompt(name: str) -> None:
    labels = [label.lower() for label in re.findall(r"\[([A-Z][^\]]+)\]", OPERATIONS[name].template)]
    assert len(labels) == 2
    assert set(labels) <= set(PROMPT_PHRASES)


def test_complicate_input_demonstrates_six_notations_that_parse() -> None:
    blocks = dict(re.findall(r"```(\w+)\n(.*?)\n```", OPERATIONS["complicate_input"].template, re.DOTALL))
    assert sorted(blocks) == ["html", "json", "python", "shell", "sql", "xml"]
    xml.etree.ElementTree.fromstring(blocks["xml"])
    sqlite3.connect(":memory:").executescript(blocks["sql"])
    ast.parse(blocks["python"])
    html.parser.HTMLParser().feed(blocks["html"])
    subprocess.run(["bash", "-n"], input=blocks["shell"].encode(), check=True)
    json.loads(blocks["json"])


@pytest.mark.parametrize(
    ("reply", "instruction"),
    [
        ("Name a prime above 100.", "Name a prime above 100."),
        ("  Name a prime.\n\n", "Name a prime."),
        ('"Name a prime."', "Name a prime."),
        ("“Name a prime.”", "Name a prime."),
        ("[Harder instruction]\nName a prime.", "Name a prime."),
        ("#Rewritten Prompt#:\nName a prime.", "Name a prime."),
        ('**New instruction:** "Name a prime."', "Name a prime."),
        ("Here is the rewritten instruction:\n\nName a prime.", "Name a prime."),
        ("```\nName a prime.\n```", "Name a prime."),
        ("```text\nSort this:\n[3, 1]\n```", "Sort this:\n[3, 1]"),
        ("'Who' or 'whom'", "'Who' or 'whom'"),
        ('"a" comes before "b": why?', '"a" comes before "b": why?'),
        ("```python\nx = 1\n```", "```python\nx = 1\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("New York is how old?", "New York is how old?"),
        ("The rewritten prompt is: name a prime.", "The rewritten prompt is: name a prime."),
        ("", ""),
        (" \n", ""),
        ("...", ""),
        ("```\n\n```", ""),
    ],
)
def test_the_instruction_is_read_out_of_what_models_put_around_it(reply: str, instruction: str) -> None:
    assert OPERATIONS["add_constraints"].parse(reply) == instruction


@given(reply=st.text(st.sampled_from("\"'`#*[]: \nab…“”"), max_size=40))
def test_reading_a_reply_twice_changes_nothing(reply: str) -> None:
    operation = OPERATIONS["deepening"]
    assert operation.parse(operation.parse(reply)) == operation.parse(reply)


def test_tasks_of_the_simulated_world_come_through_a_reply_unchanged() -> None:
    for text in world.sample_seeds(50, seed=3):
        assert OPERATIONS["deepening"].parse(text) == text

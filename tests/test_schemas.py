"""Every schema is read for what it says, wild conversations are mended, and a row that can not be used says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from seed_files import Rows, as_array, as_lines, as_parquet

from configs.errors import UserError
from data_gen.config import SeedFile
from data_gen.records import Record, Role, Turn
from data_gen.sources import SourceError, check_seeds, load_seeds

Said = list[tuple[Role, str]]

ROWS: dict[str, tuple[dict[str, Any], list[Said]]] = {
    "alpaca": (
        {"instruction": "Sort these.", "input": "3 1 2", "output": "1 2 3"},
        [[("user", "Sort these.\n3 1 2"), ("assistant", "1 2 3")]],
    ),
    "alpaca without input": (
        {"instruction": "Name a prime.", "input": "", "output": "7"},
        [[("user", "Name a prime."), ("assistant", "7")]],
    ),
    "conversations with the names of messages": (
        {"conversations": [{"role": "user", "content": "Hi."}, {"role": "model", "content": "Hello."}]},
        [[("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "messages with the names of ShareGPT": (
        {"messages": [{"from": "human", "value": "Hi.", "role": None}, {"from": "gpt", "value": "Hello."}]},
        [[("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "alpaca without an answer": ({"instruction": "Name a prime.", "output": ""}, [[("user", "Name a prime.")]]),
    "wizardlm 70k and evol-codealpaca": (
        {"instruction": "Write a loop.", "output": "for x in y: ..."},
        [[("user", "Write a loop."), ("assistant", "for x in y: ...")]],
    ),
    "self-instruct": (
        {
            "id": "seed_task_1",
            "name": "relation",
            "instruction": "Which relation?",
            "instances": [{"input": "Night : Day", "output": "Opposites."}, {"input": "Cat : Pet", "output": "Kind."}],
            "is_classification": False,
        },
        [
            [("user", "Which relation?\nNight : Day"), ("assistant", "Opposites.")],
            [("user", "Which relation?\nCat : Pet"), ("assistant", "Kind.")],
        ],
    ),
    "self-instruct without instances": (
        {"instruction": "Name a prime.", "instances": []},
        [[("user", "Name a prime.")]],
    ),
    "dolly": (
        {"instruction": "When?", "context": "It was in 1889.", "response": "1889", "category": "closed_qa"},
        [[("user", "When?\nIt was in 1889."), ("assistant", "1889")]],
    ),
    "sharegpt": (
        {
            "id": "x",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi."},
                {"from": "gpt", "value": "Hello."},
                {"from": "human", "value": "Bye."},
                {"from": "gpt", "value": "See you."},
            ],
        },
        [
            [
                ("system", "Be brief."),
                ("user", "Hi."),
                ("assistant", "Hello."),
                ("user", "Bye."),
                ("assistant", "See you."),
            ]
        ],
    ),
    "sharegpt that begins with an answer": (
        {"conversations": [{"from": "gpt", "value": "... and so on."}, {"from": "user", "value": "Go on."}]},
        [[("user", "Go on.")]],
    ),
    "wizardlm v2": (
        {"idx": "k1", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
        [[("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "slimorca": (
        {
            "conversations": [
                {"from": "system", "value": "Think.", "weight": None},
                {"from": "human", "value": "1+1?", "weight": 0.0},
                {"from": "gpt", "value": "2", "weight": 1.0},
            ]
        },
        [[("system", "Think."), ("user", "1+1?"), ("assistant", "2")]],
    ),
    "sharegpt with the system prompt beside the turns": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}],
        },
        [[("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "messages with the system prompt beside them": (
        {"system_prompt": "Be brief.", "messages": [{"role": "user", "content": "Hi."}]},
        [[("system", "Be brief."), ("user", "Hi.")]],
    ),
    "a system prompt among the turns goes before one beside them": (
        {
            "system": "Be long.",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
        },
        [[("system", "Be brief."), ("user", "Hi.")]],
    ),
    "openorca": (
        {"id": "niv.1", "system_prompt": "Think.", "question": "1+1?", "response": "2"},
        [[("system", "Think."), ("user", "1+1?"), ("assistant", "2")]],
    ),
    "openorca with an empty system prompt": (
        {"id": "flan.1", "system_prompt": "", "question": "1+1?", "response": "2"},
        [[("user", "1+1?"), ("assistant", "2")]],
    ),
    "flan": (
        {"inputs": "Is it so?", "targets": "yes", "task_name": "boolq", "task_source": "P3", "template_type": "zs_opt"},
        [[("user", "Is it so?"), ("assistant", "yes")]],
    ),
    "super-naturalinstructions": (
        {
            "Contributors": ["A"],
            "Source": ["b"],
            "Definition": ["Answer the question."],
            "Positive Examples": [{"input": "x", "output": "y", "explanation": "z"}],
            "Negative Examples": [],
            "Instances": [
                {"id": "1", "input": "2+2?", "output": ["4", "four"]},
                {"id": "2", "input": "3+3?", "output": ["6"]},
            ],
        },
        [
            [("user", "Answer the question.\n2+2?"), ("assistant", "4")],
            [("user", "Answer the question.\n3+3?"), ("assistant", "6")],
        ],
    ),
    "ultrachat": (
        {"id": "0", "data": ["Hi.", "Hello.", "Bye.", "See you."]},
        [[("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "See you.")]],
    ),
    "ultrachat_200k": (
        {
            "prompt": "Hi.",
            "prompt_id": "ab",
            "messages": [{"content": "Hi.", "role": "user"}, {"content": "Hello.", "role": "assistant"}],
        },
        [[("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "prompt and completion": (
        {"prompt": "Hi.", "completion": "Hello."},
        [[("user", "Hi."), ("assistant", "Hello.")]],
    ),
    "question and answer": ({"question": "1+1?", "answer": "2"}, [[("user", "1+1?"), ("assistant", "2")]]),
    "query and response": ({"query": "1+1?", "response": "2"}, [[("user", "1+1?"), ("assistant", "2")]]),
    "only an instruction": ({"instruction": " Name\u2028a prime. "}, [[("user", "Name\u2028a prime.")]]),
}


def seeds_of(path: Path) -> list[Record]:
    return load_seeds(SeedFile(path=str(path)))


def refusal_of(rows: list[Any], folder: Path) -> str:
    path = as_lines(rows, folder)
    with pytest.raises(SourceError) as caught:
        check_seeds(SeedFile(path=str(path)))
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", [as_lines, as_array, as_parquet])
@pytest.mark.parametrize("name", ROWS)
def test_each_schema_is_read_by_its_keys(name: str, form: Callable[[Rows, Path], Path], tmp_path: Path) -> None:
    row, conversations = ROWS[name]
    records = seeds_of(form([row], tmp_path).rename(tmp_path / "any.name"))
    expected = [tuple(Turn(role, content) for role, content in turns) for turns in conversations]
    assert [record.turns for record in records] == expected


def test_schemas_may_be_mixed_and_lineages_are_the_numbers_of_the_seeds(tmp_path: Path) -> None:
    rows = [row for row, _ in ROWS.values() if "idx" not in row]
    count = sum(len(conversations) for row, conversations in ROWS.values() if "idx" not in row)
    records = seeds_of(as_lines([*rows, *rows], tmp_path))
    assert [record.lineage for record in records] == [f"{n:06d}" for n in range(2 * count)]
    assert [record.id for record in records] == [f"{record.lineage}/0" for record in records]
    assert {record.source for record in records} == {"seeds.jsonl"}
    assert records[0].turns == records[count].turns, "a seed that comes twice is two lineages"
    assert not any(record.operation or record.parent or record.model for record in records)


def test_a_table_has_the_columns_of_all_its_rows_and_each_is_read_by_those_that_it_fills(tmp_path: Path) -> None:
    names = ("alpaca", "self-instruct", "dolly", "sharegpt", "openorca", "flan", "ultrachat", "ultrachat_200k")
    rows = [ROWS[name][0] for name in names]
    columns = {key: None for row in rows for key in row}
    table = seeds_of(as_parquet([columns | row for row in rows], tmp_path))
    assert table == [replace(one, source="seeds.parquet") for one in seeds_of(as_lines(rows, tmp_path))]


def test_an_unknown_schema_names_the_keys_seen_and_the_schemas_known(tmp_path: Path) -> None:
    message = refusal_of([{"prompt": "a"}, {"text": "b", "label": 1}], tmp_path)
    assert "1 of 2 rows" in message
    assert "row 2: unknown schema, with the keys 'text', 'label'" in message
    for name in ("Alpaca", "self-instruct", "ShareGPT", "messages", "plain"):
        assert name in message


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"instruction": "", "output": "7"}, "the instruction is empty"),
        ({"instruction": " \n ", "input": "3 1 2"}, "the instruction is empty"),
        ({"instruction": None, "instances": []}, "the instruction is empty"),
        ({"instances": [{"input": "a"}]}, "the instruction is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "the instruction is empty"),
        ({"prompt": 7}, "'prompt' is not a text but int"),
        ({"prompt": "a", "input": ["b"]}, "'input' is not a text but list"),
        ({"prompt": "\ud83d"}, "not Unicode"),
        ({"instruction": "a", "instances": {}}, "'instances' is not a list of objects"),
        ({"conversations": "hello"}, "'conversations' is not a list of objects"),
        ({"conversations": []}, "no user turn"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "no user turn"),
        ({"conversations": [{"from": "eliza", "value": "a"}]}, "unknown speaker 'eliza'"),
        ({"messages": [{"content": "a"}]}, "unknown speaker None"),
        ({"messages": [{"role": "system", "content": "a"}] * 2}, "do not take turns"),
        ({"conversations": [{"from": "gpt", "value": "a"}] * 2}, "do not take turns"),
        ({"Definition": 7, "Instances": []}, "'Definition' is not a list of texts"),
        ({"data": [{"role": "user"}]}, "'data' is not a list of texts"),
        ({"data": ["", "a"]}, "the instruction is empty"),
        (["prompt", "a"], "not a JSON object but list"),
        ({}, "unknown schema, with the keys (none)"),
    ],
)
def test_a_row_that_can_not_be_used_is_named_with_its_fault(row: Any, fault: str, tmp_path: Path) -> None:
    message = refusal_of([{"prompt": "a"}, row], tmp_path)
    assert "row 2: " in message
    assert fault in message


# --- conversations


def turns(*speakers: str) -> dict[str, Any]:
    """A row in which each speaker says its own number; nothing where the name ends in !."""
    return {
        "conversations": [
            {"from": speaker.rstrip("!"), "value": "" if speaker.endswith("!") else str(number)}
            for number, speaker in enumerate(speakers)
        ]
    }


@pytest.mark.parametrize(
    ("row", "kept", "how"),
    [
        (turns("human", "gpt", "gpt", "human"), ["0", "1"], "cut where user and assistant do not take turns"),
        (turns("human", "gpt", "human", "human"), ["0", "1", "2"], "cut where user and assistant do not take turns"),
        (turns("human", "human"), ["0"], "cut where user and assistant do not take turns"),
        (turns("system", "human", "system"), ["0", "1"], "cut where user and assistant do not take turns"),
        (turns("human", "gpt!"), ["0"], "cut before an empty turn"),
        (turns("human", "gpt", "human!", "gpt"), ["0", "1"], "cut before an empty turn"),
        (turns("gpt", "human", "gpt"), ["1", "2"], "an answer before the first question was left out"),
        (turns("system!", "human"), ["1"], None),
        (turns("prompter", "bing", "USER", "Bard"), ["0", "1", "2", "3"], None),
    ],
)
def test_a_conversation_is_cut_to_its_good_beginning_and_told(
    row: dict[str, Any], kept: list[str], how: str | None, tmp_path: Path
) -> None:
    path = as_lines([row], tmp_path)
    (record,) = seeds_of(path)
    assert [turn.content for turn in record.turns] == kept
    found = check_seeds(SeedFile(path=str(path)))
    assert found.mended == ({how: 1} if how else {})
    assert found.told() == ([f"1 row mended: {how}"] if how else [])

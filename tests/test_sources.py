"""Seeds: every schema is read for what it says, and what can not be used is named row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from data_gen import world
from data_gen.config import SeedFile, SimulatedSeeds
from data_gen.records import Record, Role, Turn
from data_gen.sources import SourceError, load_seeds

SHARED = Path(__file__).parents[2] / "shared" / "data"

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


def written(path: Path, rows: list[Any], *, form: str = "lines") -> Path:
    text = json.dumps(rows, ensure_ascii=False) if form == "array" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def seeds_of(path: Path, *, limit: int = 0) -> list[Record]:
    return load_seeds(SeedFile(path=str(path), limit=limit))


def refusal_of(path: Path, *, limit: int = 0) -> str:
    with pytest.raises(SourceError) as caught:
        seeds_of(path, limit=limit)
    assert isinstance(caught.value, UserError)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["lines", "array"])
@pytest.mark.parametrize("name", ROWS)
def test_each_schema_is_read_by_its_keys(name: str, form: str, tmp_path: Path) -> None:
    row, conversations = ROWS[name]
    records = seeds_of(written(tmp_path / "any.name", [row], form=form))
    expected = [tuple(Turn(role, content) for role, content in turns) for turns in conversations]
    assert [record.turns for record in records] == expected


def test_schemas_may_be_mixed_and_lineages_are_the_numbers_of_the_seeds(tmp_path: Path) -> None:
    rows = [row for row, _ in ROWS.values()]
    count = sum(len(conversations) for _, conversations in ROWS.values())
    records = seeds_of(written(tmp_path / "mixed.jsonl", [*rows, *rows]))
    assert [record.lineage for record in records] == [f"{n:06d}" for n in range(2 * count)]
    assert [record.id for record in records] == [f"{record.lineage}/0" for record in records]
    assert {record.source for record in records} == {"mixed.jsonl"}
    assert records[0].turns == records[count].turns, "a seed that comes twice is two lineages"
    assert not any(record.operation or record.parent or record.model for record in records)


def test_lines_may_end_in_crlf_be_blank_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes('\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'.encode())
    assert [record.instruction for record in seeds_of(path)] == ["a", "b"]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"nonsense": 1}])
    assert [record.instruction for record in seeds_of(path, limit=2)] == ["a", "b"]
    assert "row 3" in refusal_of(path, limit=3)
    with pytest.raises(SourceError, match="limit is -1"):
        seeds_of(path, limit=-1)


def test_a_missing_file_is_refused_and_what_may_be_named_is_said(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "absent.json")
    assert "there is no file" in message
    assert "a file, a folder, a glob such as 'tasks/*.json', or tfds:NAME" in message
    assert "there is no file" in refusal_of(tmp_path / "*.json")
    assert "holds no .json" in refusal_of(tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ] "])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert "is empty" in refusal_of(path)


def test_what_is_not_utf8_or_not_json_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    assert "not UTF-8 (byte 15)" in refusal_of(path)
    path.write_text('[{"prompt": "a"},\n{"prompt" "b"}]')
    assert "not JSON (line 2" in refusal_of(path)
    path.write_text("[" * 100_000)
    assert "not JSON" in refusal_of(path)
    path.write_text('[{"prompt": "a", "id": ' + "7" * 5000 + "}]")
    assert "too many digits" in refusal_of(path)
    path.write_text('{"prompt": "a"}\n{"prompt": "a", "id": ' + "7" * 5000 + "}")
    assert "row 2: not JSON" in refusal_of(path)
    path.write_text('{"prompt": "a"}\nhello\n\n{"prompt":\n')
    assert "2 of 3 rows" in refusal_of(path)
    assert "rows 2, 4: not JSON" in refusal_of(path)


def test_an_unknown_schema_names_the_keys_seen_and_the_schemas_known(tmp_path: Path) -> None:
    message = refusal_of(written(tmp_path / "a.json", [{"prompt": "a"}, {"text": "b", "label": 1}]))
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
    message = refusal_of(written(tmp_path / "a.jsonl", [{"prompt": "a"}, row]))
    assert "row 2: " in message
    assert fault in message


def test_many_bad_rows_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    message = refusal_of(written(tmp_path / "a.jsonl", [{"prompt": ""}] * 250))
    assert "250 of 250 rows" in message
    assert "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 240 more: the instruction is empty" in message
    assert len(refusal_of(written(tmp_path / "b.jsonl", [{f"key {n}": 1} for n in range(500)]))) < 3000


def test_simulated_seeds_are_tasks_of_the_world() -> None:
    records = load_seeds(SimulatedSeeds(count=20, seed=5))
    assert [record.instruction for record in records] == world.sample_seeds(20, seed=5)
    assert records[3].source == "simulated world (seed 5)"
    assert records[3].id == "000003/0"
    with pytest.raises(SourceError, match="at least one"):
        load_seeds(SimulatedSeeds(count=0))


@pytest.mark.skipif(not SHARED.exists(), reason="the published seed files are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "count"),
    [("self_instruct_seed_tasks.jsonl", 175), ("sharegpt_dummy_conversation.json", 500), ("gsm8k_test.jsonl", 1319)],
)
def test_published_files_are_read_whole(file: str, count: int) -> None:
    records = seeds_of(SHARED / file)
    assert len(records) == count
    assert all(record.instruction and record.answer for record in records)

"""OpenAssistant: the best reply is followed at every turn, in both of its forms, in whatever order messages come."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import seed_files

from data_gen.config import SeedFile
from data_gen.records import Record
from data_gen.sources import SourceError, check_seeds, iter_seeds

Message = dict[str, Any]


def message(
    name: str, parent: str | None = None, *, tree: str = "t", rank: float | None = None, **other: Any
) -> Message:
    """A row of the flat form; names of user messages begin with u."""
    return {
        "message_id": name,
        "parent_id": parent,
        "user_id": "x",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": f"text of {name}",
        "role": "prompter" if name.startswith("u") else "assistant",
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "message_tree_id": tree,
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [2]},
        **other,
    }


TREE = [
    message("u1"),
    message("a1", "u1", rank=1),
    message("a2", "u1", rank=0),
    message("a3", "u1"),
    message("u2", "a1"),
    message("u4", "a2"),
    message("u3", "a2"),
    message("a5", "u3"),
    message("a6", "u3", rank=2),
    message("a7", "u3", rank=0, deleted=True),
]
BEST = ["text of u1", "text of a2", "text of u3", "text of a6"]


def exported(messages: list[Message]) -> Message:
    """The same tree in the form of the tree export."""

    def with_replies(one: Message) -> Message:
        replies = [with_replies(other) for other in messages if other["parent_id"] == one["message_id"]]
        return {**one, "replies": replies}

    first = next(one for one in messages if one["parent_id"] is None)
    return {"message_tree_id": first["message_tree_id"], "tree_state": "x", "prompt": with_replies(first)}


def read(rows: list[Message], folder: Path, **settings: Any) -> list[Record]:
    return list(iter_seeds(SeedFile(path=str(seed_files.as_lines(rows, folder)), **settings)))


def texts(record: Record) -> list[str]:
    return [turn.content for turn in record.turns]


@pytest.mark.parametrize("form", ["flat", "export"])
def test_the_best_reply_is_followed_at_every_turn(form: str, tmp_path: Path) -> None:
    (record,) = read(TREE if form == "flat" else [exported(TREE)], tmp_path)
    assert texts(record) == BEST
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * 2
    assert record.instruction == "text of u3"


def test_messages_may_come_in_any_order_and_trees_keep_that_of_their_first_rows(tmp_path: Path) -> None:
    other = [message("u8", tree="s"), message("a8", "u8", tree="s")]
    rows = [*TREE, *other]
    rng = random.Random(7)
    for _ in range(20):
        rng.shuffle(rows)
        records = read(rows, tmp_path)
        first_tree = rows[0]["message_tree_id"]
        assert [texts(record)[0] for record in records] == (
            ["text of u1", "text of u8"] if first_tree == "t" else ["text of u8", "text of u1"]
        )
        assert len(texts(records[0 if first_tree == "t" else 1])) == 4


def test_both_forms_and_a_table_are_the_same_seeds(tmp_path: Path) -> None:
    trees = [
        [{**one, "message_tree_id": str(n), "message_id": f"{one['message_id']}/{n}"} for one in TREE] for n in range(9)
    ]
    for n, tree in enumerate(trees):
        for one in tree:
            one["parent_id"] = one["parent_id"] and f"{one['parent_id']}/{n}"
            one["text"] += f" of {n}"
    for name in ("flat", "export", "table"):
        (tmp_path / name).mkdir()
    flat = [one for tree in trees for one in tree]
    paths = [
        seed_files.as_lines(flat, tmp_path / "flat"),
        seed_files.as_lines([exported(tree) for tree in trees], tmp_path / "export"),
        seed_files.as_parquet(flat, tmp_path / "table"),
    ]
    found = [check_seeds(SeedFile(path=str(path))) for path in paths]
    assert len({one.sha256 for one in found}) == 1
    assert {one.count for one in found} == {9}
    assert [one.rows for one in found] == [90, 9, 90]


@pytest.mark.parametrize("form", ["flat", "export"])
def test_only_trees_in_the_language_wanted_are_taken(form: str, tmp_path: Path) -> None:
    trees = {
        "en": [message("u1", tree="1"), message("a1", "u1", tree="1", lang="de")],
        "pt-BR": [message("u2", tree="2", lang="pt-BR"), message("a2", "u2", tree="2", lang="pt-BR")],
        "de": [message("u3", tree="3", lang="de")],
    }
    rows = [one for tree in trees.values() for one in tree] if form == "flat" else [*map(exported, trees.values())]
    for language, first in {"en": "u1", "pt": "u2", "pt-br": "u2", "de": "u3"}.items():
        (record,) = read(rows, tmp_path, language=language)
        assert texts(record)[0] == f"text of {first}"
    found = check_seeds(SeedFile(path=str(tmp_path / "seeds.jsonl"), language="en"))
    assert found.told() == ["2 rows left out: not in the language 'en'"]
    with pytest.raises(SourceError, match=r"not one seed is left .*not in the language 'fr' \(3 rows\)"):
        check_seeds(SeedFile(path=str(tmp_path / "seeds.jsonl"), language="fr"))


def test_a_deleted_prompt_and_a_repeated_message_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [*TREE, TREE[0], message("u9", tree="gone", deleted=True), message("a9", "u9", tree="gone")]
    assert [texts(record) for record in read(rows, tmp_path)] == [BEST]
    found = check_seeds(SeedFile(path=str(tmp_path / "seeds.jsonl")))
    assert found.left_out == {"repeats an earlier row": 1, "deleted by its authors": 1}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"parent_id": "elsewhere"}, "a message tree whose first message is missing"),
        ({"parent_id": "u1"}, "a message tree whose first message is missing"),
        ({"message_tree_id": 7}, "'message_tree_id' is not a text but int"),
        ({"parent_id": 7}, "'parent_id' is not a text but int"),
        ({"text": ["a"]}, "'text' is not a text but list"),
        ({"text": "\ud83d"}, "text that is not Unicode"),
        ({"text": ""}, "the instruction is empty"),
        ({"role": "bot"}, "unknown speaker 'bot'"),
        ({"role": "assistant"}, "the conversation has no user turn"),
    ],
)
def test_messages_that_can_not_be_used_are_named(change: Message, fault: str, tmp_path: Path) -> None:
    path = seed_files.as_lines([message("u0", tree="0"), {**message("u1"), **change}], tmp_path)
    with pytest.raises(SourceError) as caught:
        check_seeds(SeedFile(path=str(path)))
    assert f"row 2: {fault}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"message_tree_id": "t", "prompt": "a"}, "'prompt' is not an object but str"),
        ({"message_tree_id": "t", "prompt": {}}, "unknown speaker None under 'role'"),
        (
            {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "a", "replies": 7}},
            "'replies' is not a list",
        ),
    ],
)
def test_an_export_that_can_not_be_used_is_named(row: Message, fault: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=fault):
        check_seeds(SeedFile(path=str(seed_files.as_lines([row], tmp_path))))


def test_ranks_that_are_no_numbers_come_last(tmp_path: Path) -> None:
    rows = [message("u1"), message("a1", "u1", rank=float("nan")), message("a2", "u1", rank=3), message("a3", "u1")]
    assert texts(read(rows, tmp_path)[0])[1] == "text of a2"
    rows[2]["rank"] = "0"
    assert texts(read(rows, tmp_path)[0])[1] == "text of a1", "the first of several without a rank"


def test_messages_that_point_at_each_other_end(tmp_path: Path) -> None:
    rows = [message("u1"), message("a1", "u1"), message("u2", "a2"), message("a2", "u2"), message("a3", "a3")]
    assert texts(read(rows, tmp_path)[0]) == ["text of u1", "text of a1"]


def test_a_limit_takes_the_first_trees(tmp_path: Path) -> None:
    rows = [message(f"u{n}", tree=str(n)) for n in range(9)]
    assert [texts(record) for record in read(rows, tmp_path, limit=2)] == [["text of u0"], ["text of u1"]]
    assert json.loads((tmp_path / "seeds.jsonl").read_text().splitlines()[0])["role"] == "prompter"

"""A task's file is the published one, whole and in its form; anything else is refused in one message, by row."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import task_files
from task_files import write_rows

from wizard_jax.evaluate import config
from wizard_jax.evaluate.items import Items, TaskError
from wizard_jax.evaluate.statistics.multiple import pooled
from wizard_jax.evaluate.tasks import gsm8k, ifeval, mt_bench, vicuna, wizardlm

READERS: dict[str, tuple[Callable[[Any], Items], type[Any], list[Any], str]] = {
    "wizardlm": (wizardlm.read, config.WizardLMTestSet, task_files.WIZARDLM, "WizardLM_testset.jsonl"),
    "vicuna": (vicuna.read, config.VicunaBench, task_files.VICUNA, "vicuna_bench_question.jsonl"),
    "mt_bench": (mt_bench.read, config.MTBench, task_files.MT_BENCH, "mt_bench_question.jsonl"),
    "gsm8k": (gsm8k.read, config.GSM8K, task_files.GSM8K, "gsm8k_test.jsonl"),
    "ifeval": (ifeval.read, config.IFEval, task_files.IFEVAL, "ifeval_input_data.jsonl"),
}
every_task = pytest.mark.parametrize("name", READERS)
where_published = pytest.mark.skipif(not task_files.PUBLISHED.exists(), reason="no published files here")


@pytest.fixture(autouse=True)
def with_checkers(request: pytest.FixtureRequest) -> None:
    if "ifeval" in request.node.name:
        pytest.importorskip("langdetect", reason="needs the extra [eval]")


def read(name: str, tmp_path: Path, rows: list[Any], **settings: str) -> Items:
    reader, kind, _, _ = READERS[name]
    path, sha256 = write_rows(tmp_path / "task.jsonl", rows)
    return reader(kind(path=path, sha256=sha256, **settings))


def refusal(name: str, tmp_path: Path, rows: list[Any]) -> str:
    with pytest.raises(TaskError) as raised:
        read(name, tmp_path, rows)
    return str(raised.value)


@every_task
def test_items_are_the_rows_in_their_order_and_another_file_is_said_to_be_one(name: str, tmp_path: Path) -> None:
    found = read(name, tmp_path, READERS[name][2])
    assert len({item.id for item in found.items}) == len(found.items) == len(READERS[name][2])
    assert all(turn.strip() for item in found.items for turn in item.turns)
    assert "is not the file that was published" in found.notes[0]


@every_task
def test_another_file_than_the_published_one_is_refused_with_both_sums_and_the_setting(
    name: str, tmp_path: Path
) -> None:
    reader, kind, rows, _ = READERS[name]
    path, sha256 = write_rows(tmp_path / "task.jsonl", rows)
    with pytest.raises(TaskError, match="task.sha256=" + sha256) as raised:
        reader(kind(path=path))
    published = {"wizardlm": wizardlm, "vicuna": vicuna, "mt_bench": mt_bench, "gsm8k": gsm8k, "ifeval": ifeval}[name]
    assert published.PUBLISHED in str(raised.value)
    with pytest.raises(TaskError, match="task.sha256 names " + "0" * 64):
        reader(kind(path=path, sha256="0" * 64))


@every_task
def test_rows_that_are_not_what_they_should_be_are_named_by_their_numbers(name: str, tmp_path: Path) -> None:
    good = READERS[name][2]
    first = next(iter(good[0]))
    missing = {key: value for key, value in good[0].items() if key != first}
    told = refusal(name, tmp_path, [good[0], {**good[1], "more": 1}, missing, [1], {**good[1], first: None}])
    assert "4 rows can not be used" in told
    for line in (
        "row 2: unknown field 'more'",
        f"row 3: no field '{first}'",
        "row 4: not a JSON object but list",
        f"row 5: '{first}' is not a",
    ):
        assert line in told


@every_task
def test_a_file_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    reader, kind, _, _ = READERS[name]
    assert "is empty" in refusal(name, tmp_path, [])
    file = tmp_path / "bytes.jsonl"
    file.write_bytes(b'{"idx": "\xff"}\n')
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(TaskError, match="not UTF-8"):
        reader(kind(path=str(file), sha256=sha256))
    with pytest.raises(TaskError, match="does not exist"):
        reader(kind(path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(TaskError, match="can not be read"):
        reader(kind(path=str(tmp_path)))


@pytest.mark.parametrize(("name", "field"), [("wizardlm", "idx"), ("vicuna", "question_id"), ("ifeval", "key")])
def test_ids_that_are_there_twice_are_refused(name: str, field: str, tmp_path: Path) -> None:
    rows = READERS[name][2]
    told = refusal(name, tmp_path, [rows[0], {**rows[1], field: rows[0][field]}])
    assert f"row 2: '{field}' is 1, as that of row 1" in told


def test_an_array_of_rows_is_read_as_lines_are(tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(json.dumps(task_files.VICUNA, indent=1))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(vicuna.read(config.VicunaBench(path=str(file), sha256=sha256)).items) == 2


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("wizardlm", {"Difficulty": 11}, "'Difficulty' is not from 1 to 10"),
        ("wizardlm", {"Difficulty": True}, "'Difficulty' is not a whole number but bool"),
        ("wizardlm", {"Instruction": " "}, "'Instruction' is empty"),
        ("vicuna", {"turns": ["a", "b"]}, "'turns' is not one text"),
        ("mt_bench", {"turns": ["a"]}, "'turns' is not two texts"),
        ("gsm8k", {"answer": "It is 4."}, "'answer' does not end with #### and a number"),
        ("ifeval", {"kwargs": []}, "1 constraints with 0 'kwargs'"),
        ("ifeval", {"instruction_id_list": ["a:b"]}, "lm_eval checks no constraint 'a:b'"),
        ("ifeval", {"kwargs": [{"words": 3}]}, "the 'kwargs' of punctuation:no_comma are words, and must be none"),
    ],
)
def test_what_a_task_can_not_take_is_refused(name: str, row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    rows = READERS[name][2]
    assert f"row 2: {fault}" in refusal(name, tmp_path, [rows[1], {**rows[0], **row}])


def test_wizardlm_reports_instructions_that_are_there_twice_with_their_labels(tmp_path: Path) -> None:
    found = read("wizardlm", tmp_path, task_files.WIZARDLM)
    assert found.notes[1:] == ("Items 2 and 3 are the same instruction, labelled with the difficulty 9 and 8.",)
    assert [item.band for item in found.items] == ["easy", "hard", "hard", "medium"]


def test_mt_bench_has_references_for_what_a_judge_can_not_know(tmp_path: Path) -> None:
    path, sha256 = write_rows(tmp_path / "references.jsonl", task_files.REFERENCES)
    found = read("mt_bench", tmp_path, task_files.MT_BENCH, references=path, references_sha256=sha256)
    assert [item.references for item in found.items] == [(), ("It is 4.", "It is 7.")]
    assert "judges go without" in read("mt_bench", tmp_path, task_files.MT_BENCH).notes[-1]
    with pytest.raises(TaskError, match="has no effect without"):
        read("mt_bench", tmp_path, task_files.MT_BENCH, references_sha256=sha256)
    with pytest.raises(TaskError, match="task.references_sha256=" + sha256):
        read("mt_bench", tmp_path, task_files.MT_BENCH, references=path)
    with pytest.raises(TaskError, match="question 111 is in one of them alone"):
        read("mt_bench", tmp_path, task_files.MT_BENCH[:1], references=path, references_sha256=sha256)


@where_published
@every_task
def test_the_published_file_is_known_by_its_sum(name: str) -> None:
    reader, kind, _, file = READERS[name]
    counts = {"wizardlm": 218, "vicuna": 80, "mt_bench": 80, "gsm8k": 1319, "ifeval": 541}
    found = reader(kind(path=str(task_files.PUBLISHED / file)))
    assert len(found.items) == counts[name]
    assert not any("published one" in note for note in found.notes if "punkt" not in note)


@where_published
def test_the_published_wizardlm_set_is_what_its_paper_tells() -> None:
    found = wizardlm.read(config.WizardLMTestSet(path=str(task_files.PUBLISHED / "WizardLM_testset.jsonl")))
    skills = Counter(item.skill for item in found.items)
    assert len(skills) == 29
    assert skills.most_common(4) == [("Math", 19), ("Code Generation", 18), ("Writting", 18), ("Computer Science", 15)]
    assert skills["Philosophy"] == 1
    assert set(found.families) == set(skills)
    families = Counter(pooled([item.skill for item in found.items], families=found.families))
    assert set(families) == set(found.families.values())
    assert min(families.values()) >= 20, "each is large enough to speak of"
    difficulties = Counter(item.difficulty for item in found.items)
    assert [difficulties[float(n)] for n in range(1, 11)] == [11, 19, 27, 23, 9, 42, 24, 39, 13, 11]
    assert Counter(item.band for item in found.items) == {"easy": 80, "medium": 75, "hard": 63}
    assert found.notes == ("Items 57 and 64 are the same instruction, labelled with the difficulty 9 and 8.",)


@where_published
def test_the_published_benches_have_their_categories_turns_and_references() -> None:
    vicuna_bench = vicuna.read(config.VicunaBench(path=str(task_files.PUBLISHED / "vicuna_bench_question.jsonl")))
    assert len({item.skill for item in vicuna_bench.items}) == 9
    paths = [str(task_files.PUBLISHED / f"mt_bench_{name}.jsonl") for name in ("question", "reference_gpt-4")]
    found = mt_bench.read(config.MTBench(path=paths[0], references=paths[1]))
    assert set(Counter(item.skill for item in found.items).values()) == {10}
    assert {item.skill for item in found.items if item.references} == {"math", "reasoning", "coding"}
    assert {len(item.turns) for item in found.items} == {2}
    assert {len(item.references) for item in found.items if item.skill in mt_bench.WITH_REFERENCES} == {2}


@where_published
def test_the_published_gsm8k_has_problems_of_two_to_eight_steps_and_its_answers_are_found() -> None:
    found = gsm8k.read(config.GSM8K(path=str(task_files.PUBLISHED / "gsm8k_test.jsonl")))
    steps = Counter(item.difficulty for item in found.items)
    assert (steps[2.0], steps[3.0], steps[8.0], steps[0.0]) == (357, 364, 9, 18)
    assert all(gsm8k.last_number(item.references[0]) == item.target for item in found.items)
    assert {item.target for item in found.items} >= {"-10", "-3", "1450000", "18"}


@where_published
def test_the_published_ifeval_has_its_constraints() -> None:
    found = ifeval.read(config.IFEval(path=str(task_files.PUBLISHED / "ifeval_input_data.jsonl")))
    types = Counter(name for item in found.items for name in item.details["instruction_id_list"])
    assert (sum(types.values()), len(types), found.facts["constraints"]) == (834, 25, 834)
    assert Counter(item.difficulty for item in found.items) == {1.0: 305, 2.0: 179, 3.0: 57}
    assert found.facts["not_scored"] == (0 if ifeval.load_checkers().has_sentences else 64)

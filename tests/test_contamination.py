"""Records that repeat or rephrase test items: what is found, what is not, and what a model makes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_gen.llm.chat import ChatReply, ChatRequest, NotSent
from data_gen.measure import contamination, retrieval
from data_gen.measure.asking import Judge
from data_gen.measure.contamination import (
    ContaminationError,
    Finding,
    by_file,
    decide,
    find,
    open_test_set,
    parse_verdict,
    read_items,
    recognise_verdict,
    verdict_prompt,
)
from data_gen.measure.words import words
from data_gen.records import Record, Turn

ITEMS = (
    "A farmer has 17 sheep and sells 9 of them at the market for 40 dollars each. How much money does he get?",
    "Ann reads 12 pages of a book every day. In how many days has she read all of its 300 pages?",
    "A train leaves the station at 8 and travels 90 miles an hour. How far has it come by 11?",
    "Peter bakes 24 cookies, eats 5 and gives half of the others to his sister. How many has he left?",
    "A garden is 15 metres long and 8 metres wide. How long is the fence around it?",
)
REWORDED = (
    "There are 17 sheep on a farm. At the market the farmer gets 40 dollars for each sheep, and 9 are sold. "
    "What sum does he earn?"
)
UNRELATED = (
    "Write a poem about the sea in winter.",
    "Explain how photosynthesis works to a child.",
    "Translate into French: where is the nearest pharmacy?",
    "List three reasons why people learn to play the piano.",
    "",
    "???",
)


def record(text: str, number: int = 0) -> Record:
    return Record(
        id=f"r{number}/1", lineage=f"r{number}", turns=(Turn("user", text), Turn("assistant", "Yes.")), round=1
    )


def records(*texts: str) -> list[Record]:
    return [record(text, number) for number, text in enumerate(texts)]


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"question": item, "answer": "?"}) + "\n" for item in ITEMS))
    return file


# --- words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann’s dog costs $1,200.50!", ["ann", "dog", "costs", "1200.50"]),
        ("It's 3,14 or 2,0000", ["it", "3", "14", "or", "2", "0000"]),
        ("snake_case2", ["snake", "case", "2"]),
        ("数える 3つ", ["数", "え", "る", "3", "つ"]),
        ("ÉTÉ", ["été"]),
        ("?!", []),
    ],
)
def test_words_are_what_two_texts_can_share(text: str, found: list[str]) -> None:
    assert words(text) == found


# --- runs of words


def test_a_repeated_item_is_found_whatever_stands_around_it_and_whatever_its_punctuation(test_file: Path) -> None:
    test = open_test_set(test_file, ngram=13)
    text = "First a riddle. " + ITEMS[1].upper().replace("?", " !!") + " Then write a poem about the sea. " * 30
    (finding,) = find([record(text)], [test])
    assert (finding.how, finding.item, finding.score, finding.text) == ("repeated", 1, 1.0, ITEMS[1])


def test_the_score_of_a_repetition_is_the_share_of_runs_that_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "test.txt"
    file.write_text(" ".join(f"word{'x' * number}" for number in range(20)))
    (item,) = read_items(file)
    first = " ".join(item.split()[:14])
    (finding,) = find([record(f"{first} and so on")], [open_test_set(file, ngram=13)])
    assert finding.score == pytest.approx(2 / 8)  # 8 runs of 13 in 20 words, 2 of them in 14
    (finding,) = find([record(f"{first} and so on")], [open_test_set(file, ngram=5)])
    assert finding.score == pytest.approx(10 / 16)


def test_an_item_shorter_than_a_run_counts_as_a_whole_and_a_very_short_one_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "test.txt"
    file.write_text("name the largest planet of all\nhow are you\n" + "\n".join(UNRELATED[:4]))
    test = open_test_set(file, ngram=13)
    texts = ("Please name the largest planet of all, and why.", "Name the largest planet.", "Well, how are you, then?")
    found = {f.record: f.how for f in find(records(*texts), [test], similarity=1.1)}
    assert found == {"r0/1": "repeated"}


def test_a_run_that_many_items_share_is_their_form_and_gives_nothing_away(tmp_path: Path) -> None:
    form = "choose the one right answer out of the four that stand below this question and say why"
    file = tmp_path / "test.txt"
    file.write_text("\n".join(f"{form}: {noun * 3}" for noun in "abcdefghijklm"))
    test = open_test_set(file, ngram=13)
    assert not list(find([record(f"{form}: who wrote Hamlet?")], [test], similarity=1.1))
    assert [f.item for f in find([record(f"{form}: ccc")], [test], similarity=1.1)] == [2]


def test_runs_do_not_reach_from_one_text_into_the_next() -> None:
    index = retrieval.build_index(["a b c d e f"], ngram=6)
    (block,) = retrieval.blocks(["x a b c", "d e f y", "a b c d e f"])
    assert [m.score for m in retrieval.most_repeated(retrieval.numbered(block, index), index)] == [0, 0, 1]


# --- retrieval


def test_a_rewording_that_shares_no_run_is_found_and_unrelated_texts_are_not(test_file: Path) -> None:
    test = open_test_set(test_file, ngram=13)
    (finding,) = find(records(*UNRELATED, REWORDED), [test])
    assert (finding.record, finding.how, finding.item, finding.lineage, finding.round) == (
        "r6/1",
        "similar",
        0,
        "r6",
        1,
    )
    assert finding.score > 0.35


def test_a_cosine_by_hand() -> None:
    index = retrieval.build_index(["red 2", "blue sky"], ngram=13)
    (block,) = retrieval.blocks(["2 reds red", "sky"])
    cosines = retrieval.similarities(retrieval.numbered(block, index), index)
    common, figure = np.log(3 / 2) + 1, (np.log(3 / 2) + 1) * retrieval.FIGURE  # each feature is in 1 of 2 items
    item = 2 * figure**2 + common**2  # 2, 2~red, red
    new = np.log(3) + 1  # reds, 2~reds, red~reds are in none
    text = item + retrieval.UNKNOWN * (2 * new**2 + (new * retrieval.FIGURE) ** 2)
    assert cosines[0] == pytest.approx([item / np.sqrt(item * text), 0], abs=1e-6)
    assert cosines[1] == pytest.approx([0, common / np.sqrt(3 * common**2)], abs=1e-6)


@given(texts=st.lists(st.text(st.sampled_from("ab 12.,你"), max_size=30), min_size=1, max_size=8))
def test_a_text_is_as_similar_as_can_be_to_itself_and_pairs_know_no_order(texts: list[str]) -> None:
    index = retrieval.build_index([*texts, "a word"], ngram=13)
    (block,) = retrieval.blocks(texts)
    numbered = retrieval.numbered(block, index)
    for text, match in zip(texts, retrieval.most_similar(numbered, index), strict=True):
        assert match.score == pytest.approx(1.0 if words(text) else 0.0, abs=1e-5)
    (turned,) = retrieval.blocks([" ".join(reversed(words(text))) for text in texts])
    cosines = retrieval.similarities(retrieval.numbered(turned, index), index)
    assert cosines == pytest.approx(retrieval.similarities(numbered, index), abs=1e-5)


def test_what_is_found_does_not_depend_on_the_blocks(test_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = open_test_set(test_file, ngram=13)
    texts = [f"{text} {number}" for number in range(30) for text in (REWORDED, *ITEMS, *UNRELATED)]
    together = list(find(records(*texts), [test]))
    assert len(together) == 30 * 6
    monkeypatch.setattr(retrieval, "_BLOCK_TEXTS", 7)
    assert list(find(records(*texts), [test])) == together


def test_one_finding_per_record_the_best_of_all_files(test_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"Instruction": REWORDED}) + "\n" + json.dumps({"Instruction": "Name a prime."}) + "\n")
    tests = [open_test_set(file, ngram=13) for file in (test_file, other)]
    findings = list(find(records(REWORDED, *UNRELATED), tests))
    assert [(f.file, f.how) for f in findings] == [(str(other), "repeated")]
    assert [(f.items, f.touched, f.records) for f in by_file(findings, tests)] == [(5, 0, 0), (2, 1, 1)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_is_repeated_goes_before_what_is_more_similar(tmp_path: Path, order: tuple[int, ...]) -> None:
    words_of_one = [f"apple{'x' * number}" for number in range(40)]
    repeats, resembles = tmp_path / "repeats.txt", tmp_path / "resembles.txt"
    repeats.write_text(" ".join([*words_of_one[:13], *(f"pear{'x' * number}" for number in range(40))]))
    text = " ".join(words_of_one)
    resembles.write_text(
        " ".join(word for pair in zip(words_of_one[1::2], words_of_one[::2], strict=True) for word in pair)
    )
    tests = [open_test_set(file, ngram=13) for file in (repeats, resembles)]
    (alone,) = find([record(text)], [tests[0]])
    (other,) = find([record(text)], [tests[1]])
    assert (alone.how, other.how) == ("repeated", "similar")
    assert alone.score < other.score
    assert list(find([record(text)], [tests[number] for number in order])) == [alone]


def test_what_is_just_as_similar_as_the_threshold_is_found(test_file: Path) -> None:
    test = open_test_set(test_file, ngram=13)
    (block,) = retrieval.blocks([REWORDED])
    (match,) = retrieval.most_similar(retrieval.numbered(block, test.index), test.index)
    assert [finding.how for finding in find([record(REWORDED)], [test], similarity=match.score)] == ["similar"]
    assert not list(find([record(REWORDED)], [test], similarity=np.nextafter(match.score, 1)))


# --- the test sets


@pytest.mark.parametrize(
    ("name", "content", "items"),
    [
        ("a.jsonl", '{"question": "a?", "text": "b"}\n\n{"PROMPT": "b?"}\n', ["a?", "b?"]),
        ("a.jsonl", '{"instruction": "Sort.", "input": "3 1"}\n{"Instruction": "c", "input": ""}', ["Sort.\n3 1", "c"]),
        ("a.jsonl", '{"turns": ["one", "two"]}\n{"turns": [{"role": "user", "content": "x"}]}', ["one\ntwo", "x"]),
        ("a.json", '["a", {"text": "b\\nc"}]', ["a", "b\nc"]),
        ("a.txt", "\ufeffa b \n\n  c\r\n", ["a b", "c"]),
        ("a.ndjson", '{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": "d"}\n', ["a?", "c?"]),
        ("a.json", '\ufeff \n["a"]', ["a"]),
    ],
)
def test_test_sets_are_read(tmp_path: Path, name: str, content: str, items: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_items(tmp_path / name) == items
    packed = tmp_path / f"{name}.gz"
    if name.endswith(".txt"):
        packed = tmp_path / "packed.txt"  # told by its first bytes
    packed.write_bytes(gzip.compress(content.encode()))
    assert read_items(packed) == items


def test_test_sets_in_tables_are_read(tmp_path: Path) -> None:
    table = pa.table({"question": ["a?", "b?"], "answer": ["1", "2"], "text": ["no", "no"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table, tmp_path / "a.json.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert read_items(tmp_path / "a.parquet") == read_items(tmp_path / "a.arrow") == ["a?", "b?"]
    assert read_items(tmp_path / "a.json.parquet") == ["a?", "b?"]
    parquet.write_table(pa.table({"q": ["a?"]}), tmp_path / "b.parquet")
    with pytest.raises(ContaminationError, match=r"b\.parquet, item 1: .* question, instruction"):
        read_items(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.md", "a.xlsx", "a.gz", "a"])
def test_a_test_set_of_another_kind_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("question,answer\nWhat is 1 + 1?,2\n")
    with pytest.raises(ContaminationError, match=rf"{name} is of no kind .* make it a \.jsonl, .* under 'question'"):
        read_items(tmp_path / name)


def test_a_folder_is_no_test_set(tmp_path: Path) -> None:
    with pytest.raises(ContaminationError, match="is of no kind that is read here: make it"):
        read_items(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "a?"}\n{"q": "b?"}\n', r"a\.jsonl:2: .* question, instruction, prompt, text, turns"),
        ("a.jsonl", '{"question": "a?"}\n\n{"question": \n', r"a\.jsonl:3 is not JSON"),
        ("a.jsonl", "7\n", r"a\.jsonl:1"),
        ("a.json", '{"question": "a?"}', "is a list"),
        ("a.json", '[{"question": null}]', "item 1"),
        ("a.txt", "\n ?\n", "no text to compare"),
        ("a.jsonl", "", "no text to compare"),
        ("a.json", '["a", ', r"contamination_files: .*a\.json is not JSON \(line 1: the array has no end\)"),
        (
            "a.jsonl",
            '{"question": "ä?"}\n{"question": "ö?"}\n',
            r"contamination_files: .*a\.jsonl is not UTF-8 \(byte 14\)",
        ),
        ("a.txt", "a\nä\n", r"contamination_files: .*a\.txt is not UTF-8 \(byte 2\): save it as UTF-8"),
        ("a.parquet", "PAR1, or not", r"contamination_files: .*a\.parquet can not be read as a table"),
        ("a.jsonl.gz", "\x1f\x8b no more", r"contamination_files: .*a\.jsonl\.gz is damaged"),
    ],
)
def test_a_test_set_that_can_not_be_read_is_refused_with_the_place(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ContaminationError, match=message):
        open_test_set(tmp_path / name, ngram=13)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContaminationError, match=r"contamination_files: .*gone\.jsonl can not be read"):
        read_items(tmp_path / "gone.jsonl")


# --- the verdict


PIECES = ("{first}", "{second}", "{fence}", "=====", "\n======\n", "Test item\n=====\n", verdict_prompt("a", item="b"))
TEXTS = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(PIECES)), max_size=5).map("".join)


@given(first=TEXTS, second=TEXTS)
def test_the_verdicts_prompt_gives_both_texts_back_whatever_they_hold(first: str, second: str) -> None:
    assert recognise_verdict(verdict_prompt(first, item=second)) == (first, second)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Same", "same"),
        (" different.\n", "different"),
        ("**Same**", "same"),
        ("Verdict: Different", "different"),
        ("'Same'", "same"),
        ("", None),
        ("Same or Different", None),
        ("<think>Different?</think>Same", "same"),
        ("Not the same", None),
        ("They are the same.", None),
        ("Sameness", None),
    ],
)
def test_a_verdict_is_read_or_is_none(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


class Answering:
    """Says of each instruction what it was told to say."""

    def __init__(self, said: dict[str, str | Exception]) -> None:
        self.said = said
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        texts = recognise_verdict(request.messages[-1].content)
        assert texts is not None
        said = self.said[texts[0]]
        if isinstance(said, Exception):
            raise said
        return ChatReply(text=said, finish_reason="stop", model="fake")


def finding(text: str, how: str = "similar") -> Finding:
    return Finding(
        record=f"{text}/2",
        lineage=text,
        round=2,
        file="test.jsonl",
        item=0,
        how="similar" if how == "similar" else "repeated",
        score=0.4,
        instruction=text,
        text="item",
    )


def test_a_model_clears_what_is_only_similar_and_silence_clears_nothing() -> None:
    model = Answering({"a": "Same", "b": "Different", "c": "Hard to say.", "d": NotSent("429")})
    findings = [*map(finding, "abcd"), finding("e", "repeated")]
    decided = asyncio.run(decide(findings, judge=Judge(model=model, name="fake", seed=0)))
    assert [f.lineage for f in decided.standing] == ["a", "c", "d", "e"]
    assert [f.lineage for f in decided.cleared] == ["b"]
    assert [(f.lineage, why) for f, why in decided.unread] == [
        ("c", "neither Same nor Different: 'Hard to say.'"),
        ("d", "given up: 429"),
    ]
    assert sorted((r.key.lineage, r.key.round, r.key.purpose) for r in model.asked) == [
        (name, 2, "contamination") for name in "abcd"
    ]


def test_the_default_similarity_is_the_configs() -> None:
    from data_gen.config import Measure

    assert Measure().contamination_similarity == contamination.SIMILARITY

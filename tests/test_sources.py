"""Seeds: what is read of files, what is skipped, left out and refused, and what a seed is known by."""

from __future__ import annotations

import hashlib
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from data_gen import world
from data_gen.config import SeedFile, Shard, SimulatedSeeds
from data_gen.records import Record
from data_gen.sources import SourceError, check_seeds, in_shard, iter_seeds, load_seeds, seed_id

SHARED = Path(__file__).parents[2] / "shared" / "data"

WIZARDLM_V2 = {"idx": "k1", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}


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


def test_a_row_of_wizardlm_v2_that_comes_twice_is_one_seed_and_told(tmp_path: Path) -> None:
    row = WIZARDLM_V2
    path = written(tmp_path / "a.jsonl", [row, dict(reversed(row.items())), row, {**row, "idx": "k2"}])
    assert [record.lineage for record in seeds_of(path)] == ["000000", "000001"]
    found = check_seeds(SeedFile(path=str(path)))
    assert (found.rows, found.count, found.left_out) == (4, 2, {"repeats an earlier row": 2})
    assert found.told() == ["2 rows left out: repeats an earlier row"]


def test_bad_rows_are_skipped_where_that_is_wanted_and_counted_with_their_faults(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "a"}, {"prompt": ""}, 7, {"prompt": "b"}, {"prompt": " "}, {"data": []}]
    path = written(tmp_path / "a.jsonl", rows)
    with path.open("a") as file:
        file.write("\n{'prompt'}\n")
    message = refusal_of(path)
    assert "5 of 7 rows" in message
    assert "seeds.bad_rows=skip" in message
    seeds = SeedFile(path=str(path), bad_rows="skip")
    assert [(record.lineage, record.instruction) for record in iter_seeds(seeds)] == [("000000", "a"), ("000001", "b")]
    found = check_seeds(seeds)
    assert (found.count, found.rows, sum(found.skipped.values())) == (2, 7, 5)
    assert "2 rows skipped: the instruction is empty (key 'prompt')" in found.told()
    assert "1 row skipped: the conversation has no user turn" in found.told()
    good = written(tmp_path / "good.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert found.sha256 == check_seeds(SeedFile(path=str(good))).sha256


def test_of_a_row_with_several_instances_the_good_ones_are_taken(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1+1"}, {"input": 7}, {"input": ["2"]}, {"input": "2+2"}]}
    path = written(tmp_path / "a.jsonl", [row, {"prompt": "a"}])
    message = refusal_of(path)
    assert "1 of 2 rows" in message
    assert "row 1: 'input' is not a text but int" in message
    assert "row 1: 'input' is not a text but list" in message
    records = iter_seeds(SeedFile(path=str(path), bad_rows="skip"))
    assert [record.instruction for record in records] == ["Add.\n1+1", "Add.\n2+2", "a"]


def test_nothing_but_bad_rows_is_refused_also_where_they_are_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"prompt": ""}] * 3)
    with pytest.raises(SourceError, match=r"not one seed is left of 3 rows: the instruction is empty .* \(3 rows\)"):
        check_seeds(SeedFile(path=str(path), bad_rows="skip"))


def test_a_language_is_looked_for_under_lang_and_refused_where_no_row_says_its_own(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", [{"prompt": "a", "lang": "en"}, {"prompt": "b", "lang": "fr"}, {"prompt": "c"}]
    )
    records = iter_seeds(SeedFile(path=str(path), language="en"))
    assert [record.instruction for record in records] == ["a", "c"], "a row that does not say is taken"
    path = written(tmp_path / "b.jsonl", [{"prompt": "a"}])
    with pytest.raises(SourceError, match="has no effect"):
        check_seeds(SeedFile(path=str(path), language="en"))


# --- identity and shards


def test_each_seed_is_in_one_shard_under_the_same_lineage(tmp_path: Path) -> None:
    seeds = SeedFile(path=str(written(tmp_path / "a.jsonl", [{"prompt": str(n)} for n in range(400)])))
    every = list(iter_seeds(seeds))
    parts = [list(iter_seeds(seeds, shard=Shard(index=index, count=4))) for index in range(4)]
    assert sorted((record for part in parts for record in part), key=lambda record: record.lineage) == every
    assert all(70 < len(part) < 130 for part in parts)
    assert all(
        in_shard(record.lineage, Shard(index=index, count=4)) for index, part in enumerate(parts) for record in part
    )
    assert [in_shard("000000", Shard(index=n, count=4)) for n in range(4)].count(True) == 1


def test_the_hash_range_of_a_lineage_never_moves() -> None:
    # A later version that hashed otherwise would evolve a seed twice, or not at all.
    shards = [next(n for n in range(8) if in_shard(f"{k:06d}", Shard(index=n, count=8))) for k in range(12)]
    assert shards == [0, 0, 2, 3, 0, 2, 7, 4, 1, 7, 4, 0]


def test_the_digest_is_that_of_the_lineages_and_turns_alone(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", [{"prompt": "a", "id": 1}, {"prompt": "b"}])
    b = written(tmp_path / "b.json", [{"instruction": "a"}, {"question": "b"}], form="array")
    c = written(tmp_path / "c.jsonl", [{"prompt": "b"}, {"prompt": "a"}])
    found = [check_seeds(SeedFile(path=str(path))) for path in (a, b, c)]
    assert found[0].sha256 == found[1].sha256 != found[2].sha256
    ids = "\n".join(seed_id(record) for record in seeds_of(a))
    assert found[0].sha256 == hashlib.sha256(ids.encode()).hexdigest()


# --- hostile text

TEXTS = st.text(st.characters(), min_size=1, max_size=40) | st.sampled_from(
    [
        "\x00",
        "../../etc/passwd",
        "\u202egnp.exe",
        "👩\u200d👩\u200d👧 🏳️\u200d🌈",
        "\ud83d",
        "\ufeff",
        "\u2028",
        "{'a'}",
        "<script>alert(1)</script>",
    ]
)


@settings(max_examples=400, deadline=None)  # of two or three strings each
@given(
    st.lists(TEXTS, min_size=2, max_size=4), st.sampled_from(["instruction", "conversations", "data", "key", "from"])
)
def test_any_text_is_read_as_it_is_or_refused_with_its_row(texts: list[str], place: str) -> None:
    rows: list[Any] = {
        "instruction": [{"instruction": text} for text in texts],
        "conversations": [{"conversations": [{"from": "human", "value": text}]} for text in texts],
        "data": [{"data": [text, text]} for text in texts],
        "key": [{text: text} for text in texts],
        "from": [{"conversations": [{"from": text, "value": "a"}]} for text in texts],
    }[place]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        seeds = SeedFile(path=str(path), bad_rows="skip")
        found, told = None, ""
        try:
            found = check_seeds(seeds)
        except SourceError as error:
            told = str(error)
        assert len(told.encode()) < 4000, "what a row holds is cut in a message"
        records = list(iter_seeds(seeds))
        assert len(records) == (found.count if found else 0)
        good = [text.strip() for text in texts if text.strip() and not any("\ud800" <= c <= "\udfff" for c in text)]
        if place in ("instruction", "conversations", "data"):
            assert [record.instruction for record in records] == good
        assert [entry.name for entry in Path(folder).iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "name", ["a\nb.jsonl", "\u202eb.jsonl", "[1]*?.jsonl", "-x", "a b.json", "tfds.jsonl", "%s.jsonl"]
)
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, [{"prompt": "a"}])
    (record,) = seeds_of(path)
    assert record.source == name


def test_a_row_of_a_megabyte_is_a_seed_and_its_key_is_cut_in_a_message(tmp_path: Path) -> None:
    (record,) = seeds_of(written(tmp_path / "a.jsonl", [{"prompt": "x" * 1_000_000}]))
    assert len(record.instruction) == 1_000_000
    assert len(refusal_of(written(tmp_path / "b.jsonl", [{"x" * 1_000_000: 1}]))) < 4000


def test_seeds_may_be_evolved_in_another_thread_than_they_were_opened_in(tmp_path: Path) -> None:
    row = WIZARDLM_V2
    seeds = SeedFile(path=str(written(tmp_path / "a.jsonl", [{**row, "idx": n} for n in range(3)])))
    records = iter_seeds(seeds)
    next(records)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(next, records).result().lineage == "000001"


@pytest.mark.skipif(not SHARED.exists(), reason="the published seed files are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "count"),
    [("self_instruct_seed_tasks.jsonl", 175), ("sharegpt_dummy_conversation.json", 500), ("gsm8k_test.jsonl", 1319)],
)
def test_published_files_are_read_whole(file: str, count: int) -> None:
    records = seeds_of(SHARED / file)
    assert len(records) == count
    assert all(record.instruction and record.answer for record in records)

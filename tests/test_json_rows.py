"""JSON is read in pieces and comes to what it would in one; memory is that of the largest row."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_gen.readers.json_rows import NOT_JSON, json_rows
from data_gen.readers.rows import SourceError

PATH = Path("a.json")

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


class Dribbling(io.BytesIO):
    """Gives `few` bytes at a time, so that a window ends everywhere."""

    few = 1

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(self.few, size) if size and size > 0 else self.few)


def dribbled(data: bytes, *, few: int) -> list[tuple[int, Any]]:
    stream = Dribbling(data)
    stream.few = few
    return [(row.number, row.value) for row in json_rows(stream, path=PATH, source="a")]


@given(st.lists(VALUES), st.integers(1, 9), st.booleans(), st.sampled_from([None, 1]))
@example([0], 3, False, None)  # a number at the end of a window behind which nothing comes
def test_an_array_is_the_same_wherever_the_window_ends(
    values: list[Any], few: int, escaped: bool, indent: int | None
) -> None:
    data = json.dumps(values, ensure_ascii=escaped, indent=indent).encode()
    assert dribbled(data, few=few) == list(enumerate(values, start=1))


@given(st.lists(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=2), min_size=1, max_size=4), st.integers(1, 9))
def test_objects_over_several_lines_are_the_same_too(values: list[Any], few: int) -> None:
    data = "\n".join(json.dumps(value, indent=1) for value in values).encode()
    assert dribbled(data, few=few) == list(enumerate(values, start=1))


@given(st.lists(VALUES, min_size=1), st.data())
def test_a_damaged_array_is_refused_just_where_json_refuses_it(values: list[Any], data: st.DataObject) -> None:
    text = json.dumps(values, ensure_ascii=False)
    place = data.draw(st.integers(1, len(text)))
    text = text[:place] + data.draw(st.sampled_from(["", ",", "]", '"', "7", "\\", "\n", "tru"])) + text[place + 1 :]
    try:
        expected = json.loads(text)
    except json.JSONDecodeError:
        with pytest.raises(SourceError, match="is not JSON"):
            dribbled(text.encode(), few=3)
    else:
        assert dribbled(text.encode(), few=3) == list(enumerate(expected, start=1))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[{"a": 1},\n{"b" 2}]', "line 2: Expecting ':' delimiter"),
        ('[{"a": 1}\n, ', "line 2: the array has no end"),
        ('[{"a": 1}\n\n{"a": 1}]', "line 3: Expecting ',' delimiter"),
        ('[\n{"a": "', "line 2: Unterminated string"),
        ("[1]\n[2]", "line 2: something follows the array"),
        ("[" * 100_000, "line 1: nested too deep"),
        ('[\n\n{"a": ' + "7" * 5000 + "}]", "line 3: a number of too many digits"),
        ("[" + '{"a": 1},\n' * 50_000 + "oh]", "line 50001: Expecting value"),
        ('{\n "a": 1\n}\n{\n "b" 1\n}', "line 5: Expecting ':' delimiter"),
    ],
)
def test_what_is_not_json_is_named_with_its_line(text: str, where: str) -> None:
    with pytest.raises(SourceError) as caught:
        list(json_rows(io.BytesIO(text.encode()), path=PATH, source="a"))
    assert f"a.json is not JSON ({where}" in str(caught.value)


def test_an_error_is_found_without_reading_to_the_end_of_the_file() -> None:
    stream = io.BytesIO(b'[{"a": 1}, {"b" 2}, ' + b'{"c": "' + b"x" * 10_000_000 + b'"}]')
    with pytest.raises(SourceError, match="Expecting ':'"):
        list(json_rows(stream, path=PATH, source="a"))
    assert stream.tell() < 1_000_000


def test_lines_that_are_not_json_are_faults_of_their_own() -> None:
    text = '{"a": \n{"a": 1}\n\nhello\n[2]\n{"b": ' + "7" * 5000 + "}\n" + "[" * 100_000 + "\n"
    rows = list(json_rows(io.BytesIO(text.encode()), path=PATH, source="a"))
    assert [(row.number, row.value) for row in rows if not row.fault] == [(2, {"a": 1}), (5, [2])]
    assert [row.number for row in rows if row.fault == NOT_JSON] == [1, 4, 6, 7]


@pytest.mark.parametrize("before", ["[", "", "{}\n"])
def test_what_is_not_utf8_is_named_with_its_byte(before: str) -> None:
    data = before.encode() + b'{"a": "' + "é".encode() * 100_000 + b'\xe9"}'
    with pytest.raises(SourceError, match=f"byte {len(data) - 3}"):
        list(json_rows(io.BytesIO(data), path=PATH, source="a"))
    with pytest.raises(SourceError, match="byte"):
        list(json_rows(io.BytesIO(b"\xef\xbb\xbf" + data), path=PATH, source="a"))


@pytest.mark.parametrize("form", ["array", "lines", "objects"])
def test_memory_is_that_of_the_largest_row(form: str, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        row = json.dumps({"instruction": "x" * 500}, indent=1 if form == "objects" else None)
        text = {"array": f"[{', '.join([row] * rows)}]", "lines": f"{row}\n" * rows, "objects": f"{row}\n" * rows}[form]
        (tmp_path / "a").write_text(text)
        del text
        tracemalloc.start()
        with (tmp_path / "a").open("rb") as stream:
            assert sum(1 for _ in json_rows(stream, path=PATH, source="a")) == rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < 1.5 * peak(1000)

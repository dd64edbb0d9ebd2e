"""What a rewrite added as data must parse; it is read and never executed, whatever it is, in bounded time."""

from __future__ import annotations

import random
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import world
from data_gen.input_formats import (
    LARGEST,
    LONGEST,
    MOST_BLOCKS,
    added_blocks,
    check_added_input,
    words_added,
)
from data_gen.notations import NAMES, Notation, fault
from data_gen.operations import OPERATIONS

DEMONSTRATIONS = re.findall(
    r'^\((\w+)\) "(.*?)" becomes\n(.*?\n```)$', OPERATIONS["complicate_input"].template, re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize(("notation", "before", "after"), DEMONSTRATIONS, ids=[name for name, _, _ in DEMONSTRATIONS])
def test_our_own_demonstrations_pass_and_add_10_to_20_words(notation: str, before: str, after: str) -> None:
    assert [name for name, _, _ in DEMONSTRATIONS] == ["XML", "SQL", "Python", "HTML", "shell", "JSON"]
    assert check_added_input(after, parent=before) is None
    (block,) = added_blocks(after, parent=before)
    assert block.notation == notation.lower()
    untagged = re.sub(r"```\w+\n", "```\n", after)
    (block,) = added_blocks(untagged, parent=before)
    assert block.notation in (notation.lower(), None)  # a command is no sign of a shell


VALID: dict[Notation, list[str]] = {
    "json": ['{"a": [1, 2.5e3, null, true], "b": "\\u00e9"}', "[]", "  [1,\n 2]\n", '"text"', "1" * 6000],
    "jsonl": ['{"a": 1}\n{"a": 2}\n', "1\n\n2"],
    "xml": [
        "<a/>",
        '<?xml version="1.0"?>\n<menu><dish name="stew">&lt;hot&gt;</dish></menu>',
        "<a:b xmlns:a='x'>ü</a:b>",
    ],
    "sql": [
        "SELECT name FROM member WHERE joined > 2019;",
        "create table t (id int primary key, name varchar(20) not null); insert into t values (1, 'it''s')",
        "CREATE TABLE `t` (`id` INT AUTO_INCREMENT) ENGINE=InnoDB;",
        "SELECT TOP 5 * FROM [my table]",
        "CREATE FUNCTION f() RETURNS INT AS $$ SELECT 1 $$ LANGUAGE SQL",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a -- done",
        "BEGIN; UPDATE t SET a = 1; COMMIT;",
    ],
    "python": [
        "def mean(values):\n    return sum(values) / len(values)",
        "    x = 1\n    y = x",
        ">>> x = [1,\n...      2]\n>>> x\n[1, 2]",
        "return 5",
        're.compile("\\d")',
    ],
    "html": [
        "<p>one<p>two<br>three",
        '<div onclick="a > b"><img src="x"></div>',
        "<!DOCTYPE html><html><head><title>a < b</title></head><body><ul><li>1<li>2</ul></body></html>",
        "<table><tr><td>1<td>2<tr><td>3</table>",
        "<!-- </b> --><script>if (a < b) { '</p>' }</script>",
        "<svg><path d='M0 0'/></svg>",
        "<P>loud</P>",
    ],
    "shell": [
        "du -sh /var/log\n# 6.1G /var/log",
        'for f in *.txt; do\n  wc -l "$f"\ndone',
        "$ ls -l\ntotal 4 (approximately)\n$ pwd",
        "cat <<EOF\nit's fine\nEOF",
    ],
    "csv": ["item\nfig\nkiwi", 'a,b\n1,"x, y"\n', "a\tb\n1\t2", "| a | b |\n|---|---|\n| 1 | 2 |"],
}

INVALID: dict[Notation, list[tuple[str, int, str]]] = {
    "json": [
        ('{"a": 1', 1, "Expecting"),
        ('{"a": 1,\n "b": 2,}', 2, "Expecting"),
        ("{'a': 1}", 1, "Expecting"),
        ('{"a": NaN}', 0, "NaN"),
        ('{"a": 1} {"a": 2}', 1, "Extra"),
        ("[" * 9000, 0, "deeply"),
    ],
    "jsonl": [('{"a": 1}\n{"a": }', 2, "Expecting")],
    "xml": [
        ("<a><b></a>", 1, "mismatched"),
        ("<a/>\n<b/>", 2, "junk"),
        ("<a>&nope;</a>", 1, "undefined"),
        ("<a b=1/>", 1, "not well-formed"),
        ('<!DOCTYPE a [<!ENTITY x "y">]>\n<a>&x;</a>', 1, "DOCTYPE"),
        ("plain words", 1, "syntax error"),
    ],
    "sql": [
        ("SELEC name FROM member", 0, ""),
        ("SELECT name,\nFROM\nWHERE a", 0, ""),
        ("CREATE TABLE t (a INT,", 1, "Expecting )"),
        ("CREATE TABLE t a INT b", 0, "CREATE"),
        ("INSERT INTO t VALUES (1, 'it", 0, "quotation"),
        ("hello world", 0, "expression"),
        ("-- nothing", 0, "no statement"),
        ("SELECT " + "(" * 40 + "1" + ")" * 40, 0, "deeply"),
    ],
    "python": [
        ("def f(:\n  pass", 1, "invalid syntax"),
        ("x = 1\nif x\n  y", 2, "expected ':'"),
        ("print 'a'", 1, "print"),
        ("1+" * 9000 + "1", 0, "deeply"),
        ("-" * 15000 + "1", 0, "deeply"),
        ("x = '\0'", 0, "null"),
    ],
    "html": [
        ("<div><p>a</div></p>", 1, "</p>"),
        ("<div>\n<span>a", 2, "<span> is never ended"),
        ("<div>\n<span>a</div></span>", 2, "</div>"),
        ("<div", 1, "does not end"),
        ("<b>\n<!-- a", 2, "-->"),
        ("no tag at all", 0, "no tag"),
    ],
    "csv": [("a,b\n1,2\n1,2,3", 3, "3 fields, and 2")],
}


@pytest.mark.parametrize(("notation", "text"), [(notation, text) for notation in VALID for text in VALID[notation]])
def test_what_is_valid_passes(notation: Notation, text: str) -> None:
    assert VALID.keys() == NAMES.keys()
    assert fault(text, notation=notation) is None
    fenced = f"Do this with it:\n```{notation}\n{text}\n```\nThank you."
    assert check_added_input(fenced, parent="Do this.") is None


@pytest.mark.parametrize(
    ("notation", "text", "line", "message"),
    [(notation, *case) for notation in INVALID for case in INVALID[notation]],
)
def test_what_is_not_is_dropped_with_notation_line_and_message(
    notation: Notation, text: str, line: int, message: str
) -> None:
    found = fault(text, notation=notation)
    assert found is not None
    assert message in found.message
    assert not line or found.line == line
    reason = check_added_input(f"Do this with it:\n~~~ {notation}\n{text}\n~~~\n", parent="Do this.")
    assert reason is not None
    assert reason.rule == "invalid_input"
    assert NAMES[notation] in reason.evidence
    assert len(reason.evidence) < 250
    if line:
        assert f"line {line}" in reason.evidence


@pytest.mark.parametrize("text", ["if true; then", "echo 'it", "$ ls\nfiles (3)\n$ for x in", "$(" * 9000])
def test_shell_is_read_with_bash_or_without_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("bash"):
        assert fault(text, notation="shell") is not None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert (fault(text, notation="shell") is not None) == ("'" in text)


@pytest.mark.parametrize(
    ("candidate", "parent"),
    [
        ('Which is larger in {"a": 5, "b": 7}, and why?', "Which is larger?"),
        ('Add the visitors:\n{"visitors": [12, 7]}', "Add the visitors."),
        ("Which of these is largest? [12, 7, 31]", "Which is largest?"),
        ("Sum these up: <items><n>1</n><n>2</n></items> please.", "Sum up."),
        ("Mend this page:\n<div><img src='a'></div>\nAnd say how.", "Mend a page."),
        ("Say what this returns.\n\nSELECT name\nFROM member;\n\nAnd why.", "Say what it returns."),
        ("What is wrong here?\n\ndef f(x):\n    return x\n", "What is wrong?"),
        ("What does this list?\n$ ls -l | head", "What does it list?"),
        ("Add up the last column:\nname,age\nAda,36\nIvo,5", "Add up."),
        ("Sort this list:\nitem\nfig\napple", "Sort a list."),
        ("Sort by age:\n| name | age |\n|---|---|\n| Ada | 36 |", "Sort by age."),
        ("Explain these settings:\n```yaml\na: [1\n```", "Explain the settings."),
        ("Say it shorter:\n```\nIt was a dark night, and nobody was there.\n```", "Say it shorter."),
        ('Compare both:\n```json\n[1]\n```\n```json\n{"a": 2}\n```', "Compare both:\n```json\n[1]\n```"),
        ("Is this open?\n```json\n[1, 2]", "Is it open?"),
        ("Which month is best in what `SELECT month, SUM(total) FROM sales GROUP BY month` returns?", "Which is best?"),
        ("Name the best month in `sales = {'jan': 10, 'feb': 12}`, and say why.", "Name the best month."),
        ("Say what `cut -d, -f2 sales.csv | sort -n` prints, and why.", "Say what it prints."),
        ('Is <sale month="jan" total="10"/> worth more than it cost?', "Is it worth it?"),
        ('Read it:\n```xml\n<!DOCTYPE note SYSTEM "note.dtd">\n<note>Hi</note>\n```', "Read it."),
    ],
)
def test_data_is_found_wherever_it_stands(candidate: str, parent: str) -> None:
    assert check_added_input(candidate, parent=parent) is None
    assert added_blocks(candidate, parent=parent)


@pytest.mark.parametrize(
    ("candidate", "parent", "told"),
    [
        ("Name three primes above 100, and say why.", "Name a prime.", "no data"),
        ("Select an item from the list, and update the plan.", "Select one.", "no data"),
        ("What is wrong?\n\nint n = 5;\nint m = n + 6;\nint k = 7;", "What is wrong?", "no data"),
        ("Write to <ann@example.org> about [topic], see [1] and {name}.", "Write a letter.", "no data"),
        ("Use it twice:\n```json\n[1, 2]\n```", "Use it:\n```json\n[1, 2]\n```", "no data"),
        ("Rename `total` and `the - x` so that `month name` sorts, or `x - y > 3`.", "Rename it.", "no data"),
        ("Explain `SELECT FROM WHERE` to a child, and `x = (`.", "Explain it.", "no data"),
        ("Explain `select -a |` and `for x in -y`.", "Explain it.", "no data"),
        ("Break the line with <br/> before each <hr />.", "Break the line.", "no data"),
        ("Sort this:\n[3, 1, ", "Sort a list.", "JSON"),
        ('Read it:\n{"a": [1, 2}\nThank you.', "Read it.", "JSON does not parse at its line 1"),
        ("Sum up <items><n>1</n><n>2</items>", "Sum up.", "XML"),
        ("Mend <div><b>this</div>.", "Mend it.", "HTML"),
        ('Compare:\n```json\n[1]\n```\n```\n{"a": 2\n```', "Compare.", "JSON"),
        ("Use all:\n" + "```json\n[1]\n```\n" * (MOST_BLOCKS + 1), "Use it.", "more than is checked"),
        (f"Use all:\n```json\n[{'1,' * LARGEST}1]\n```", "Use it.", "more than is checked"),
        ("a " * LONGEST, "Use it.", "more than is checked"),
        ("Half a character: [1, 2]\n```json\n\ud83d\n```", "x", "surrogate"),
    ],
)
def test_what_holds_no_data_or_broken_data_is_dropped(candidate: str, parent: str, told: str) -> None:
    reason = check_added_input(candidate, parent=parent)
    assert reason is not None
    assert reason.rule == "invalid_input"
    assert told in reason.evidence


def test_every_form_of_a_task_of_the_simulated_world_passes() -> None:
    rng = random.Random(5)
    for number in range(200):
        task = world.sample_task(rng, steps=1 + number % 3)
        before = world.render(task)
        for form in world.FORMS[1:]:
            after = world.render(world.Task(task.steps, task.items, form, task.opener))
            assert check_added_input(after, parent=before) is None, after


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap, hook = tmp_path / "executed", tmp_path / "hook"
    hook.write_text(f"touch {trap}\n")
    monkeypatch.setenv("BASH_ENV", str(hook))
    monkeypatch.setenv("ENV", str(hook))
    monkeypatch.setenv("BASH_FUNC_echo%%", f"() {{ touch {trap}; }}")
    for notation, text in {
        "shell": f"touch {trap}\n$(touch {trap})\n`touch {trap}`\necho <(touch {trap})",
        "python": f"open({str(trap)!r}, 'w')\n__import__('os').system('touch {trap}')",
        "sql": f"ATTACH DATABASE '{trap}' AS x; CREATE TABLE x.y (z INT)",
    }.items():
        check_added_input(f"Do this:\n```{notation}\n{text}\n```", parent="Do.")
    assert not trap.exists()


def test_no_file_and_no_entity_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    for text in (
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]><x>&a9;</x>',
        f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{tmp_path}/secret">]><x>&a;</x>',
        f'<!DOCTYPE x SYSTEM "file://{tmp_path}/secret" [<!ENTITY % a SYSTEM "file://{tmp_path}/secret"> %a;]><x/>',
    ):
        began = time.perf_counter()
        reason = check_added_input(f"Read it:\n```xml\n{text}\n```", parent="Read it.")
        assert reason is not None
        assert "DOCTYPE" in reason.evidence
        assert time.perf_counter() - began < 1
    # What is only named is not opened: of this one it would not even be well-formed.
    (tmp_path / "bad.dtd").write_text("<!ENTITY")
    assert fault(f'<!DOCTYPE x SYSTEM "{tmp_path}/bad.dtd">\n<x/>', notation="xml") is None


PIECES = (
    "<a ", "<a b='", "<", "</", "<!--", "<![CDATA[", "<?", "&a;", "(", "[", "{", '{"a":', "[1,", "'", '"', "`", "```\n",
    "~~~\n", "```json\n", "$(", "$ a\n", "SELECT a FROM ", "SELECT (", "CASE WHEN ", ">>> ", "def f(", "lambda: ", "-",
    "1+", "not ", "a,b\n", "| a |\n", "a\n", "\n\n", "\0", "\ud800", "é", "\u2028", "{'", "<p>", "<script>", "\t",
)  # fmt: skip


@given(
    text=st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), max_size=12).map("".join),
    tag=st.sampled_from(["", *NAMES, "text", "yaml"]),
    parent=st.sampled_from(["", "Name a prime."]),
)
def test_no_text_makes_it_raise(text: str, tag: str, parent: str) -> None:
    for candidate in (text, f"Use it:\n```{tag}\n{text}\n```"):
        if tag == "shell" and candidate != text:
            continue  # a process each: below
        reason = check_added_input(candidate, parent=parent)
        assert reason is None or (reason.rule == "invalid_input" and len(reason.evidence) < 250)
        assert isinstance(words_added(candidate, parent=parent), int)


def seconds(text: str) -> float:
    began = time.perf_counter()
    check_added_input(text, parent="Use it.")
    words_added(text, parent="Use it.")
    return time.perf_counter() - began


@pytest.mark.parametrize("piece", ["<a ", "(", "~~~\n", '{"a":', "1+"])
def test_a_hostile_text_is_read_in_bounded_time(piece: str) -> None:
    assert seconds((piece * LONGEST)[: LONGEST // 5]) < 5
    notation = {"<a ": "html", "(": "sql", "~~~\n": "csv", '{"a":': "json", "1+": "python"}[piece]
    assert seconds(f"Use it:\n```{notation}\n{(piece * LARGEST)[: LARGEST - 1]}\n```") < 5


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_no_hostile_text_takes_five_seconds_at_any_size(piece: str) -> None:
    assert seconds((piece * 1_000_000)[:1_000_000]) < 5
    assert seconds((piece * LONGEST)[:LONGEST]) < 5
    for notation in NAMES:
        assert seconds(f"Use it:\n```{notation}\n{(piece * LARGEST)[: LARGEST - 1]}\n```") < 5


@pytest.mark.parametrize(
    ("candidate", "parent", "added"),
    [
        ("Name a prime above one hundred.", "Name a prime.", 3),
        ("Name it.", "Name a prime.", -1),
        ('Name a prime that is in this list:\n```json\n{"primes": [2, 3, 4]}\n```', "Name a prime.", 5),
        ('Name a prime in {"primes": [2, 3, 4]} please.', "Name a prime.", 2),
        ("素数を一つ挙げ、理由も述べよ。", "素数を一つ挙げよ。", 3),
    ],
)
def test_words_are_counted_beside_the_data(candidate: str, parent: str, added: int) -> None:
    assert words_added(candidate, parent=parent) == added

"""Whether the data that a rewrite added parses, as complicate-input asks, and how many words it added beside.

    check_added_input('Sort this:\n```json\n[3, 1\n```', parent="Sort a list.")
        -> Reason("invalid_input", "the JSON does not parse at its line 1: Expecting ',' delimiter")

Data is what stands in a fence, and JSON, XML, HTML, SQL, Python, shell commands or rows of a table that stand in the
text by themselves. Of the latter only JSON, XML and HTML begin and end where everybody would say so: they must parse.
The others count as data if they do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data_gen.eliminate import Reason
from data_gen.notations import LARGEST, NAMES, Fault, Notation, decode_json, fault
from data_gen.word_counts import count_words

MOST_BLOCKS = 20
"""Pieces of data that a rewrite may add; it is asked for one."""

LONGEST = 200_000
"""Characters of a rewrite in which data is looked for; it takes half a second for so many at worst."""

_TRIES = 100  # places where unfenced data may begin that are looked at
_BEGIN = 1000  # characters by which a notation is told

_TAGGED: Mapping[Notation, str] = MappingProxyType(
    {
        "json": "json geojson",
        "jsonl": "jsonl ndjson",
        "xml": "xml svg xsd rss",
        "sql": "sql mysql postgres postgresql sqlite tsql",
        "python": "python py python3 pycon",
        "html": "html htm xhtml",
        "shell": "shell sh bash zsh console shell-session terminal",
        "csv": "csv tsv",
    }
)
_TAGS = MappingProxyType({tag: notation for notation, tags in _TAGGED.items() for tag in tags.split()})
_SAYS_NOTHING = ("", "text", "txt", "plaintext", "data", "plain")


@dataclass(frozen=True)
class Block:
    """A piece of data in a text: from `start` to `end` with its fence, and what it holds."""

    start: int
    end: int
    text: str
    notation: Notation | None
    """None for one that is not known here, such as YAML: it is taken for data, and is not checked."""


def check_added_input(candidate: str, *, parent: str) -> Reason | None:
    """Drops a rewrite that adds data which does not parse, or that adds none; whatever the texts, it never raises."""
    if len(candidate) > LONGEST:
        return Reason("invalid_input", f"{len(candidate):,} characters: more than is checked")
    blocks = added_blocks(candidate, parent=parent)
    if not blocks:
        return Reason("invalid_input", "no data was added")
    size = sum(len(block.text) for block in blocks)
    if len(blocks) > MOST_BLOCKS or size > LARGEST:
        return Reason("invalid_input", f"{len(blocks)} pieces of data, {size:,} characters: more than is checked")
    for block in blocks:
        if block.notation and (found := fault(block.text, notation=block.notation)):
            return Reason("invalid_input", _told(found, block.notation))
    return None


def words_added(candidate: str, *, parent: str) -> int:
    """Words that a rewrite has more than its parent (fewer: below 0); what it added as data does not count."""
    prose, place = [], 0
    for block in added_blocks(candidate, parent=parent):
        prose.append(candidate[place : block.start])
        place = block.end
    return count_words(" ".join([*prose, candidate[place:]])) - count_words(parent)


def added_blocks(candidate: str, *, parent: str) -> tuple[Block, ...]:
    """The data in a rewrite that its parent does not hold, in the order in which it stands there.

    None is looked for in one of more than `LONGEST` characters.
    """
    if len(candidate) > LONGEST:
        return ()
    fenced = list(_fenced(candidate))
    rest, place = [], 0
    for block in fenced:  # what stands in a fence is read once, and places stay what they are
        rest += [candidate[place : block.start], "\n" * (block.end - block.start)]
        place = block.end
    unfenced = _unfenced("".join([*rest, candidate[place:]]), parent=parent)
    blocks = sorted([*fenced, *unfenced], key=lambda block: block.start)
    return tuple(block for block in blocks if block.text.strip() not in parent)


def _told(found: Fault, notation: Notation) -> str:
    message = " ".join(found.message.split())[:120]
    where = f" at its line {found.line}" if found.line else ""
    return f"the {NAMES[notation]} does not parse{where}: {message}"


# --- finding


_FENCE = re.compile(r"^[ ]{0,3}(?P<fence>`{3,}|~{3,})[ ]*(?P<tag>[^\s`]*)[^`\n]*$", re.MULTILINE)


def _fenced(text: str) -> Iterator[Block]:
    """Fenced blocks as in Markdown: one that is never closed goes to the end."""
    place = 0
    while opening := _FENCE.search(text, place):
        closing = re.compile(rf"^[ ]{{0,3}}{opening['fence']}{opening['fence'][0]}*[ \t]*$", re.MULTILINE)
        closed = closing.search(text, opening.end())
        end, place = (closed.start(), closed.end()) if closed else (len(text), len(text))
        inside = text[opening.end() : end].strip("\n")
        tag = opening["tag"].lower().strip("{}.")
        notation = looks_like(inside) if tag in _SAYS_NOTHING else _TAGS.get(tag)
        yield Block(opening.start(), place, inside, notation)
        if not closed:
            return


_HTML_NAMES = (
    "html head body div span table tr td th ul ol li p a img form input button h1 h2 h3 br b i em strong script style"
)
_LOOKS: Sequence[tuple[Notation, re.Pattern[str]]] = (
    (
        "json",
        re.compile(r"""\{\s*(?:"|\}|[\w-]+\s*:) | \[\s*(?:["{\[] | (?:-?\d[\d.]*|true|false|null)\s*,)""", re.VERBOSE),
    ),
    ("html", re.compile(rf"<(?:!doctype\s+html|(?:{_HTML_NAMES.replace(' ', '|')})[\s/>])", re.IGNORECASE)),
    ("xml", re.compile(r"<(?:\?xml\b|!DOCTYPE\b|[A-Za-z_][\w.:-]*(?:\s[^<>]*)?/?>)")),
    (
        "sql",
        re.compile(
            r"""(?: SELECT\b[^;]{1,500}?\bFROM\b | CREATE\s+(?:\w+\s+){0,2}(?:TABLE|VIEW|INDEX)\b | INSERT\s+INTO\b
                  | UPDATE\s+\S+\s+SET\b | DELETE\s+FROM\b | ALTER\s+TABLE\b | WITH\s+\w+\s+AS\s*\( )""",
            re.VERBOSE,
        ),
    ),
    (
        "python",
        re.compile(
            r""">>>[ ] | (?:async[ ])?def[ ]\w+\( | class[ ]\w+[(:] | import[ ]\w+\s*$ | from[ ][\w.]+[ ]import[ ]
              | print\( | \w+[ ]=[ ](?:[\[{("'\d]|\w+\() | [{\[]\s*'""",
            re.VERBOSE | re.MULTILINE,
        ),
    ),
    ("shell", re.compile(r"\#!\S*sh\b|\$ \S")),
)


def looks_like(text: str) -> Notation | None:
    """The notation that a text seems to be in, by how it begins; None if by none of them."""
    begin = text[:_BEGIN].lstrip()
    for notation, pattern in _LOOKS:
        if pattern.match(begin):
            return notation
    return "csv" if len(_rows(begin.strip().split("\n"))) > 1 else None


def _unfenced(text: str, *, parent: str) -> Iterator[Block]:
    """Data that stands in a text without a fence."""
    taken: list[tuple[int, int]] = []
    for block in itertools.chain(_values(text), _elements(text), _spans(text), _paragraphs(text, parent=parent)):
        if all(block.end <= start or end <= block.start for start, end in taken):
            taken.append((block.start, block.end))
            yield block


def _values(text: str) -> Iterator[Block]:
    """JSON objects, and lists of at least two; one that begins a line and can not be read is taken to the end."""
    pattern, place = re.compile(r"[\[{]"), 0
    for _ in range(_TRIES):
        opening = pattern.search(text, place)
        if opening is None:
            return
        start, place = opening.start(), opening.end()
        begin = text[start : start + LARGEST]
        if looks_like(begin) != "json":
            continue
        try:
            value, length = decode_json(begin)
        except (ValueError, RecursionError):
            if not text[text.rfind("\n", 0, start) + 1 : start].strip():
                yield Block(start, len(text), text[start:].rstrip(), "json")
                return
            continue
        if len(value) > 1 or isinstance(value, dict):
            place = start + length
            yield Block(start, place, text[start:place], "json")


def _elements(text: str) -> Iterator[Block]:
    """XML or HTML from its first tag to the last that ends it."""
    place = 0
    for _ in range(_TRIES):
        opening = re.compile(r"<(?:\?xml|!DOCTYPE)\b|<(?P<name>[A-Za-z_][\w.:-]*+)[^<>]*+>").search(text, place)
        if opening is None:
            return
        start, place, name = opening.start(), opening.end(), opening["name"]
        end = text.rfind(f"</{name}>", place) + len(f"</{name}>") if name else text.rfind(">", place) + 1
        if end > place:
            yield Block(start, end, text[start:end], looks_like(text[start:end]) or "xml")
            place = end
        elif opening[0].endswith("/>") and "=" in opening[0]:
            yield Block(start, place, opening[0], looks_like(opening[0]) or "xml")


_SPAN = re.compile(rf"(?<!`)`(?P<inside>[^`\n]{{4,{_BEGIN}}})`(?!`)")
_COMMAND = re.compile(r"[a-z][\w./-]+ (?:\S+ )*?(?:--?[A-Za-z]|\| \w)")


def _spans(text: str) -> Iterator[Block]:
    """SQL, Python and shell commands between single backticks, as in Markdown, where they parse."""
    for span in itertools.islice(_SPAN.finditer(text), MOST_BLOCKS):
        inside = span["inside"].strip()
        notation: Notation | None = "shell" if _COMMAND.match(inside) else looks_like(inside)
        if notation in ("sql", "python", "shell") and fault(inside, notation=notation) is None:
            yield Block(span.start(), span.end(), inside, notation)


def _paragraphs(text: str, *, parent: str) -> Iterator[Block]:
    """SQL, Python, shell commands and rows, up to an empty line, where they parse; what the parent has is skipped."""
    looks = tries = 0
    for paragraph in re.finditer(r"\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", text):
        lines = paragraph[0].split("\n")
        rows = _rows(lines)
        said = "\n".join(rows)
        if len(rows) > 1 and fault(said, notation="csv") is None:
            yield Block(paragraph.end() - len(said), paragraph.end(), said, "csv")
            continue
        start = paragraph.start()
        for number, line in enumerate(lines):
            looks += 1
            if looks > _TRIES or tries > MOST_BLOCKS:
                return
            notation = looks_like(text[start : min(paragraph.end(), start + _BEGIN)])
            if notation in ("sql", "python", "shell"):
                tries += 1
                said = "\n".join(lines[number:])
                if said in parent:
                    break
                if fault(said, notation=notation) is None:
                    yield Block(start, paragraph.end(), said, notation)
                    break
            start += len(line) + 1


def _rows(lines: Sequence[str]) -> Sequence[str]:
    """The last lines that have equally many fields, at least two, or that are at least three single words."""
    for delimiter in "\t|;,":
        fields = [line.count(delimiter) for line in lines]
        rows = _same_at_the_end(fields)
        told = lines[len(lines) - rows :]
        if fields[-1] and rows > 1 and not any(re.search(r"[.?!:;{}]$", line.rstrip()) for line in told):
            return told
    single = _same_at_the_end([bool(re.fullmatch(r"[\w.-]*\w", line.strip())) for line in lines])
    return lines[len(lines) - single :] if single > 2 and re.fullmatch(r"[\w.-]*\w", lines[-1].strip()) else ()


def _same_at_the_end(values: Sequence[int]) -> int:
    """How many of the last values equal the last."""
    return next((count for count, value in enumerate(reversed(values)) if value != values[-1]), len(values))

"""One lineage as a tree in the terminal: what each round made of the instruction, what it cost, and what changed.

What models wrote is shown as text: it is no markup here, and its control characters are left out, for in a terminal
they can move the cursor, rename the window, or turn the direction of what follows.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.errors import UserError
from configs.folder import COMPLETE, IDENTITY, read_identity
from data_gen import shards
from data_gen.evolve import Lineage
from data_gen.finish import DATASET, REJECTED
from data_gen.lineage_steps import Change, Step, difference, lineage_id, lineage_steps
from data_gen.llm import journal_file
from data_gen.llm.chat import Spent
from data_gen.llm.journal import JOURNAL
from data_gen.llm.pricing import dollars
from data_gen.records import Record, Rejected
from data_gen.report_counts import read_rejected
from data_gen.report_lineages import SEED

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text
    from rich.tree import Tree

SHORT = 1_200
"""Characters of each text, unless the whole is asked for."""

_NEAREST = 3
_JOINERS = "\u200c\u200d"  # of Indic scripts, Persian and emoji: invisible, and part of the text

Texts = Literal["short", "whole"]
_State = Literal["finished", "unfinished"]


class ShowError(UserError):
    """There is no such lineage in the folder."""


@dataclass(frozen=True)
class Found:
    """A lineage as far as it has come, and what it cost by round."""

    lineage: Lineage
    costs: Mapping[int, Spent]
    state: _State


def show_lineage(folder: Path, seed_id: str, *, console: Console | None = None, texts: Texts = "short") -> None:
    """Prints the lineage of a seed from the folder of a `wizard evolve`, finished or not, `answer` or `merge`.

    `seed_id` is a lineage as reports and records name it, such as 000017 or 17, or the id of a record, as 000017/2.

    Raises:
      ShowError: it is not there; the message names the nearest that are.
      JournalError: the run is under way, or its journal is damaged.
    """
    print_lineage(find_lineage(folder, seed_id), console=console, texts=texts)


def print_lineage(found: Found, *, console: Console | None = None, texts: Texts = "short") -> None:
    """Prints a lineage as a tree: every step with its verdict, its cost and what it changed."""
    from rich.console import Console

    console = console or Console()
    console.print(_tree(found, texts=texts, marked="in words" if console.color_system is None else "in colours"))


def find_lineage(folder: Path, seed_id: str) -> Found:
    """A lineage from the journal, or, where that saved none, from the data set. Raises as `show_lineage`.

    The journal of a merge, for one, holds only what a judge said of the whole.
    """
    wanted = seed_id.split("/")[0]
    if not (folder / JOURNAL).exists():
        return _in_dataset(folder, wanted)
    with contextlib.closing(journal_file.read_only(folder / JOURNAL)) as db:
        if not _saved_any(db) and (folder / DATASET / shards.MANIFEST).exists():
            return _in_dataset(folder, wanted)
        number = _number(wanted)
        if number is None:
            raise ShowError(f"{seed_id!r} is no seed of {folder}: seeds are numbered there, {_some(db)}")
        return _in_journal(db, folder, number)


# Of each row the seed. Its index is the seed's number where seeds are evolved, and a record's number where records are
# answered anew; but with either, what is saved as seed_id begins with the lineage.
_SEED = "CAST(seed_id AS INTEGER)"


def _saved_any(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM lineages LIMIT 1").fetchone() is not None


def _some(db: sqlite3.Connection) -> str:
    first, last, count = db.execute(f"SELECT min({_SEED}), max({_SEED}), count(*) FROM lineages").fetchone()
    return f"from {_name(first)} to {_name(last)}" if count else "and none is through yet"


def _nearest(db: sqlite3.Connection, seed: int) -> str:
    rows = db.execute(
        f"SELECT {_SEED} AS seed FROM lineages GROUP BY seed ORDER BY abs(seed - ?) LIMIT ?", (seed, _NEAREST)
    )
    near = ", ".join(_name(number) for (number,) in rows)
    return f"the nearest are {near}" if near else "none is through yet"


def _number(wanted: str) -> int | None:
    """The number of the seed that is meant, such as 17 by 000017 or 17."""
    return int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 18 else None


def _name(seed: int) -> str:
    return f"{seed:06d}"


def _in_journal(db: sqlite3.Connection, folder: Path, seed: int) -> Found:
    """All that is saved of a seed: one row where it was evolved, one for each of its records where they were answered.

    Whether all of its records are answered, only a folder that is finished tells.
    """
    name = _name(seed)
    found = db.execute(f'SELECT "index" FROM lineages WHERE {_SEED} = ? ORDER BY "index"', (seed,)).fetchall()
    saved = [journal_file.lineages_after(db, index=index - 1)[0] for (index,) in found]
    lineage = _joined([Lineage.from_json(one.payload) for one in saved])
    costs = journal_file.spent_by_round(db, lineage=name)
    if not lineage.records and not lineage.rejected:
        begun = sum(spent.calls for spent in costs.values())
        if not begun and not saved:
            raise ShowError(f"there is no seed {seed} in {folder}: {_nearest(db, seed)}")
        raise ShowError(
            f"seed {name} of {folder} is not through: {begun} of its replies are in the journal; start the run "
            "again to finish it"
        )
    may_miss = _is_of_answer(folder) and not (folder / COMPLETE).exists()
    state: _State = "unfinished" if may_miss or not all(one.finished for one in saved) else "finished"
    return Found(_without_what_was_dropped_later(lineage, folder / REJECTED), costs, state)


def _is_of_answer(folder: Path) -> bool:
    return (folder / IDENTITY).exists() and read_identity(folder).stage == "answer"


def _joined(parts: Sequence[Lineage]) -> Lineage:
    """One lineage of what was saved of it in parts, in the order of rounds."""
    outcomes: list[Record | Rejected] = []
    for part in parts:
        outcomes += (*part.records, *part.rejected)
    return Lineage.of(sorted(outcomes, key=lambda outcome: outcome.round))


def _without_what_was_dropped_later(lineage: Lineage, rejected: Path) -> Lineage:
    """The lineage with what a check after the run dropped among its rejected: the journal knows no such checks."""
    if not rejected.exists():
        return lineage
    name = lineage_id(lineage)
    known = {(row.round, row.rule) for row in lineage.rejected}
    later = [row for row in _rows_of(rejected, name) if (row.round, row.rule) not in known]
    rounds = {row.round for row in later}
    records = tuple(record for record in lineage.records if record.round not in rounds)
    return Lineage(records, (*lineage.rejected, *later))


def _rows_of(rejected: Path, lineage: str) -> Iterator[Rejected]:
    named = json.dumps(lineage)
    with rejected.open(encoding="utf-8") as lines:
        for line in lines:
            if named in line and (row := Rejected(**json.loads(line))).lineage == lineage:
                yield row


def _in_dataset(folder: Path, wanted: str) -> Found:
    """Where no lineage is in a journal: all of the data set is read, which takes a while."""
    number = _number(wanted)
    name = wanted if number is None else _name(number)
    records = [record for record in shards.read_dataset(folder) if record.lineage in (wanted, name)]
    file = shards.dataset_folder(folder).parent / REJECTED
    rows = read_rejected(file) if file.exists() else ()
    dropped = [row for row in rows if row.lineage in (wanted, name)]
    if not records and not dropped:
        raise ShowError(f"there is no lineage {wanted!r} in {folder}: its report.html names some")
    return Found(_joined([Lineage(tuple(records), tuple(dropped))]), {}, "finished")


# --- the tree

_Marked = Literal["in colours", "in words"]
_STYLES = {"same": "", "added": "green", "removed": "red strike"}
_MARKS = {"same": ("", ""), "added": ("{+", "+}"), "removed": ("[-", "-]")}


def _tree(found: Found, *, texts: Texts, marked: _Marked) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    steps = lineage_steps(found.lineage)
    kept = sum(step.verdict == "kept" for step in steps)
    facts = [f"{kept} kept", f"{len(steps) - kept} dropped", *_paid(found.costs)]
    if found.state == "unfinished":
        facts.append("unfinished")
    title = Text(f"lineage {plain(lineage_id(found.lineage))}", style="bold")
    title.append(f"  {', '.join(facts)}; from {plain(steps[0].source) or 'an unnamed source'}", style="not bold")
    tree = Tree(title)
    nodes: dict[int, Tree] = {}
    for step in steps:
        above = nodes.get(step.parent_round, tree) if step.parent_round is not None else tree
        nodes[step.round] = above.add(_node(step, found.costs.get(step.round), texts=texts, marked=marked))
    return tree


def _paid(costs: Mapping[int, Spent]) -> list[str]:
    total = sum(spent.usd for spent in costs.values())
    return [dollars(total)] if total else []


def _node(step: Step, spent: Spent | None, *, texts: Texts, marked: _Marked) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = Text(f"round {step.round} ", style="bold")
    head.append(f"{plain(step.operation) or SEED} ", style="cyan")
    head.append("kept" if step.verdict == "kept" else f"dropped: {plain(step.rule)}", style=_verdict_style(step))
    known = [
        f"{step.words_added:+d} words" if step.words_added is not None else "",
        f"{step.steps} step{'s' * (step.steps != 1)}" if step.steps else "",
        f"written by {plain(step.evolver)}" if step.evolver and step.evolver != step.model else "",
        f"answered by {plain(step.model)}" if step.model else "",
        f"drawn with probability {step.propensity:.3g}" if step.propensity else "",
        dollars(spent.usd) if spent and spent.usd else "",
        *(f"flagged: {plain(flag)}" for flag in step.flags),
    ]
    told = ", ".join(fact for fact in known if fact)
    parts: list[RenderableType] = [head if not told else head.append(f"  {told}", style="not bold dim")]
    if step.evidence:
        parts.append(Text(plain(_cut(step.evidence, texts)), style="yellow"))
    parts.append(_instruction(step, texts=texts, marked=marked))
    if step.answer:
        parts.append(Text(f"answer: {plain(_cut(step.answer, texts))}", style="dim"))
    parts.append(Text(""))
    return Group(*parts)


def _verdict_style(step: Step) -> str:
    return "green" if step.verdict == "kept" else "red"


def _instruction(step: Step, *, texts: Texts, marked: _Marked) -> Text:
    from rich.text import Text

    if not step.instruction:
        return Text("(no instruction came back)", style="dim")
    now = _cut(step.instruction, texts)
    changes = difference(_cut(step.parent, texts), now) if step.parent is not None else None
    if changes is None or not any(change.kind == "same" for change in changes):
        return Text(plain(now))
    text = Text()
    for change in changes:
        text.append(_marked(change) if marked == "in words" else plain(change.text), style=_STYLES[change.kind])
    return text


def _marked(change: Change) -> str:
    """A change without colours: the space that follows stays outside of the marks."""
    text = plain(change.text)
    words = text.rstrip()
    before, after = _MARKS[change.kind]
    return f"{before}{words}{after}{text[len(words) :]}"


def _cut(text: str, texts: Texts) -> str:
    if texts == "whole" or len(text) <= SHORT:
        return text
    return f"{text[:SHORT]} [... {len(text) - SHORT:,} more characters]"


def plain(text: str) -> str:
    """Text without what a terminal would obey: control and format characters, but for new lines and tabs."""
    kept = (
        character
        for character in text.replace("\r\n", "\n")
        if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )
    return "".join(kept)

"""The lineages on a data set's page: each step with its verdict, its cost, and how it differs from its parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from data_gen.evolve import Lineage
from data_gen.lineage_steps import Step, difference, lineage_id, lineage_steps
from data_gen.llm.chat import Spent
from data_gen.llm.pricing import dollars
from data_gen.page import Content, Html, element, folded, join, searchable
from data_gen.word_counts import count_words

MOST_CHARACTERS = 3_000
"""Of one text on the page; what is cut off is said."""
MOST_MARKUP = 2_000_000
"""Characters of all lineages together: the page stays below 3 MB even where every text is escaped."""

SEED = "seed"

CostsOf = Callable[[str], Mapping[int, Spent]]
"""What a lineage cost, by round."""


def lineages_section(sample: Sequence[Lineage], *, of: int, costs: CostsOf | None) -> Html:
    """The lineages of a sample, searchable by text and filtered by operation, verdict, round and source.

    `of` is the number of lineages in the whole data set.
    """
    shown: list[Html] = []
    steps_shown: list[Step] = []
    size = 0
    for lineage in sample:
        steps = lineage_steps(lineage)
        name = lineage_id(lineage)
        item = _lineage(name, steps, costs=costs(name) if costs else {})
        size += len(item.markup)
        if shown and size > MOST_MARKUP:
            break
        shown.append(item)
        steps_shown += steps
    filters = {
        "operation": sorted({step.operation or SEED for step in steps_shown}),
        "verdict": sorted({_verdict(step) for step in steps_shown}),
        "round": [str(number) for number in sorted({step.round for step in steps_shown})],
        "source": sorted({step.source for step in steps_shown}),
    }
    cut = f" {len(sample) - len(shown)} more would have made the page too large." if len(shown) < len(sample) else ""
    text = (
        f"{len(shown):,} of {of:,} lineages, chosen by a hash of their ids, so in no way by their content.{cut} "
        "For any other: wizard show SEED_ID --folder FOLDER."
    )
    return join(element("p", text), searchable(shown, filters=filters))


def _lineage(name: str, steps: Sequence[Step], *, costs: Mapping[int, Spent]) -> Html:
    total = sum(spent.usd for spent in costs.values())
    paid = f", {dollars(total)}" if total else ""
    kept = sum(step.verdict == "kept" for step in steps)
    head = element("h3", f"Lineage {name} ", element("small", f"{kept} kept, {len(steps) - kept} dropped{paid}"))
    parts = [_step(step, spent=costs.get(step.round)) for step in steps]
    return element("article", head, *parts, css="item")


def _verdict(step: Step) -> str:
    return step.rule or step.verdict


def _step(step: Step, *, spent: Spent | None) -> Html:
    known: dict[str, Content] = {
        "": f"round {step.round}",
        "operation": step.operation or SEED,
        "verdict": f"dropped: {step.rule}" if step.rule else step.verdict,
    }
    if step.words_added is not None:
        known["words added"] = f"{step.words_added:+d} words"
    if step.steps:
        known["steps"] = f"{step.steps} step{'s' * (step.steps != 1)}"
    if step.evolver and step.evolver != step.model:
        known["evolver"] = f"written by {step.evolver}"
    if step.model:
        known["model"] = f"answered by {step.model}"
    if spent and (spent.usd or spent.calls):
        known["cost"] = (
            dollars(spent.usd) if spent.usd else f"{spent.calls} {'reply' if spent.calls == 1 else 'replies'}"
        )
    for flag in step.flags:
        known[f"flag {flag}"] = f"flagged: {flag}"
    tags = element("p", *(element("span", value, css="tag") for value in known.values()))
    parts: list[Content] = [tags]
    if step.rule:
        parts.append(element("p", cut(step.evidence), css="note"))
    parts.append(_instruction(step))
    if step.answer:
        words = count_words(step.answer)
        parts.append(folded(f"answer, {words:,} word{'s' * (words != 1)}", element("pre", cut(step.answer))))
    data: dict[str, str | int] = {
        "operation": step.operation or SEED,
        "verdict": _verdict(step),
        "round": step.round,
        "source": step.source,
    }
    return element("section", *parts, css=f"part {step.verdict}", data=data)


def _instruction(step: Step) -> Html:
    if not step.instruction:
        return element("p", element("small", "no instruction came back"))
    text = element("pre", cut(step.instruction))
    if step.parent is None:
        return text
    changes = difference(cut(step.parent), cut(step.instruction))
    if changes is None or step.instruction == step.parent:
        note = "the same text as before" if changes is not None else "too long to mark what changed"
        return join(element("small", note), text)
    mark = {"same": "span", "added": "ins", "removed": "del"}
    marked = element("pre", *(element(mark[change.kind], change.text) for change in changes))
    if not any(change.kind == "same" for change in changes):
        return join(element("small", "shares no word with its parent"), text)
    return marked if not any(c.kind == "removed" for c in changes) else join(marked, folded("as it reads now", text))


def cut(text: str) -> str:
    """The text, or its beginning with a note of how much is missing."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} [... {len(text) - MOST_CHARACTERS:,} more characters]"

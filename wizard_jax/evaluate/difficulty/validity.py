"""Whether harder instructions are still good ones: can they be answered, and do several answers agree?

`task = @Validity` asks models (the teacher, say) the instructions of a data set k times each. An instruction is

    answerable        more than half of its answers neither refuse nor say that something is missing
    self-consistent   more than half of its answers are answers and come to the same
    valid             both

and harder where the judge of the data set ranked it above what it was rewritten from, or else scored it higher; in the
simulated world, where it has more steps. What an answer comes to is the result of a task of the simulated world, and
of any other its words, for no program checks it: agreement in words is little to ask for of short answers only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError
from data_gen import world
from data_gen.eliminate import REFUSAL_WORDS, empty_answer, refusal
from data_gen.framing import quoted, without_thoughts
from data_gen.measure.measure import sample_lineages
from data_gen.records import Record
from data_gen.shards import read_dataset, read_manifest
from wizard_jax.evaluate.config import Validity
from wizard_jax.evaluate.difficulty.judged import JudgedDifficulty, read_judged
from wizard_jax.evaluate.items import Answer, Item, Items, Score
from wizard_jax.evaluate.statistics.shares import wilson

ANSWERABLE = "answerable"
RIGHT = "right"

_MISSING = re.compile(
    r"""\b(?: (?:is|are|was|were|seems|appears) (?:\ to\ be)? \ missing
          | (?:please|could\ you|can\ you) \ (?:please\ )? (?:provide|share|specify|supply|attach|clarify)
          | needs? \ (?:more|additional|further) \ (?:information|context|details)
          | do(?:\ not|n['’]t) \ see \ (?:any|an?|the) )\b
      | (?:\bnot|n['’]t) \ (?:been\ |actually\ )?
        (?:provided?|given|included?|specif(?:y|ied)|attached|supplied|shared)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def says_missing(answer: str) -> str:
    """What a short answer says of something that it lacks; '' where it says no such thing.

    Short as rule 2 of elimination has it, under 80 words: a long answer gives more than an excuse.
    """
    found = _MISSING.search(answer) if len(answer.split()) < REFUSAL_WORDS else None
    return found[0] if found else ""


def read(config: Validity) -> Items:
    """Single-turn instructions with all their rounds.

    Raises:
      UserError: no records; or `judged` is no run whose judge measured difficulty.
    """
    if config.lineages < 0:
        raise UserError(f"task.lineages is {config.lineages}: a number of lineages, or 0 for all")
    folder = Path(config.dataset)
    manifest = read_manifest(folder)
    judged = read_judged(config.judged, dataset=config.dataset)
    chosen = sample_lineages(read_dataset(folder), count=config.lineages or manifest.records, seed=config.seed)
    records = [record for lineage in chosen for record in lineage]
    single = [record for record in records if not record.context]
    items = tuple(_item(record, judged.get(record.id, JudgedDifficulty(None, None))) for record in single)
    return Items(
        items=items,
        source=config.dataset,
        sha256=manifest.sha256,
        notes=(f"{len(records) - len(single):,} records with turns before the instruction are left out",)
        * (len(single) < len(records)),
        facts={"lineages": len(chosen), "judged": sum(item.details["score"] is not None for item in items)},
    )


def _item(record: Record, judged: JudgedDifficulty) -> Item:
    task = world.parse(record.instruction)
    return Item(
        id=record.id,
        turns=(record.instruction,),
        skill=record.source,
        difficulty=float(record.steps) if record.steps else None,
        band=f"round {record.round}",
        target=world.result(world.answer(task)) if task else "",
        weights={} if task else {RIGHT: 0.0},
        details={"round": record.round, "parent": record.parent, **judged._asdict()},
    )


def score(item: Item, answer: Answer) -> Score:
    """Whether it is an answer, and what it comes to; or why it is none."""
    text = without_thoughts(answer.texts[0])
    excuse = refusal(text) or empty_answer(text)
    missing = says_missing(text)
    if excuse or missing:
        why = f"{excuse.rule}: {excuse.evidence}" if excuse else f"missing: says {quoted(missing)}"
        return Score(values={ANSWERABLE: 0.0, RIGHT: 0.0}, extracted=why)
    came_to = world.result(text) if item.target else _normalised(text)
    return Score(values={ANSWERABLE: 1.0, RIGHT: float(came_to == item.target)}, extracted=came_to)


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


# --- what it comes to


def validity_results(items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By model and round, shares of instructions with their 95 % intervals (Wilson; a lineage is in a round once)."""
    by_id = {item.id: item for item in items}
    samples: defaultdict[tuple[str, int], defaultdict[str, list[Mapping[str, Any]]]]
    samples = defaultdict(lambda: defaultdict(list))
    for row in rows:
        samples[row["model"], by_id[row["id"]].details["round"]][row["id"]].append(row)
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for model, number in sorted(samples):
        found[model].append(_round(number, samples[model, number], by_id))
    return {"validity": dict(found)}


def _round(
    number: int, samples: Mapping[str, Sequence[Mapping[str, Any]]], items: Mapping[str, Item]
) -> dict[str, Any]:
    answered = {name: [row for row in said if not row["problem"]] for name, said in samples.items()}
    answered = {name: said for name, said in answered.items() if len(said) > 1}
    states = {name: state(said) for name, said in answered.items()}
    harder = {name: is_harder(items[name], items) for name in states}
    known = [name for name, said in harder.items() if said is not None]
    reasons = Counter(
        row["extracted"].partition(":")[0]
        for said in answered.values()
        for row in said
        if not row["scores"][ANSWERABLE]
    )

    def share(hits: int, among: int) -> dict[str, float] | None:
        return wilson(hits, among)._asdict() if among else None

    return {
        "round": number,
        "items": len(states),
        "left_out": len(samples) - len(states),
        "checked_by_program": sum(bool(items[name].target) for name in states),
        "answerable": share(sum(one.answerable for one in states.values()), len(states)),
        "self_consistent": share(sum(one.self_consistent for one in states.values()), len(states)),
        "valid": share(sum(one.valid for one in states.values()), len(states)),
        "agreement": sum(one.agreement for one in states.values()) / len(states) if states else None,
        "harder": share(sum(bool(harder[name]) for name in known), len(known)),
        "harder_and_valid": share(sum(bool(harder[name]) and states[name].valid for name in known), len(known)),
        "no_answer": dict(reasons),
    }


class State(NamedTuple):
    """What the samples of one instruction say of it."""

    answerable: bool
    self_consistent: bool
    agreement: float
    """Share of pairs of samples that come to the same; one that is no answer agrees with none."""

    @property
    def valid(self) -> bool:
        return self.answerable and self.self_consistent


def state(said: Sequence[Mapping[str, Any]]) -> State:
    """Of the rows of two samples or more of one instruction."""
    count = len(said)
    came_to = Counter(row["extracted"] for row in said if row["scores"][ANSWERABLE])
    agreeing = sum(times * (times - 1) for times in came_to.values())
    return State(
        answerable=2 * came_to.total() > count,
        self_consistent=2 * max(came_to.values(), default=0) > count,
        agreement=agreeing / (count * (count - 1)),
    )


def is_harder(item: Item, items: Mapping[str, Item]) -> bool | None:
    """Than what it was rewritten from: by rank, else by score, else by steps; None where nothing is known."""
    parent = items.get(item.details["parent"])
    if parent is None:
        return None
    for own, before in (
        (item.details["rank"], parent.details["rank"]),
        (item.details["score"], parent.details["score"]),
        (item.difficulty, parent.difficulty),
    ):
        if own is not None and before is not None:
            return bool(own > before)
    return None

"""Asking a judge: for a pair of answers in both orders, always both, and for grades.

    verdict = await compare(item, candidate, baseline, judge=judge)
    verdict.first, verdict.second   -> 1, 1: the candidate is better wherever it stands

A reply that can not be read is counted and asked for once more, with another key; then the order is not graded, with
the reason, and never lost. An answer that is not there is not graded either: that a model fails to answer is counted
with its answers, and a judge who never saw one has no verdict on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from data_gen.framing import quoted
from data_gen.judging import verdicts, wording
from data_gen.judging.verdicts import Choice
from data_gen.llm.chat import RequestKey
from data_gen.measure import asking, difficulty
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.judging.rows import Graded, Verdict

ATTEMPTS = 2
"""Replies that are asked for until one can be read."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Panelist:
    """One judge of an evaluation: what it is called there, and how it is asked."""

    name: str
    llm: asking.Judge


# --- pairs


async def compare(item: Item, candidate: Answer, baseline: Answer, *, judge: Panelist) -> Verdict:
    """Which of two answers is better, in both orders; of several turns, which model was over all of them.

    Two requests, or four at most; none if an answer is missing, or if both are letter for letter the same: a tie.

    Raises:
      ValueError: one is another of several answers to the item than the other.
      Permanent: with scope "run", when no other request would succeed either.
    """
    if candidate.sample != baseline.sample:
        raise ValueError(f"answers {candidate.sample} and {baseline.sample} to {item.id}: compare those of one number")
    row = Verdict(
        judge=judge.name,
        item=item.id,
        candidate=candidate.model,
        baseline=baseline.model,
        first=0,
        second=0,
        lengths=(_length(candidate), _length(baseline)),
        sample=candidate.sample,
        skill=item.skill,
        difficulty=item.difficulty,
        how="identical",
        prompts=wording.version(),
    )
    missing = "; ".join(filter(None, (_missing(item, answer) for answer in (candidate, baseline))))
    if missing:
        return replace(row, how="no answer", first=None, second=None, problems=(missing, missing))
    if candidate.texts == baseline.texts:
        return row
    first, second = (
        wording.Comparison(turns=item.turns, first=shown[0], second=shown[1], references=_references(item))
        for shown in ((candidate.texts, baseline.texts), (baseline.texts, candidate.texts))
    )
    return await _in_both_orders(row, first, second, judge=judge)


async def compare_instructions(
    harder: str, easier: str, *, item: str, source: str, difficulty: float | None, judge: Panelist
) -> Verdict:
    """Which of two instructions is harder, in both orders: a row whose candidate is "harder" and whose skill `source`.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    row = Verdict(
        judge=judge.name,
        item=item,
        candidate="harder",
        baseline="easier",
        first=0,
        second=0,
        lengths=(len(harder), len(easier)),
        skill=source,
        difficulty=difficulty,
        prompts=wording.version(),
    )
    first, second = (wording.Harder(first=a, second=b) for a, b in ((harder, easier), (easier, harder)))
    return await _in_both_orders(row, first, second, judge=judge)


async def _in_both_orders(
    row: Verdict, first: wording.Question, second: wording.Question, *, judge: Panelist
) -> Verdict:
    """The row as the judge has it; the candidate is shown first in `first`, and second in `second`."""

    async def one(question: wording.Question, order: str) -> _Said[Choice]:
        marker = wording.marker(question)

        def read(reply: str) -> tuple[Choice, str] | None:
            found = verdicts.parse_preference(reply, marker=marker)
            return (found.choice, found.reasons) if found else None

        return await _ask(
            wording.prompt(question),
            read,
            sought=f"no last line {marker}: A, B or tie",
            about=(row.item, row.skill, row.candidate, row.baseline, row.sample, order),
            judge=judge,
        )

    said = await asking.together([one(first, "first"), one(second, "second")])
    as_first, as_second = ({"first": 1, "tie": 0, "second": -1, None: None}[each.value] for each in said)
    return replace(
        row,
        how="asked",
        first=as_first,
        second=None if as_second is None else -as_second,
        reasons=(said[0].reasons, said[1].reasons),
        problems=(said[0].problem, said[1].problem),
        unread=said[0].unread + said[1].unread,
    )


# --- grades


async def grade(item: Item, answer: Answer, *, judge: Panelist) -> tuple[Graded, ...]:
    """A grade for the answer in each turn, which the judge sees with the turns before it (as MT-Bench does).

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    missing, references = _missing(item, answer), _references(item)

    async def one(turn: int) -> Graded:
        row = Graded(
            judge=judge.name,
            item=item.id,
            model=answer.model,
            turn=turn,
            sample=answer.sample,
            grade=None,
            length=0 if missing else len(answer.texts[turn]),
            skill=item.skill,
            difficulty=item.difficulty,
            problem=missing or "not asked",
            prompts=wording.version(),
        )
        upto = slice(turn + 1)
        if missing:
            return row
        question = wording.Grading(
            turns=item.turns[upto], answers=answer.texts[upto], references=references[upto] if references else ()
        )
        marker = wording.marker(question)

        def read(reply: str) -> tuple[float, str] | None:
            found = verdicts.parse_grade(reply, marker=marker)
            return (found.grade, found.reasons) if found else None

        said = await _ask(
            wording.prompt(question),
            read,
            sought=f"no last line {marker}: 1 to 10",
            about=(item.id, item.skill, answer.model, answer.sample, f"turn {turn}"),
            judge=judge,
        )
        return replace(row, grade=said.value, reasons=said.reasons, problem=said.problem, unread=said.unread)

    return tuple(await asking.together([one(turn) for turn in range(len(item.turns))]))


async def grade_instruction(instruction: str, *, item: str, source: str, known: float, judge: Panelist) -> Graded:
    """An instruction's difficulty from 1 to 10, asked for by `data_gen.measure.difficulty`; `known` is the true one.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """

    def read(reply: str) -> tuple[float, str] | None:
        score = difficulty.parse_score(reply)
        return None if score is None else (float(score), "")

    said = await _ask(
        difficulty.score_prompt(instruction),
        read,
        sought="no score from 1 to 10",
        about=(item, source, "", "difficulty"),
        judge=judge,
    )
    return Graded(
        judge=judge.name,
        item=item,
        model="",
        turn=0,
        grade=said.value,
        length=len(instruction),
        skill=source,
        difficulty=known,
        problem=said.problem,
        unread=said.unread,
        prompts=wording.hashed([difficulty.score_prompt("")]),
    )


# --- one request, and once more if its reply can not be read


class _Said(NamedTuple, Generic[T]):
    value: T | None
    reasons: str
    problem: str
    unread: int


async def _ask(
    prompt: str,
    read: Callable[[str], tuple[T, str] | None],
    *,
    sought: str,
    about: Sequence[str | int],
    judge: Panelist,
) -> _Said[T]:
    lineage = json.dumps([judge.name, *about])
    problem = ""
    for attempt in range(ATTEMPTS):
        heard = await asking.ask(prompt, key=RequestKey(lineage, attempt, "judge"), judge=judge.llm)
        if not heard.replied:
            return _Said(None, "", heard.problem, attempt)
        found = None if heard.problem else read(heard.text)
        if found is not None:
            value, reasons = found
            return _Said(value, reasons, "", attempt)
        problem = heard.problem or f"{sought}: {quoted(heard.text)}"
    return _Said(None, "", f"{problem} ({ATTEMPTS} replies)", ATTEMPTS)


def _missing(item: Item, answer: Answer) -> str:
    """Why there is no answer to judge, or ''."""
    if answer.problem:
        return f"no answer of {answer.model}: {answer.problem}"
    if len(answer.texts) != len(item.turns):
        return f"no answer of {answer.model} to {len(item.turns) - len(answer.texts)} of {len(item.turns)} turns"
    return ""


def _references(item: Item) -> tuple[str, ...]:
    return item.references if any(item.references) else ()


def _length(answer: Answer) -> int:
    return sum(map(len, answer.texts))

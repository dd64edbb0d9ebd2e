"""How difficult instructions are to a judge model: each scored by itself, and a lineage ranked in one prompt.

    score_prompt("Name a prime.")            -> "7" is read as 7, anything that is not a score as None
    rank_prompt(["Name a prime.", "Why?"])   -> "[1] 2.5\\n[2] 4" is read as (2.5, 4.0)

The score from 1 to 10 is the one of WizardLM (arXiv 2304.12244, appendix I). Asked for one at a time, judges give
similar scores to all; so Deita (arXiv 2312.15685, section 2.2) shows every version of a lineage at once. Here the
order in which they are shown is drawn anew for each lineage, so that the place of a version does not tell its round.
A reply that can not be read is counted with its reason and never becomes a score.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_gen.framing import framed, numbered, quoted, template, unframed, unnumbered, without_thoughts
from data_gen.llm.chat import RequestKey
from data_gen.measure.asking import Judge, ask, keyed_number, together
from data_gen.measure.estimates import Estimate, bootstrap, mean_of
from data_gen.records import Record

LOWEST, HIGHEST = 1, 10

_CORRELATION_DRAWS = 1_000  # ranking anew takes 0.2 ms a draw, 20 times what a mean takes


# --- the prompts, both ways


def score_prompt(instruction: str) -> str:
    """Asks for the difficulty of one instruction, from 1 to 10."""
    return framed(template("difficulty"), instruction=instruction)


def recognise_score(prompt: str) -> str | None:
    """Exact inverse of `score_prompt`: the instruction; None for any other text."""
    texts = unframed(template("difficulty"), prompt)
    return texts["instruction"] if texts else None


def rank_prompt(instructions: Sequence[str]) -> str:
    """Asks for the difficulties of several instructions at once, shown in the order given."""
    return framed(template("rank"), versions=numbered(instructions))


def recognise_ranking(prompt: str) -> tuple[str, ...] | None:
    """Exact inverse of `rank_prompt`: the instructions in the order shown; None for any other text."""
    texts = unframed(template("rank"), prompt)
    return unnumbered(texts["versions"]) if texts else None


_SCORE = re.compile(
    r"""(?: (?:overall[ ])? (?:score|difficulty|rating) [ ]* [:=] [ ]*)?
        (?P<score> 10 | [1-9] ) (?:\.0)? (?:[ ]* (?:/|out[ ]of) [ ]* 10)? \.?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_LINE = re.compile(
    r"""\[? (?P<number> [1-9][0-9]{0,3} ) (?: \][ ]*[:=]? | [ ]*[:=] ) [ ]*
        (?: score [ ]* [:=] [ ]* )? (?P<score> 10(?:\.0+)? | [1-9](?:\.[0-9]+)? )""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_MARKDOWN = str.maketrans("", "", "*_`#")


def parse_score(reply: str) -> int | None:
    """The score in a reply, which must hold nothing else but a label; None where it can not be read."""
    matched = _SCORE.fullmatch(without_thoughts(reply).translate(_MARKDOWN).strip())
    return int(matched["score"]) if matched else None


def parse_ranking(reply: str, count: int) -> tuple[float, ...] | None:
    """The `count` scores in a reply, in the order shown; None unless it has one line for each, and no other."""
    said = without_thoughts(reply).translate(_MARKDOWN)
    lines = [_LINE.fullmatch(line.strip()) for line in said.splitlines() if line.strip()]
    scores = {int(line["number"]): float(line["score"]) for line in lines if line}
    if None in lines or len(lines) != count or sorted(scores) != list(range(1, count + 1)):
        return None
    return tuple(scores[number] for number in range(1, count + 1))


def format_ranking(scores: Sequence[float]) -> str:
    """A reply that `parse_ranking` reads, with one decimal place."""
    return "\n".join(f"[{number}] {score:.1f}" for number, score in enumerate(scores, start=1))


# --- asking


@dataclass(frozen=True)
class Judged:
    """What the judge said of one instruction: None with a problem where nothing could be read."""

    lineage: str
    round: int
    parent_round: int | None
    """The round of the version that it was rewritten from; None in round 0."""
    score: float | None
    rank: float | None
    """The score in the prompt that shows the whole lineage; None also where a lineage has a single version."""
    problems: tuple[str, ...] = ()


async def score(record: Record, *, judge: Judge) -> tuple[float | None, str]:
    """The score of one instruction, without the turns before it, or None and the reason.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    key = RequestKey(record.lineage, record.round, "difficulty")
    heard = await ask(score_prompt(record.instruction), key=key, judge=judge)
    if heard.problem:
        return None, heard.problem
    said = parse_score(heard.text)
    return said, "" if said is not None else f"no score from {LOWEST} to {HIGHEST}: {quoted(heard.text)}"


async def rank(lineage: Sequence[Record], *, judge: Judge) -> tuple[tuple[float, ...] | None, str]:
    """The scores of all versions of a lineage, judged in one prompt, in the order of `lineage`; or None and the reason.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    order = shown_order(len(lineage), seed=judge.seed, lineage=lineage[0].lineage)
    key = RequestKey(lineage[0].lineage, max(record.round for record in lineage), "rank")
    heard = await ask(rank_prompt([lineage[index].instruction for index in order]), key=key, judge=judge)
    if heard.problem:
        return None, heard.problem
    said = parse_ranking(heard.text, len(lineage))
    if said is None:
        return None, f"no line with a score for each of {len(lineage)}: {quoted(heard.text)}"
    by_index = dict(zip(order, said, strict=True))
    return tuple(by_index[index] for index in range(len(lineage))), ""


def shown_order(count: int, *, seed: int, lineage: str) -> tuple[int, ...]:
    """The order in which the versions of a lineage are shown: its own, and the same again for the same seed."""
    order = list(range(count))
    random.Random(keyed_number(seed, lineage, "shown order")).shuffle(order)
    return tuple(order)


async def judge_lineage(lineage: Sequence[Record], *, judge: Judge) -> tuple[Judged, ...]:
    """Scores each version of a lineage by itself, and ranks them together where there are at least two."""
    scored = await together([score(record, judge=judge) for record in lineage])
    ranked, problem = await rank(lineage, judge=judge) if len(lineage) > 1 else (None, "")
    rounds = {record.id: record.round for record in lineage}
    return tuple(
        Judged(
            lineage=record.lineage,
            round=record.round,
            parent_round=rounds.get(record.parent),
            score=said,
            rank=ranked[index] if ranked else None,
            problems=tuple(f"{what}: {why}" for what, why in (("score", unread), ("rank", problem)) if why),
        )
        for index, (record, (said, unread)) in enumerate(zip(lineage, scored, strict=True))
    )


# --- what it comes to


@dataclass(frozen=True)
class RoundDifficulty:
    """Difficulty in one round; every interval resamples lineages.

    Means of different rounds are of different lineages where candidates were dropped; gains are paired and are not.
    """

    round: int
    score: Estimate | None
    rank: Estimate | None
    score_gain: Estimate | None
    """Over the version that it was rewritten from, scored one at a time; None in round 0."""
    rank_gain: Estimate | None
    """The same, by the prompt that shows the whole lineage."""
    harder: Estimate | None
    """Share of rewrites that were ranked above what they were rewritten from; equal ones count half."""


@dataclass(frozen=True)
class Difficulty:
    """What the judge said of a sample of lineages."""

    lineages: int
    rounds: tuple[RoundDifficulty, ...]
    agreement: Estimate | None
    """Spearman's correlation of score and rank over all versions; the interval resamples lineages."""
    agreement_within: Estimate | None
    """The same after the mean of its lineage is taken from each, so that only changes within a lineage count."""
    problems: Mapping[str, int]
    """Replies that brought no figure, by "score" and "rank"; they are left out of everything else."""


def summarise(judged: Iterable[Sequence[Judged]], *, seed: int) -> Difficulty:
    """The figures per round from what was said of each lineage."""
    lineages = [tuple(versions) for versions in judged]
    said = [version for versions in lineages for version in versions]
    rounds = sorted({version.round for version in said})
    problems = {"score": sum(v.score is None for v in said)}
    problems["rank"] = sum(any(p.startswith("rank:") for v in versions for p in v.problems) for versions in lineages)
    return Difficulty(
        lineages=len(lineages),
        rounds=tuple(_round(lineages, round_, seed=keyed_number(seed, round_, "difficulty")) for round_ in rounds),
        agreement=_spearman(lineages, seed=seed, centred=lambda values: values),
        agreement_within=_spearman(lineages, seed=seed, centred=lambda values: values - values.mean()),
        problems=problems,
    )


def _round(lineages: Sequence[Sequence[Judged]], round_: int, *, seed: int) -> RoundDifficulty:
    figures: dict[str, list[float]] = defaultdict(list)
    for versions in lineages:
        by_round = {version.round: version for version in versions}
        child = by_round.get(round_)
        if child is None:
            continue
        parent = None if child.parent_round is None else by_round[child.parent_round]
        for name, own, before in (
            ("score", child.score, parent.score if parent else None),
            ("rank", child.rank, parent.rank if parent else None),
        ):
            if own is not None:
                figures[name].append(own)
            if own is not None and before is not None:
                figures[f"{name}_gain"].append(own - before)
    harder = [0.5 + 0.5 * np.sign(gain) for gain in figures["rank_gain"]]
    return RoundDifficulty(
        round=round_,
        score=mean_of(figures["score"], seed=seed),
        rank=mean_of(figures["rank"], seed=seed),
        score_gain=mean_of(figures["score_gain"], seed=seed),
        rank_gain=mean_of(figures["rank_gain"], seed=seed),
        harder=mean_of(harder, seed=seed),
    )


def _spearman(
    lineages: Sequence[Sequence[Judged]], *, seed: int, centred: Callable[[np.ndarray], np.ndarray]
) -> Estimate | None:
    from scipy.stats import rankdata

    pairs = []  # per lineage [2, versions]
    for versions in lineages:
        both = [(v.score, v.rank) for v in versions if v.score is not None and v.rank is not None]
        if both:
            pairs.append(np.stack([centred(column) for column in np.array(both, dtype=np.float64).T]))

    def correlation(drawn: np.ndarray) -> float:
        ranks = rankdata(np.concatenate([pairs[index] for index in drawn], axis=1), axis=1)
        ranks -= ranks.mean(axis=1, keepdims=True)
        size = np.sqrt((ranks**2).sum(axis=1).prod())
        return float((ranks[0] * ranks[1]).sum() / size) if size else float("nan")

    return bootstrap(correlation, n=len(pairs), seed=seed, draws=_CORRELATION_DRAWS)

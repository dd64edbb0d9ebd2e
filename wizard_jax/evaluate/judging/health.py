"""Whether a judge can be trusted: what it goes by besides the answers, and how often it is right where truth is known.

    found = health("gemini", verdicts=rows, calibration=calibration, gates=config.gates, bootstrap=Bootstrap(seed=0))
    found.failed  -> ("order consistency: 0.34 [0.25, 0.44] of 100 pairs of answers (...) have the same verdict ...",)

Gates hold on pairs of known truth alone. On the evaluation's own pairs nobody knows who is right, and even a good
judge turns round there more often the closer the answers are (arXiv 2406.07791): that is reported beside the gates.
A judge that fails is named; whether its verdicts count is `Judge.counts`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wizard_jax.evaluate.config import Gates
from wizard_jax.evaluate.judging.calibration import RIGHT, WRONG, Calibration
from wizard_jax.evaluate.judging.rows import Graded, Verdict
from wizard_jax.evaluate.statistics.agreement import Agreement, agreement
from wizard_jax.evaluate.statistics.bias import (
    OrderConsistency,
    always_longest,
    concordance,
    longer_preferred,
    order_consistency,
)
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, mean
from wizard_jax.evaluate.statistics.rank import spearman
from wizard_jax.evaluate.statistics.wins import Comparison, paired_difference

LEAST_GRADED = 0.5
"""The share of pairs of known truth that a judge must have graded, so that the others can speak for it."""


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What a judge's verdicts go by, on pairs that it was asked about; None where nothing can be told."""

    pairs: int
    """Those with identical answers, or with one missing, are not among them."""
    identical: int
    not_graded: int
    """Pairs of which an order was not graded; answers that are missing count."""
    reasons: Mapping[str, int]
    """Why not, with how often; the details of each are left out."""
    unread: int
    """Replies that could not be read, also those whose retry could."""
    orders: OrderConsistency | None
    longer: Estimate | None
    """Share of decisive pairs, more than 30 characters apart, that the longer answer wins."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a judge made of pairs of known truth of one kind."""

    kind: str
    """Such as "pairs of answers (simulated world)"."""
    asked: int
    graded: int
    """Pairs of which at least one order was graded."""
    accuracy: Estimate | None
    """Mean score of what is right: 1 for a pair judged right in both orders, 0.5 for one turned round, or a tie."""
    longest: float | None
    """The same of a judge who always takes the longer one, on the pairs that were graded."""
    gain: Comparison | None
    """Of the judge over that."""
    orders: OrderConsistency | None
    """Of the pairs that were graded in both orders."""
    has_orders: bool
    """Grades have none: they are given to one answer at a time."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Judged beside known difficulty, of instructions of one source."""

    source: str
    graded: int
    asked: int
    correlation: Estimate | None
    """Spearman's."""
    without_length: Estimate | None
    """Spearman's partial correlation, the lengths of the instructions taken out of both."""


@dataclass(frozen=True, kw_only=True)
class Health:
    judge: str
    said: Bias
    """On the evaluation's pairs."""
    grades_not_given: int
    """Of answers of the evaluation."""
    known: tuple[Known, ...]
    rankings: tuple[Ranking, ...]
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    """A sentence for each gate, which begins with its name; neither has any where there are no gates."""


@dataclass(frozen=True)
class Between:
    """How far judges agree with each other on the same pairs, by their verdicts over both orders."""

    judges: tuple[str, ...]
    pairs: int
    agreement: Agreement


def health(
    judge: str,
    *,
    verdicts: Iterable[Verdict] = (),
    grades: Iterable[Graded] = (),
    calibration: Calibration,
    gates: Gates,
    bootstrap: Bootstrap,
) -> Health:
    """What one judge's rows show; rows of other judges are passed over."""
    known = tuple(_known(pairs, bootstrap) for pairs in _known_pairs(judge, calibration))
    rankings = _rankings([row for row in calibration.difficulties if row.judge == judge], bootstrap)
    told = _told(known, rankings, gates) if gates.pairs else []
    return Health(
        judge=judge,
        said=bias([row for row in verdicts if row.judge == judge], bootstrap=bootstrap),
        grades_not_given=sum(row.grade is None for row in grades if row.judge == judge),
        known=known,
        rankings=rankings,
        passed=tuple(line for line, passes in told if passes),
        failed=tuple(line for line, passes in told if not passes),
    )


def bias(rows: Sequence[Verdict], *, bootstrap: Bootstrap) -> Bias:
    """What the verdicts of one judge go by: order and length."""
    asked = [row for row in rows if row.how == "asked"]
    both = [row for row in asked if row.strict is not None]
    scored = [row for row in asked if row.score is not None]
    reasons = Counter(problem.split(":")[0] for row in rows for problem in dict.fromkeys(row.problems) if problem)
    orders = longer = None
    if both:
        orders = order_consistency(
            np.array([row.first for row in both]),
            np.array([row.second for row in both]),
            prompts=[row.item for row in both],
            bootstrap=bootstrap,
        )
    if scored:
        longer = _or_none(
            lambda: longer_preferred(
                np.array([row.score for row in scored]),
                *np.array([row.lengths for row in scored]).T,
                prompts=[row.item for row in scored],
                bootstrap=bootstrap,
            )
        )
    return Bias(
        pairs=len(asked),
        identical=sum(row.how == "identical" for row in rows),
        not_graded=sum(row.strict is None for row in rows),
        reasons=dict(reasons),
        unread=sum(row.unread for row in rows),
        orders=orders,
        longer=longer,
    )


def between(verdicts: Iterable[Verdict], *, bootstrap: Bootstrap) -> tuple[Between, ...]:
    """Each two judges, and all of them where there are more, on the pairs that they were asked about and graded."""
    said: dict[str, dict[tuple[str, str, str, int], float]] = defaultdict(dict)
    for row in verdicts:
        if row.how == "asked" and row.score is not None:
            said[row.judge][row.item, row.candidate, row.baseline, row.sample] = float(np.sign(row.score - 0.5))
    judges = tuple(said)
    groups = [*combinations(judges, 2), *([judges] if len(judges) > 2 else [])]
    found = []
    for group in groups:
        shared = sorted(set.intersection(*(set(said[judge]) for judge in group)))
        if shared:
            table = [[said[judge][pair] for judge in group] for pair in shared]
            items = [pair[0] for pair in shared]  # drawn with all its candidates and samples
            found.append(Between(group, len(shared), agreement(table, prompts=items, bootstrap=bootstrap)))
    return tuple(found)


# --- known truth


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    kind: str
    scores: list[float | None]
    """1 where what is right was found better, 0 where it was found worse."""
    lengths: list[tuple[int, int]]
    verdicts: list[Verdict]


def _known_pairs(judge: str, calibration: Calibration) -> list[_Pairs]:
    """A judge's verdicts and grades by what was judged and where it comes from."""
    found = []
    for what, rows in (("answers", calibration.answers), ("instructions", calibration.instructions)):
        own = [row for row in rows if row.judge == judge]
        for source in dict.fromkeys(row.skill for row in own):
            of = [row for row in own if row.skill == source]
            lengths = [row.lengths for row in of]
            kind = f"pairs of {what} ({source})"
            found.append(_Pairs(kind=kind, scores=[row.score for row in of], lengths=lengths, verdicts=of))
    graded: dict[str, dict[str, dict[str, Graded]]] = defaultdict(lambda: defaultdict(dict))
    for row in calibration.grades:
        if row.judge == judge:
            graded[row.skill][row.item][row.model] = row
    for source, items in graded.items():
        both = [(by_model[RIGHT], by_model[WRONG]) for by_model in items.values()]
        found.append(
            _Pairs(
                kind=f"pairs of graded answers ({source})",
                scores=[_by_grades(right.grade, wrong.grade) for right, wrong in both],
                lengths=[(right.length, wrong.length) for right, wrong in both],
                verdicts=[],
            )
        )
    return found


def _by_grades(right: float | None, wrong: float | None) -> float | None:
    return None if right is None or wrong is None else (1 + float(np.sign(right - wrong))) / 2


def _known(pairs: _Pairs, bootstrap: Bootstrap) -> Known:
    graded = [(score, lengths) for score, lengths in zip(pairs.scores, pairs.lengths, strict=True) if score is not None]
    accuracy, longest, gain = None, None, None
    if graded:
        scores = [score for score, _ in graded]
        by_length = concordance(always_longest(*np.array([lengths for _, lengths in graded]).T), np.ones(len(graded)))
        accuracy = mean(scores, bootstrap=bootstrap, bounds=(0.0, 1.0))
        longest, gain = float(by_length.mean()), paired_difference(scores, by_length, bootstrap=bootstrap)
    return Known(
        kind=pairs.kind,
        asked=len(pairs.scores),
        graded=len(graded),
        accuracy=accuracy,
        longest=longest,
        gain=gain,
        orders=bias(pairs.verdicts, bootstrap=bootstrap).orders,
        has_orders=bool(pairs.verdicts),
    )


def _rankings(rows: Sequence[Graded], bootstrap: Bootstrap) -> tuple[Ranking, ...]:
    found = []
    for source in dict.fromkeys(row.skill for row in rows):
        asked = [row for row in rows if row.skill == source]
        graded = [row for row in asked if row.grade is not None]
        found.append(
            Ranking(
                source=source,
                asked=len(asked),
                graded=len(graded),
                correlation=_rank_correlation(graded, bootstrap),
                without_length=_rank_correlation(graded, bootstrap, without=[row.length for row in graded]),
            )
        )
    return tuple(found)


def _rank_correlation(
    rows: Sequence[Graded], bootstrap: Bootstrap, *, without: Sequence[int] | None = None
) -> Estimate | None:
    judged, known = (np.array([getattr(row, name) for row in rows]) for name in ("grade", "difficulty"))
    return _or_none(lambda: spearman(judged, known, bootstrap=bootstrap, without=without)) if rows else None


def _or_none(estimate: Callable[[], Estimate]) -> Estimate | None:
    try:
        return estimate()
    except NoEstimate:
        return None


# --- gates


def _told(known: Sequence[Known], rankings: Sequence[Ranking], gates: Gates) -> list[tuple[str, bool]]:
    """A sentence for each gate, and whether it was passed."""
    told = [line for one in known for line in _known_gates(one, gates)]
    told += [line for one in rankings for line in _ranking_gates(one, gates)]
    return told or [("known truth: the judge was not asked about any pair of which the truth is known", False)]


def _known_gates(known: Known, gates: Gates) -> list[tuple[str, bool]]:
    if known.accuracy is None or known.gain is None or known.graded < LEAST_GRADED * known.asked:
        return [(f"graded: only {known.graded} of {known.asked} {known.kind}", False)]
    of = f"of {known.graded} {known.kind}"
    told = [_at_least("accuracy", known.accuracy, f"{of} are judged right", gates.accuracy)]
    gain = known.gain.estimate
    verb = "beats" if gain.low > 0 else "does not surely beat"
    line = f"length: with {_figure(known.accuracy)} {of} right it {verb} taking the longer one, {known.longest:.2f}"
    told.append((f"{line} (difference {_figure(gain)})", gain.low > 0))
    if known.orders is not None:
        same = known.orders.same
        of = f"of {same.n} {known.kind} have the same verdict in both orders"
        told.append(_at_least("order consistency", same, of, gates.order_consistency))
    elif known.has_orders:
        told.append((f"order consistency: none of {known.asked} {known.kind} was graded in both orders", False))
    return told


def _ranking_gates(ranking: Ranking, gates: Gates) -> list[tuple[str, bool]]:
    instructions = f"instructions ({ranking.source})"
    of = f"between judged and known difficulty of {ranking.graded} {instructions}"
    if ranking.graded < LEAST_GRADED * ranking.asked:
        return [(f"graded: only {ranking.graded} of {ranking.asked} {instructions}", False)]
    if ranking.correlation is None:
        return [(f"rank correlation: there is none {of}, of which one or the other hardly differs", False)]
    left = ranking.without_length
    beats = left is not None and left.low > 0
    told = "nothing" if left is None else _figure(left)
    return [
        _at_least("rank correlation", ranking.correlation, of, gates.rank_correlation),
        (f"length: without what length explains it is {told} {of}, {'' if beats else 'not '}surely above 0", beats),
    ]


def _at_least(name: str, found: Estimate, of: str, asked: float) -> tuple[str, bool]:
    passes = found.value >= asked
    return f"{name}: {_figure(found)} {of}, {'at least' if passes else 'below'} {asked:g}", passes


def _figure(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"

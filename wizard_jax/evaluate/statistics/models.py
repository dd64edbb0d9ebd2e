"""Models fitted to verdicts: Bradley-Terry with ties for three or more models, and the win rate at equal length.

Both likelihoods are concave, so a fit is a few steps of Newton's method, taken for thousands of resamples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, Estimate, NoEstimate, by_prompt, columns, estimates
from wizard_jax.evaluate.statistics.wins import checked_verdicts

RIDGE = 1e-6
"""Keeps strengths finite (near 18) in a resample in which a model won or lost everything; moves no other by 1e-6."""

LENGTH_PRIOR = 1.0
"""Penalty on the effect of length, as of a normal prior of deviation 1 on it: slight from 50 prompts on."""

_STEPS, _LONGEST_STEP = 60, 2.0
_NEAR = 1e-5  # the error that is left after so short a step of Newton's is near its square


# --- Bradley-Terry with ties


@dataclass(frozen=True)
class Strength:
    model: str
    strength: Estimate
    """Natural logarithm, with the mean of all models at 0; 1 more is 174 points of Elo."""


@dataclass(frozen=True)
class Pair:
    """Two models, whether or not they were compared directly."""

    stronger: str
    weaker: str
    gap: Estimate
    """Difference of strengths; above 0 with all of its interval where the order of the two is known."""
    score: Estimate
    """Expected score of the stronger against the weaker: P(win) + P(tie) / 2."""


@dataclass(frozen=True)
class BradleyTerry:
    models: tuple[Strength, ...]
    """Strongest first."""
    pairs: tuple[Pair, ...]
    ties: Estimate
    """Probability of a tie between two models of equal strength."""


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    verdicts: ArrayLike,
    *,
    prompts: ArrayLike,
    bootstrap: Bootstrap,
) -> BradleyTerry:
    """Strengths of three or more models from verdicts [R] on pairs of them: 1 (first is better), 0 or -1.

    Ties as Davidson (1970) has them: a tie of i and j has the odds nu * sqrt(i * j) beside i and j. Unlike the
    threshold of Rao and Kupper (1967), that keeps the strengths a function of wins plus half the ties, which is what
    the adjusted win rate counts, and the likelihood concave. Orders, judges and samples of a prompt are rows of one
    prompt, and are resampled together; as both orders are judged, no term for the first place is needed.

    Raises:
      ValueError: rows of unlike number, a verdict that was not graded, a model compared with itself.
      NoEstimate: fewer than three models, no chain of comparisons between some, ties only, or a model that never
        wins or ties against another, directly or through others (the gap between them has no bound).
    """
    rows = checked_verdicts(verdicts)
    (rows,) = columns(verdicts=rows)
    if not len(first) == len(second) == len(rows) == len(np.asarray(prompts)):
        raise ValueError("a comparison needs a first model, a second model, a verdict and a prompt")
    models = sorted({*first, *second})
    if len(models) < 3:
        raise NoEstimate(f"Bradley-Terry needs three models or more, not {len(models)}: the win rate says it all")
    pairs = list(combinations(range(len(models)), 2))
    outcomes = _outcomes(first, second, rows, models=models, pairs=pairs)
    _refuse_without_bound(outcomes.sum(axis=0), models=models, pairs=pairs)
    counts = by_prompt(outcomes.reshape(len(rows), -1), prompts)
    design = np.array([[(k == i) - (k == j) for k in range(len(models))] for i, j in pairs]) / 2.0
    order = np.argsort(-_davidson(outcomes.sum(axis=0)[None], design)[0][0], kind="stable")
    ranked = list(combinations(order, 2))

    def figures(weights: np.ndarray) -> np.ndarray:
        strengths, ties = _davidson((weights @ counts).reshape(len(weights), len(pairs), 3), design)
        gaps = np.stack([strengths[:, i] - strengths[:, j] for i, j in ranked], axis=1)
        tied = np.exp(ties)[:, None] / (2 * np.cosh(gaps / 2) + np.exp(ties)[:, None])
        scores = tied / 2 + (1 - tied) / (1 + np.exp(-gaps))
        even = np.exp(ties) / (2 + np.exp(ties))
        return np.concatenate([strengths[:, order], gaps, scores, even[:, None]], axis=1)

    bounds = [None] * (len(models) + len(ranked)) + [(0.0, 1.0)] * (len(ranked) + 1)
    found = estimates(figures, n=len(counts), bootstrap=bootstrap, bounds=bounds)
    sure = [one for one in found if one is not None]
    if len(sure) < len(found):
        raise NoEstimate(f"{len(counts)} prompts are too few, or too much alike, for the strengths of models")
    strengths, gaps = sure[: len(models)], sure[len(models) : len(models) + len(ranked)]
    return BradleyTerry(
        tuple(Strength(models[k], one) for k, one in zip(order, strengths, strict=True)),
        tuple(
            Pair(models[i], models[j], gap, score)
            for (i, j), gap, score in zip(ranked, gaps, sure[len(models) + len(ranked) : -1], strict=True)
        ),
        sure[-1],
    )


def _outcomes(
    first: Sequence[str],
    second: Sequence[str],
    verdicts: np.ndarray,
    *,
    models: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """One-hot [R, P, 3]: the first of the pair won, lost, or tied."""
    place = {model: number for number, model in enumerate(models)}
    column = {pair: number for number, pair in enumerate(pairs)}
    found = np.zeros((len(verdicts), len(pairs), 3))
    for row, (one, other, verdict) in enumerate(zip(first, second, verdicts, strict=True)):
        if one == other:
            raise ValueError(f"comparison {row} is of {one} with itself")
        i, j = sorted((place[one], place[other]))
        won = verdict if place[one] == i else -verdict
        found[row, column[i, j], {1: 0, -1: 1, 0: 2}[int(won)]] = 1
    return found


def _refuse_without_bound(totals: np.ndarray, *, models: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    """Ford's condition (1957): from every model to every other there is a chain of wins and ties. `totals` [P, 3]."""
    if not totals[:, :2].any():
        raise NoEstimate("all comparisons are ties: no model is stronger than another as far as they can tell")
    reached, met = np.eye(len(models), dtype=bool), np.eye(len(models), dtype=bool)
    for (i, j), (won, lost, tied) in zip(pairs, totals, strict=True):
        reached[i, j], reached[j, i] = won + tied > 0, lost + tied > 0
        met[i, j] = met[j, i] = won + tied + lost > 0
    for _ in models:
        reached, met = reached @ reached, met @ met
    if not met.all():
        apart = [model for model, near in zip(models, met[0], strict=True) if not near]
        raise NoEstimate(
            f"no chain of comparisons leads from {models[0]} to {', '.join(apart)}: compare them with a common model"
        )
    for i, j in zip(*np.nonzero(~reached), strict=True):
        raise NoEstimate(
            f"{models[i]} never wins or ties against {models[j]}, directly or through others, so the gap between them "
            "has no bound: say their win rates instead"
        )


def _davidson(counts: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood for [B] tables of counts [B, P, 3]: strengths [B, M] with mean 0, and log nu [B].

    With half the gap of a pair as u, its outcomes have the logits u, -u and log nu.
    """
    total, margin, tied = counts.sum(axis=2), counts[..., 0] - counts[..., 1], counts[..., 2].sum(axis=1)
    models = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    found = np.zeros((len(counts), models + 1))
    never = tied == 0
    found[never, -1] = -np.inf  # without a tie nu is 0, and the model Bradley and Terry's own
    open_ = np.arange(len(counts))
    for _ in range(_STEPS):
        strengths, nu = found[open_, :-1], np.exp(found[open_, -1:])
        u = strengths @ design.T
        up, down = np.exp(u), np.exp(-u)
        whole = up + down + nu
        lead, tie = (up - down) / whole, nu / whole
        seen = total[open_]
        gradient = np.empty((len(open_), models + 1))
        gradient[:, :-1] = (margin[open_] - seen * lead) @ design - RIDGE * strengths
        gradient[:, -1] = np.where(never[open_], 0.0, tied[open_] - (seen * tie).sum(axis=1))
        hessian = np.empty((len(open_), models + 1, models + 1))
        hessian[:, :-1, :-1] = ((seen * (1 - tie - lead**2)) @ products).reshape(-1, models, models)
        # The mean of the strengths, which no comparison tells, is held at 0.
        hessian[:, :-1, :-1] += RIDGE * np.eye(models) + seen.sum(axis=1)[:, None, None] / models
        hessian[:, :-1, -1] = hessian[:, -1, :-1] = -(seen * lead * tie) @ design
        hessian[:, -1, -1] = np.where(never[open_], 1.0, (seen * tie * (1 - tie)).sum(axis=1) + RIDGE)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1)
        found[open_] += step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, _NEAR))[:, None]
        open_ = open_[longest > _NEAR]
        if not len(open_):
            break
    return found[:, :-1], found[:, -1]


# --- the win rate at equal length


@dataclass(frozen=True)
class LengthControlled:
    """A win rate as counted, and as it would be were every answer as long as the other one."""

    raw: Estimate
    controlled: Estimate
    effect: Estimate
    """Change of the log odds of winning with the length term, from -1 (much shorter) to 1 (much longer)."""
    separated: bool
    """Whether length alone tells every win from every loss: then the penalty alone bounds `effect`."""


def length_controlled(
    scores: ArrayLike, lengths: ArrayLike, baseline_lengths: ArrayLike, *, bootstrap: Bootstrap
) -> LengthControlled:
    """The win rate at equal length, fitted on these prompts: scores [N] in 0..1 and both answers' lengths [N].

    logit P(win) = model + effect * tanh(gap / deviation of the gaps), with the scores as soft labels: AlpacaEval's
    length-controlled win rate (Dubois et al. 2024) in its form without difficulties of prompts, which are known for
    its own only. Controlled is P(win) at gap 0. `effect` has a normal prior of deviation 1, the model none: swapping
    the two sides gives one minus the rate, and separation by length leaves both finite.

    Raises:
      ValueError: rows of unlike number, a score outside 0..1, a length below 0.
      NoEstimate: all gaps are alike, or all prompts won, or all lost.
    """
    won, long, other = columns(scores=scores, lengths=lengths, baseline_lengths=baseline_lengths)
    if won.min() < 0 or won.max() > 1 or min(long.min(), other.min()) < 0:
        raise ValueError("scores must lie in 0..1, and lengths must not be negative")
    gaps = long - other
    if (deviation := float(gaps.std())) == 0:
        raise NoEstimate(f"the answers differ in length by {gaps[0]:g} on every prompt: length can not be told apart")
    if won.min() == 1 or won.max() == 0:
        raise NoEstimate("every prompt was won, or every one lost: equal length would not change that as far as known")
    term = np.tanh(gaps / deviation)
    whole = _logistic(np.ones((1, len(won))), won, term, start=np.zeros(2))

    def figures(weights: np.ndarray) -> np.ndarray:
        fitted = _logistic(weights, won, term, start=whole[0])
        return np.stack([weights @ won / len(won), 1 / (1 + np.exp(-fitted[:, 0])), fitted[:, 1]], axis=1)

    bounds = [(0.0, 1.0), (0.0, 1.0), None]
    raw, controlled, effect = estimates(figures, n=len(won), bootstrap=bootstrap, bounds=bounds)
    if raw is None or controlled is None or effect is None:
        raise NoEstimate(f"{len(won)} prompts are too few, or too much alike, to control for length")
    return LengthControlled(raw, controlled, effect, _separates(term, won))


def _logistic(weights: np.ndarray, scores: np.ndarray, term: np.ndarray, *, start: np.ndarray) -> np.ndarray:
    """Penalised maximum likelihood for [B] weightings [B, N] of the prompts: [B, 2] of constant and effect.

    A draw in which all was won (or lost) ends far out (beyond 15), where the rate is 1 (or 0).
    """
    found = np.tile(start, (len(weights), 1))
    terms = np.stack([np.ones_like(term), term], axis=1)
    squares = np.stack([np.ones_like(term), term, term**2], axis=1)
    wins = (weights * scores) @ terms
    open_ = np.arange(len(weights))
    for _ in range(_STEPS):
        now, drawn = found[open_], weights[open_]
        inverse = now @ -terms.T
        np.exp(inverse, out=inverse)
        inverse += 1
        seen = drawn / inverse  # weight times P(win)
        gradient = wins[open_] - seen @ terms
        gradient[:, 1] -= LENGTH_PRIOR * now[:, 1]
        seen -= np.divide(seen, inverse, out=inverse)
        a, b, c = (seen @ squares).T
        a, c = a + RIDGE, c + LENGTH_PRIOR
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step /= (a * c - b**2)[:, None]
        longest = np.abs(step).max(axis=1)
        found[open_] += step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, _NEAR))[:, None]
        open_ = open_[(longest > _NEAR) & (np.abs(found[open_, 0]) < 30)]
        if not len(open_):
            break
    return found


def _separates(term: np.ndarray, scores: np.ndarray) -> bool:
    won, lost = term[scores > 0.5], term[scores < 0.5]
    if not np.isin(scores, (0, 1)).all():  # soft labels are never separated
        return False
    return bool(won.min() > lost.max() or lost.min() > won.max())

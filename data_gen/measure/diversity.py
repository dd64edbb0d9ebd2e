"""How diverse the instructions of each round are, in five ways, at equal numbers of texts and at equal lengths.

Every one of these measures changes with the size of what is measured, so rounds are compared on resamples that have
the same number of texts in every round, and again on resamples that have the same number of words. One TF-IDF space,
one projection and one clustering are fitted on the rounds together, so that a round does not change its own yardstick.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from data_gen.measure.asking import keyed_number
from data_gen.measure.estimates import Estimate
from data_gen.measure.words import words

LEAST = 20
"""Rounds with fewer texts than this are left out, for all others would have to be measured on as few."""

RESAMPLES = 16
DIMENSIONS = 100
CLUSTERS = 20
"""As many as the clusters of the paper's figure (WizardLM, arXiv 2304.12244, appendix J)."""

Equal = Literal["texts", "words"]
EQUAL: tuple[Equal, ...] = ("texts", "words")


class Diversity(NamedTuple):
    """The measures of one set of texts."""

    texts: float
    words: float
    distinct_1: float
    """Different words over words (Li et al. 2016); higher is more diverse."""
    distinct_2: float
    distinct_3: float
    compression: float
    """Bytes of the words over their bytes after zlib; lower is more diverse."""
    nearest: float
    """Mean cosine of a text with the nearest other one, in 100 dimensions of TF-IDF; lower is more diverse."""
    vendi: float
    """Vendi score of order 1 (Friedman and Dieng 2023) on cosines of TF-IDF: how many unlike texts they are worth."""
    cluster_entropy: float
    """Entropy of the shares of 20 clusters, over that of even shares; higher is more diverse."""


@dataclass(frozen=True)
class RoundDiversity:
    """Each measure of one round, with its interval."""

    round: int
    equal: Equal
    """What all rounds were given the same number of."""
    measures: Mapping[str, Estimate]
    """By the names of `Diversity`."""


def diversity(texts: Mapping[int, Sequence[str]], *, seed: int) -> tuple[RoundDiversity, ...]:
    """The diversity of each round, by the texts of each; their order within a round changes the draws alone.

    A value is the mean over half-samples drawn without replacement from as many texts of each round as the smallest
    has. Their spread is that of an estimate from the whole sample (delete-half jackknife, Shao and Wu 1989), which
    gives the interval of 1.96 standard errors to each side; `n` is the number of texts drawn from.
    """
    from threadpoolctl import threadpool_limits

    pools = {round_: list(texts[round_]) for round_ in sorted(texts) if len(texts[round_]) >= LEAST}
    if not pools:
        return ()
    size = min(map(len, pools.values()))
    rng = np.random.default_rng(keyed_number(seed, "diversity pool"))
    drawn = [[pool[index] for index in rng.choice(len(pool), size=size, replace=False)] for pool in pools.values()]
    # More threads make matrices of this size no faster (five times slower on a busy machine), and sum in another order.
    with threadpool_limits(1):
        placed = _placed(drawn, seed=seed % 2**32)
        length = min(sum(map(len, one.words)) for one in placed) // 2
        return tuple(
            _round(one, round_=round_, equal=equal, length=length, seed=seed)
            for equal in EQUAL
            for round_, one in zip(pools, placed, strict=True)
        )


def _round(one: _Placed, *, round_: int, equal: Equal, length: int, seed: int) -> RoundDiversity:
    """`length` is the number of words in each resample where they are to be equal."""
    rows = []
    ends = np.array([len(text) for text in one.words])
    for number in range(RESAMPLES):
        order = np.random.default_rng(keyed_number(seed, round_, number, "diversity")).permutation(len(one.words))
        if equal == "texts":
            rows.append(measured(one, order[: len(order) // 2], limit=None))
        else:
            enough = int(np.searchsorted(np.cumsum(ends[order]), length)) + 1
            rows.append(measured(one, order[:enough], limit=length))
    table = np.array(rows)
    means, errors = table.mean(axis=0), table.std(axis=0, ddof=1)
    figures = zip(Diversity._fields, means.tolist(), (1.96 * errors).tolist(), strict=True)
    measures = {name: Estimate(mean, mean - half, mean + half, len(one.words)) for name, mean, half in figures}
    return RoundDiversity(round=round_, equal=equal, measures=measures)


# --- the space that all rounds share


@dataclass(frozen=True)
class _Placed:
    """The texts of one round in the common space."""

    words: list[list[str]]
    cosines: np.ndarray
    """float32 [N, N], of TF-IDF, 1 on the diagonal also for texts without words."""
    projected: np.ndarray
    """float32 [N, N], the same after projection to `DIMENSIONS`."""
    clusters: np.ndarray
    """int [N]"""
    of_clusters: int


def _placed(rounds: Sequence[Sequence[str]], *, seed: int) -> list[_Placed]:
    """Each round in the TF-IDF, the projection and the clustering of all together; `seed` has 32 bits."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    texts = [words(text) for text in itertools.chain.from_iterable(rounds)]
    tfidf = TfidfVectorizer(analyzer=list, sublinear_tf=True, dtype=np.float32)
    try:
        rows = tfidf.fit_transform(texts)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        rows = np.zeros((len(texts), 1), np.float32)  # not one word among them
    rank = min(DIMENSIONS, *rows.shape)
    left, sizes, _ = randomized_svd(rows, n_components=rank, random_state=seed)
    projected = normalize(left * sizes)
    count = min(CLUSTERS, len(np.unique(projected.round(4), axis=0)))
    clusters = KMeans(count, n_init=4, random_state=seed).fit(projected).labels_
    placed, start = [], 0
    for one in rounds:
        own = slice(start, start + len(one))
        start += len(one)
        cosines = rows[own] @ rows[own].T
        cosines = np.asarray(cosines if isinstance(cosines, np.ndarray) else cosines.toarray())
        np.fill_diagonal(cosines, 1.0)
        near = projected[own] @ projected[own].T
        placed.append(_Placed(texts[own], cosines, near, clusters[own], count))
    return placed


# --- the measures


def measured(one: _Placed, drawn: np.ndarray, *, limit: int | None) -> Diversity:
    """The measures of the texts drawn; with a `limit` on words, what is counted in words ends there."""
    texts = [one.words[index] for index in drawn]
    if limit is not None:
        texts[-1] = texts[-1][: limit - sum(map(len, texts[:-1]))]
    square = np.ix_(drawn, drawn)
    return Diversity(
        texts=len(texts),
        words=sum(map(len, texts)),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        compression=compression(texts),
        nearest=nearest(one.projected[square]),
        vendi=vendi(one.cosines[square]),
        cluster_entropy=cluster_entropy(one.clusters[drawn], of=one.of_clusters),
    )


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different runs of n words over all runs of n words; 0 where there is none."""
    shifted = ([text[start:] for start in range(n)] for text in texts)
    runs = Counter(itertools.chain.from_iterable(zip(*starts, strict=False) for starts in shifted))
    return len(runs) / runs.total() if runs else 0.0


def compression(texts: Sequence[Sequence[str]]) -> float:
    """Bytes of the words, one text a line, over their bytes after zlib at its best."""
    content = "\n".join(map(" ".join, texts)).encode("utf-8", "surrogatepass")
    return len(content) / len(zlib.compress(content, 9))


def nearest(cosines: np.ndarray) -> float:
    """The mean over texts of the greatest cosine with another; 0 for a single text."""
    if len(cosines) < 2:
        return 0.0
    others = cosines - 3 * np.eye(len(cosines), dtype=cosines.dtype)
    return float(others.max(axis=1).mean())


def vendi(cosines: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of cosines / n: 1 for n equal texts, n for n that share nothing."""
    values = np.linalg.eigvalsh(cosines.astype(np.float64) / len(cosines))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def cluster_entropy(clusters: np.ndarray, *, of: int) -> float:
    """Entropy of the clusters' shares over that of `of` even shares; 0 where there is but one cluster."""
    shares = np.bincount(clusters) / len(clusters)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / math.log(of)) if of > 1 else 0.0

"""Finding the test item that a text repeats or rephrases: runs of n words, and TF-IDF of words and pairs of words.

A pair is any two words that stand at most `WINDOW` apart, in either order; how often a text has one does not matter;
and what holds a figure weighs `FIGURE` times as much. For a rephrasing keeps the figures and what it speaks of
together, but changes the words between, their order and their number. On the half of rephrased GSM8K that set neither
the threshold nor the weights it finds 0.98 where 1 % of false positives are allowed; words and bigrams find 0.86,
words, bigrams and characters 0.81 (`benchmarks/contamination.py` has the curves; characters added to ours do not help).
Texts come in blocks, so memory is that of the test set and one block.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_gen.measure.words import run_hashes, words

if TYPE_CHECKING:
    import scipy.sparse

WINDOW = 12
"""Words that a pair may stand apart. What is found hardly changes from 8 to 32."""

FIGURE = 2.0
"""The weight of words and pairs with a figure. What is found hardly changes from 1.5 to 3."""

UNKNOWN = 0.3
"""How much words and pairs that no test item has count in a text's squared length: at 0 a text that shares three words
with a small test set is made of nothing else, at 1 a rephrasing loses by every synonym."""

SHORTEST = 5
"""Words of the shortest test item that held as repeated where a text holds all of it."""

COMMON = 10
"""A run that more test items than this share is their form ("Which of the following ..."), not their content."""

_MOST_WORDS = 5_000  # of a text; what follows is not compared
_BLOCK_WORDS = 50_000  # of texts compared at once: some 100 MB of pairs
_BLOCK_TEXTS = 1_000
_WORD_BITS = 26


class Block(NamedTuple):
    """Some texts as word numbers: those of the index, and from there on words that no test item has."""

    ids: np.ndarray
    """int64 [W], one text after another."""
    rows: np.ndarray
    """int64 [W]: which text each word is of."""
    figures: np.ndarray
    """bool, by word number: whether it begins with a digit."""
    texts: int


class Match(NamedTuple):
    """The best test item for a text, and how good it is."""

    item: int
    score: float


@dataclass(frozen=True)
class Index:
    """A test set, ready to be compared with."""

    vocabulary: dict[str, int]
    features: np.ndarray
    """int64 [F], sorted: words and pairs that occur in the test set."""
    idf: np.ndarray
    """float32 [F]: ln((1 + items) / (1 + items with it)) + 1, times `FIGURE` where it holds a figure."""
    weights: scipy.sparse.csr_array
    """float32 [F, items]; each item's column has length 1."""
    runs: tuple[Runs, ...]
    items: int


@dataclass(frozen=True)
class Runs:
    """The runs of one length in the test set, by hash; an item shorter than n words is one run of its own length."""

    length: int
    hashes: np.ndarray
    """uint64 [R], sorted."""
    members: scipy.sparse.csr_array
    """[R, items]: 1 / (runs of the item) where the item has the run, so that a sum is the share covered."""


def build_index(items: Sequence[str], *, ngram: int) -> Index:
    """The index of a test set's items, of which one at least has words; `ngram` is the length of a telling run."""
    import scipy.sparse

    vocabulary: dict[str, int] = {}
    tokenised = [words(item) for item in items]
    for word in itertools.chain.from_iterable(tokenised):
        vocabulary.setdefault(word, len(vocabulary))
    block = _block(tokenised, vocabulary)
    rows, found = _features(block)
    features, columns = np.unique(found, return_inverse=True)
    held = scipy.sparse.coo_array(
        (np.ones(len(rows), np.float32), (rows, columns)), shape=(len(items), len(features))
    ).tocsr()
    documents = np.bincount(held.indices, minlength=len(features))
    idf = (_idf(len(items), documents) * _figure_weight(features, block.figures)).astype(np.float32)
    return Index(
        vocabulary=vocabulary,
        features=features,
        idf=idf,
        weights=_weighted(held, idf, unknown=np.zeros(len(items))).T.tocsr(),
        runs=tuple(_runs(block, tokenised, ngram=ngram)),
        items=len(items),
    )


def blocks(texts: Iterable[str]) -> Iterator[list[list[str]]]:
    """The words of the texts in order, some texts at a time; each block goes to `numbered` with each index."""
    held: list[list[str]] = []
    size = 0
    for text in texts:
        held.append(words(text)[:_MOST_WORDS])
        size += len(held[-1])
        if size >= _BLOCK_WORDS or len(held) == _BLOCK_TEXTS:
            yield held
            held, size = [], 0
    if held:
        yield held


def numbered(block: Sequence[Sequence[str]], index: Index) -> Block:
    """A block in the word numbers of an index."""
    return _block(block, index.vocabulary)


def most_similar(block: Block, index: Index) -> list[Match]:
    """For each text the test item with the greatest cosine; words and pairs that no test item has do not count."""
    found = similarities(block, index)
    best = found.argmax(axis=1)
    return [Match(int(item), float(found[row, item])) for row, item in enumerate(best)]


def similarities(block: Block, index: Index) -> np.ndarray:
    """Cosines, float32 [texts, items]."""
    import scipy.sparse

    rows, found = _features(block)
    assert block.texts < 2**11, "a row and a feature fit into 63 bits"
    distinct = np.unique((rows << 2 * _WORD_BITS) | found)
    rows, found = distinct >> 2 * _WORD_BITS, distinct & ((1 << 2 * _WORD_BITS) - 1)
    columns = np.searchsorted(index.features, found)
    columns[columns == len(index.features)] = 0
    known = index.features[columns] == found
    weight = _idf(index.items, np.zeros(1)) * _figure_weight(found[~known], block.figures)
    held = scipy.sparse.coo_array(
        (np.ones(int(known.sum()), np.float32), (rows[known], columns[known])),
        shape=(block.texts, len(index.features)),
    ).tocsr()
    unknown = UNKNOWN * np.bincount(rows[~known], weights=weight**2, minlength=block.texts)
    return np.asarray((_weighted(held, index.idf, unknown=unknown) @ index.weights).toarray())


def most_repeated(block: Block, index: Index) -> list[Match]:
    """For each text the test item of which it repeats the greatest share of runs; the score is that share."""
    import scipy.sparse

    covered = np.zeros((block.texts, index.items))
    for runs in index.runs:
        rows, hashes = _hashed_runs(block, runs.length)
        at = np.searchsorted(runs.hashes, hashes)
        at[at == len(runs.hashes)] = 0
        known = runs.hashes[at] == hashes
        held = scipy.sparse.coo_array(
            (np.ones(int(known.sum())), (rows[known], at[known])), shape=(block.texts, len(runs.hashes))
        ).tocsr()
        held.data[:] = 1.0
        covered += (held @ runs.members).toarray()
    return [Match(int(item), float(covered[row, item])) for row, item in enumerate(covered.argmax(axis=1))]


# --- from words to numbers


def _block(tokenised: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> Block:
    new: dict[str, int] = {}
    ids = []
    for word in itertools.chain.from_iterable(tokenised):
        known = vocabulary.get(word)
        ids.append(new.setdefault(word, len(vocabulary) + len(new)) if known is None else known)
    assert len(vocabulary) + len(new) < 2**_WORD_BITS - 1
    return Block(
        ids=np.array(ids, dtype=np.int64),
        rows=np.repeat(np.arange(len(tokenised)), [len(text) for text in tokenised]),
        figures=np.array([word[0].isdigit() for word in itertools.chain(vocabulary, new)]),
        texts=len(tokenised),
    )


def _features(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """(rows, features) of all words and pairs: the word w is w, the pair v <= w is v + 1 in the higher bits and w."""
    rows, found = [block.rows], [block.ids]
    for apart in range(1, WINDOW + 1):
        first, second = block.ids[:-apart], block.ids[apart:]
        same = block.rows[:-apart] == block.rows[apart:]
        low, high = np.minimum(first, second)[same], np.maximum(first, second)[same]
        rows.append(block.rows[:-apart][same])
        found.append(((low + 1) << _WORD_BITS) | high)
    return np.concatenate(rows), np.concatenate(found)


def _idf(items: int, with_it: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.log((1 + items) / (1 + with_it)) + 1
    return weights


def _figure_weight(features: np.ndarray, figures: np.ndarray) -> np.ndarray:
    other, own = features >> _WORD_BITS, features & ((1 << _WORD_BITS) - 1)
    with_figure = figures[own] | ((other > 0) & figures[other - 1])
    return np.where(with_figure, FIGURE, 1.0)


def _weighted(held: scipy.sparse.csr_array, idf: np.ndarray, *, unknown: np.ndarray) -> scipy.sparse.csr_array:
    """The idf of what each row holds, once each, over the row's length; `unknown` is what else is in its square."""
    squares = np.concatenate([[0.0], np.cumsum(idf[held.indices].astype(np.float64) ** 2)])
    lengths = np.sqrt(squares[held.indptr[1:]] - squares[held.indptr[:-1]] + unknown)
    held.data = (idf[held.indices] / np.repeat(lengths, np.diff(held.indptr))).astype(np.float32)
    return held


def _runs(block: Block, tokenised: Sequence[Sequence[str]], *, ngram: int) -> Iterator[Runs]:
    import scipy.sparse

    by_length = Counter(min(len(text), ngram) for text in tokenised)
    for length in sorted(by_length):
        if length < min(SHORTEST, ngram):
            continue
        rows, hashes = _hashed_runs(block, length)
        own = np.array([min(len(text), ngram) == length for text in tokenised])[rows]
        unique, at = np.unique(hashes[own], return_inverse=True)
        members = scipy.sparse.coo_array((np.ones(len(at)), (at, rows[own])), shape=(len(unique), block.texts)).tocsr()
        members.data[:] = 1.0
        rare = np.diff(members.indptr) <= COMMON
        unique, members = unique[rare], members[rare]
        runs_of_item = np.maximum(np.bincount(members.indices, minlength=block.texts), 1)
        members.data /= runs_of_item[members.indices]
        if len(unique):
            yield Runs(length, unique, members)


def _hashed_runs(block: Block, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, 64-bit hashes) of all runs of so many words."""
    hashes = run_hashes(block.ids.astype(np.uint64), length)
    rows = block.rows[: len(hashes)]
    whole = rows == block.rows[length - 1 :] if len(hashes) else np.zeros(0, bool)
    return rows[whole], hashes[whole]

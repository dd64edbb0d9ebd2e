"""How many reworded test items are found, and what is found that is none.

    python benchmarks/contamination.py gsm8k_test.jsonl rephrase_gsm8k.jsonl seed_tasks.jsonl WizardLM_testset.jsonl

The first file is a test set, the second a rewording of each of its items, in the same order (llm-decontaminator's files
begin with "Question:" and end with "\\nAnswer: ..."; that is taken off), all others hold instructions that have nothing
to do with it. Each rewording is one positive against the whole test set, and one negative against the test set without
its own item. The even items choose the threshold: the least at which at most 1 % of negatives are found. The odd items
and the unrelated instructions say what it does. `padded` is each rewording with two unrelated instructions behind it,
as evolution pads; `no figures` is with all digits taken out of the test set and the rewording, for test sets that have
none. The features were chosen on the even items too,
after a first round of trials that looked at all of them.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_gen.measure import retrieval
from data_gen.measure.contamination import SIMILARITY, read_items
from wizard_jax.progress import show_table

RATES = (0.001, 0.005, 0.01, 0.02, 0.05)
CHOSEN = 0.01
TIMED = 10_000

Similarities = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(texts, items) -> cosines [texts, items]"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", type=Path)
    parser.add_argument("reworded", type=Path)
    parser.add_argument("unrelated", type=Path, nargs="+")
    arguments = parser.parse_args()
    items = read_items(arguments.test)
    reworded = [without_frame(text) for text in read_items(arguments.reworded)]
    assert len(items) == len(reworded), "the second file rewords each item of the first"
    unrelated = {file.name: read_items(file) for file in arguments.unrelated}
    show_runs(items, reworded)
    show_features(items, reworded, [text for texts in unrelated.values() for text in texts])
    show_default(items, reworded, unrelated)
    show_other_tests(unrelated)
    show_time(items, reworded)


def without_frame(text: str) -> str:
    return re.sub(r"\nAnswer:.*", "", re.sub(r"^Question: ", "", text), flags=re.DOTALL).strip()


# --- runs of words


def show_runs(items: Sequence[str], reworded: Sequence[str]) -> None:
    rows = []
    for ngram in (5, 8, 10, 13):
        index = retrieval.build_index(items, ngram=ngram)
        found = sum(match.score > 0 for match in repeated(reworded, index))
        itself = sum(match.score > 0 for match in repeated(items, index))
        rows.append((str(ngram), f"{found:,} of {len(items):,}", f"{itself:,}"))
    show_table(("words in a row", "rewordings found", "the items themselves"), rows)


def repeated(texts: Sequence[str], index: retrieval.Index) -> list[retrieval.Match]:
    blocks = (retrieval.numbered(block, index) for block in retrieval.blocks(texts))
    return [match for block in blocks for match in retrieval.most_repeated(block, index)]


# --- similarity


def ours(texts: Sequence[str], items: Sequence[str]) -> np.ndarray:
    index = retrieval.build_index(items, ngram=13)
    blocks = (retrieval.numbered(block, index) for block in retrieval.blocks(texts))
    return np.concatenate([retrieval.similarities(block, index) for block in blocks])


def usual(parts: Sequence[tuple[str, tuple[int, int]]]) -> Similarities:
    """scikit-learn's TF-IDF (sublinear counts, idf of the test set); the mean over several kinds of n-grams."""

    def similarities(texts: Sequence[str], items: Sequence[str]) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer

        total = np.zeros((len(texts), len(items)), np.float32)
        for analyzer, ngrams in parts:
            vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, dtype=np.float32)
            known = vectorizer.fit_transform(items)
            total += (vectorizer.transform(texts) @ known.T).toarray() / len(parts)
        return total

    return similarities


FEATURES: dict[str, Similarities] = {
    "words": usual([("word", (1, 1))]),
    "words 1-2": usual([("word", (1, 2))]),
    "characters 3-5 in words": usual([("char_wb", (3, 5))]),
    "words 1-2 + characters 3-5": usual([("word", (1, 2)), ("char_wb", (3, 5))]),
    "words + pairs (ours)": ours,
}


def best_of(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positives, negatives) of rewordings [N, N]: with their own item, and with the best of all others."""
    own = np.diagonal(cosines).copy()
    others = cosines.copy()
    np.fill_diagonal(others, -1)
    return own, others.max(axis=1)


def threshold_at(negatives: np.ndarray, rate: float) -> float:
    """The least threshold, of those that separate two negatives, at which at most `rate` of them are found."""
    descending = np.sort(negatives)[::-1]
    return float(np.nextafter(descending[int(rate * len(descending))], np.float32(1)))


def show_features(items: Sequence[str], reworded: Sequence[str], unrelated: Sequence[str]) -> None:
    rows = []
    for name, similarities in FEATURES.items():
        own, others = best_of(similarities(reworded, items))
        stray = similarities(unrelated, items).max(axis=1)
        for rate in RATES:
            least = threshold_at(others[::2], rate)
            figures = (own[1::2], others[1::2], stray)
            shares = (f"{(values >= least).mean():.3f}" for values in figures)
            rows.append((name, f"{rate:.1%}", f"{least:.3f}", *shares))
    show_table(("features", "wanted", "threshold", "recall, odd", "false, odd", "false, unrelated"), rows)


def show_default(items: Sequence[str], reworded: Sequence[str], unrelated: dict[str, list[str]]) -> None:
    own, others = best_of(ours(reworded, items))
    print(f"\nchosen on the even items: {threshold_at(others[::2], CHOSEN):.3f}; the default is {SIMILARITY}")
    rng = random.Random(0)
    pool = [text for texts in unrelated.values() for text in texts if len(text.split()) <= 40]
    padded = [f"{text} {rng.choice(pool)} {rng.choice(pool)}" for text in reworded]
    bare_items, bare = ([re.sub(r"\d[\d.,]*", " ", text) for text in texts] for texts in (items, reworded))
    longer, figureless = best_of(ours(padded, items)), best_of(ours(bare, bare_items))
    cases = {
        "reworded, even": (own[::2], others[::2]),
        "reworded, odd": (own[1::2], others[1::2]),
        "padded, odd": (longer[0][1::2], longer[1][1::2]),
        "no figures, odd": (figureless[0][1::2], figureless[1][1::2]),
    }
    rows = [
        (name, *(f"{(v >= SIMILARITY).mean():.3f}" for v in pair), str(len(pair[0]))) for name, pair in cases.items()
    ]
    for name, texts in unrelated.items():
        rows.append((name, "", share(ours(texts, items).max(axis=1)), str(len(texts))))
    show_table((f"at {SIMILARITY}", "recall", "false", "n"), rows)


def share(values: np.ndarray) -> str:
    return f"{(values >= SIMILARITY).mean():.3f}"


def show_other_tests(unrelated: dict[str, list[str]]) -> None:
    """What the same threshold does where another file is the test set; some of what it finds may be true."""
    rows = []
    for name, items in unrelated.items():
        texts = [text for other, texts in unrelated.items() if other != name for text in texts]
        if texts:
            rows.append((name, str(len(items)), share(ours(texts, items).max(axis=1)), str(len(texts))))
    show_table(("as the test set", "items", f"of all others found at {SIMILARITY}", "n"), rows)


def show_time(items: Sequence[str], reworded: Sequence[str]) -> None:
    texts = [reworded[number % len(reworded)] for number in range(TIMED)]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = retrieval.build_index(items, ngram=13)
    built = time.perf_counter()
    for words in retrieval.blocks(texts):
        block = retrieval.numbered(words, index)
        retrieval.most_similar(block, index)
        retrieval.most_repeated(block, index)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    searched, indexed = time.perf_counter() - built, built - began
    print(f"\n{TIMED:,} texts against {len(items):,} items: {searched:.1f} s, after {indexed:.1f} s for the index")
    print(f"peak memory of this program grew by {(after - before) / 1024:.0f} MiB")


if __name__ == "__main__":
    main()

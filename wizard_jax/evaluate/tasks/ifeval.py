"""IFEval: 541 prompts with 834 constraints that a program checks (arXiv 2311.07911), by lm_eval's checkers.

    {"key": 1000, "prompt": "Write a 300+ word summary ... Do not use any commas ...",
     "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
     "kwargs": [{}, {"relation": "at least", "num_words": 300}]}

A loose check takes an answer also without its first line, its last one and its asterisks. The difficulty is the number
of constraints. Constraints of two types are counted in sentences as NLTK's English model cuts them (punkt_tab), which
has no package and is never fetched from here: without it, prompts with such constraints are not scored, and it is said.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wizard_jax.evaluate.config import IFEval
from wizard_jax.evaluate.items import Answer, Item, Items, Score, TaskError
from wizard_jax.evaluate.task_file import Schema, read_task_file

PUBLISHED = "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49"
SCHEMA = Schema(required={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}, id="key")
BY_SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Types of constraints whose checkers need punkt_tab."""
PROMPT_STRICT, PROMPT_LOOSE = "prompt-level strict", "prompt-level loose"
CONSTRAINT_STRICT, CONSTRAINT_LOOSE = "instruction-level strict", "instruction-level loose"
SCORES = (PROMPT_STRICT, CONSTRAINT_STRICT, PROMPT_LOOSE, CONSTRAINT_LOOSE)


@dataclass(frozen=True)
class Checkers:
    """lm_eval's implementation."""

    types: Mapping[str, Any]
    """Its class of each type of constraint."""
    checks: Any
    """The module with the strict and the loose check."""
    has_sentences: bool
    """Whether NLTK's punkt_tab is installed."""


def read(config: IFEval) -> Items:
    """All prompts, in the order of the file.

    Raises TaskError as `read_task_file` does, or: constraints that lm_eval does not check; or there is no lm_eval.
    """
    checkers = load_checkers()
    file = read_task_file(config.path, schema=SCHEMA, published=PUBLISHED, sha256=config.sha256)
    faults = {index: _fault(row, types=checkers.types) for index, row in enumerate(file.rows)}
    file.refuse({index: fault for index, fault in faults.items() if fault})
    items = tuple(_item(row, has_sentences=checkers.has_sentences) for row in file.rows)
    not_scored = sum(not item.weights[PROMPT_STRICT] for item in items)
    return Items(
        items=items,
        source=file.source,
        sha256=file.sha256,
        notes=(*file.notes, *([_without_sentences(not_scored, len(items))] if not_scored else [])),
        facts={"constraints": sum(len(row["instruction_id_list"]) for row in file.rows), "not_scored": not_scored},
    )


def score(item: Item, answer: Answer) -> Score:
    """Of the prompt, and of its constraints: whether all, and which share, are followed; nothing if it is not scored.

    A text that a checker fails on does not follow the constraint.
    """
    if not item.weights[PROMPT_STRICT]:
        return Score(values={}, extracted="not scored: NLTK's punkt_tab is not installed")
    checks = load_checkers().checks
    asked = checks.InputExample(
        key=int(item.id),
        instruction_id_list=item.details["instruction_id_list"],
        prompt=item.turns[0],
        kwargs=item.details["kwargs"],
    )
    strict = _followed(checks.test_instruction_following_strict, asked, answer.texts[0])
    loose = _followed(checks.test_instruction_following_loose, asked, answer.texts[0])
    values = (float(all(strict)), sum(strict) / len(strict), float(all(loose)), sum(loose) / len(loose))
    missed = [name for name, done in zip(asked.instruction_id_list, strict, strict=True) if not done]
    return Score(
        values=dict(zip(SCORES, values, strict=True)),
        extracted=f"not followed: {', '.join(missed)}" if missed else "all followed",
    )


@functools.cache
def load_checkers() -> Checkers:
    """Raises TaskError: lm_eval, or what its checkers need, is not installed."""
    try:
        with _without_downloads():
            registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
            checks = importlib.import_module("lm_eval.tasks.ifeval.utils")
        langdetect = importlib.import_module("langdetect")
        data = importlib.import_module("nltk.data")
    except ImportError as error:
        raise TaskError(
            f"IFEval's checkers need {error.name}: install the extra: pip install 'wizard-jax[eval]'"
        ) from error
    logging.getLogger("lm_eval.tasks.ifeval").setLevel(logging.CRITICAL)  # it logs whole answers
    langdetect.DetectorFactory.seed = 0  # else the language of a short text is another one from time to time
    return Checkers(registry.INSTRUCTION_DICT, checks, has_sentences=_is_there(data, "tokenizers/punkt_tab/english/"))


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    """lm_eval downloads punkt_tab where it is missing, in the process of local rank 0; so this is made another one."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _is_there(data: Any, resource: str) -> bool:
    try:
        data.find(resource)
    except LookupError:
        return False
    return True


def _item(row: Mapping[str, Any], *, has_sentences: bool) -> Item:
    types = row["instruction_id_list"]
    count = len(types)
    is_scored = has_sentences or not set(types) & set(BY_SENTENCES)
    weights = {PROMPT_STRICT: 1, PROMPT_LOOSE: 1, CONSTRAINT_STRICT: count, CONSTRAINT_LOOSE: count}
    return Item(
        id=str(row["key"]),
        turns=(row["prompt"],),
        skill=types[0].partition(":")[0] if count == 1 else "several constraints",
        difficulty=float(count),
        band=f"{count} constraint" + "s" * (count > 1),
        weights={name: float(weight * is_scored) for name, weight in weights.items()},
        details={"instruction_id_list": types, "kwargs": row["kwargs"]},
    )


def _fault(row: Mapping[str, Any], *, types: Mapping[str, Any]) -> str:
    """What is wrong with a row's constraints; '' where nothing is."""
    names, given = row["instruction_id_list"], row["kwargs"]
    if not names or len(names) != len(given):
        return f"{len(names)} constraints with {len(given)} 'kwargs': each needs its own, and there must be one"
    for name, kwargs in zip(names, given, strict=True):
        if name not in types:
            return f"lm_eval checks no constraint {name!r}"
        if not isinstance(kwargs, dict):
            return f"the 'kwargs' of {name} are not an object but {type(kwargs).__name__}"
        wanted = set(inspect.signature(types[name].build_description).parameters) - {"self"}
        told = {key for key, value in kwargs.items() if value}  # as the checks take them
        if told != wanted:
            return f"the 'kwargs' of {name} are {_listed(told)}, and must be {_listed(wanted)}"
    return ""


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _followed(check: Any, asked: Any, text: str) -> Sequence[bool]:
    """By constraint. All of them at once, or each alone where a checker fails on the text."""
    try:
        found: Sequence[bool] = check(asked, text).follow_instruction_list
    except RecursionError:  # of JSON that is nested too deep
        if len(asked.instruction_id_list) == 1:
            return [False]
        return [_followed(check, one, text)[0] for one in _apart(asked)]
    return found


def _apart(asked: Any) -> Iterator[Any]:
    for name, kwargs in zip(asked.instruction_id_list, asked.kwargs, strict=True):
        yield type(asked)(key=asked.key, instruction_id_list=[name], prompt=asked.prompt, kwargs=[kwargs])


def _without_sentences(count: int, total: int) -> str:
    return (
        f"{count} of {total} prompts are not scored: {' and '.join(BY_SENTENCES)} need NLTK's punkt_tab, which is not "
        "installed (python -m nltk.downloader punkt_tab). The figures are those of the others, and not to be compared "
        "with published ones."
    )

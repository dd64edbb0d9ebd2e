"""The simulated world: small tasks over lists whose truth can be computed.

    Take this list: reverse it, then drop the first.
    lemon fig kiwi
                                  ->  lemon fig kiwi -> kiwi fig lemon -> fig lemon

A task is an opener, a chain of steps and an input. Difficulty is the number of steps, by construction. The answer
shows the list before and after each step; what stands after the last arrow is the result. `render` and `parse`
are inverses, so a text either is a task of this world or is not.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from configs.errors import UserError

Form = Literal["plain", "json", "csv", "xml"]
"""How the input is written; every form holds the same list."""

FORMS: tuple[Form, ...] = ("plain", "json", "csv", "xml")

WORDS = tuple("apple bread corn egg fig honey jam kiwi lemon mint".split())
NUMBERS = tuple(str(n) for n in range(1, 10))
SHORTEST, LONGEST = 3, 4  # items in a list

PLAIN_OPENERS = ("Take this list", "Use this list")
CONCRETE_OPENERS = ("Take my shopping list", "Use the market list")
OPENERS = PLAIN_OPENERS + CONCRETE_OPENERS

ARROW = " -> "
Items = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One thing to do to a list. `kind` says which operations of Evol-Instruct add it (see `simulated.py`)."""

    name: str
    phrase: str
    kind: Literal["order", "filter", "value"]
    apply: Callable[[Items], Items]
    needs: Literal["any", "words", "numbers"] = "any"


def _sorted(items: Items) -> Items:
    return tuple(sorted(items, key=lambda item: (int(item), "") if item.isdigit() else (0, item)))


_STEPS = (
    Step("reverse", "reverse it", "order", lambda items: items[::-1]),
    Step("sort", "sort it", "order", _sorted),
    Step("rotate", "rotate it", "order", lambda items: items[1:] + items[:1]),
    Step("drop_first", "drop the first", "filter", lambda items: items[1:]),
    Step("drop_last", "drop the last", "filter", lambda items: items[:-1]),
    Step("keep_two", "keep the first two", "filter", lambda items: items[:2]),
    Step(
        "keep_even",
        "keep the even",
        "filter",
        lambda items: tuple(item for item in items if int(item) % 2 == 0),
        "numbers",
    ),
    Step("upper", "upper-case it", "value", lambda items: tuple(i.upper() for i in items), "words"),
    Step(
        "add_one",
        "add one",
        "value",
        lambda items: tuple(str(int(item) + 1) for item in items),
        "numbers",
    ),
    Step("repeat", "repeat each", "value", lambda items: tuple(i for i in items for _ in range(2))),
    Step("count", "count it", "value", lambda items: (str(len(items)),)),
    Step("join", "join it with dashes", "value", lambda items: ("-".join(items),)),
)
STEPS = MappingProxyType({step.name: step for step in _STEPS})
_BY_PHRASE = MappingProxyType({step.phrase: step for step in _STEPS})
_LAST_ONLY = ("count", "join")
"""These end a chain: what they make is no longer a list."""
_DRAWS_IN_VAIN = 1000
LONGEST_RESULT = 6  # items; keeps answers short enough for a small model


@dataclass(frozen=True)
class Task:
    """A task of this world: `steps` are names in `STEPS`, `items` the input list."""

    steps: tuple[str, ...]
    items: Items
    form: Form = "plain"
    opener: str = PLAIN_OPENERS[0]

    @property
    def pair(self) -> tuple[tuple[str, ...], Items]:
        """What makes two tasks the same however they are worded: the chain and the input."""
        return self.steps, self.items


def trace(task: Task) -> tuple[Items, ...]:
    """The list after each step."""
    results, items = [], task.items
    for name in task.steps:
        items = STEPS[name].apply(items)
        results.append(items)
    return tuple(results)


def is_valid(task: Task) -> bool:
    """Whether each step does something to a list that is there: no empty list, no step that changes nothing."""
    items = task.items
    for position, name in enumerate(task.steps):
        step = STEPS[name]
        if step.needs == "numbers" and not items[0].isdigit():
            return False
        if step.needs == "words" and items[0].isdigit():
            return False
        if name in _LAST_ONLY and position != len(task.steps) - 1:
            return False
        after = step.apply(items)
        if not after or after == items or len(after) > LONGEST_RESULT:
            return False
        items = after
    return bool(task.steps)


def answer(task: Task) -> str:
    """The right answer: the list written plainly, then the list after each step, joined by arrows."""
    return ARROW.join(" ".join(items) for items in (task.items, *trace(task)))


def result(answer_text: str) -> str:
    """What an answer comes down to: the text after its last arrow, with single spaces."""
    return " ".join(answer_text.rsplit(ARROW.strip(), 1)[-1].split())


def render(task: Task) -> str:
    """The task as an instruction with its input on the lines below."""
    chain = ", then ".join(STEPS[name].phrase for name in task.steps)
    return f"{task.opener}: {chain}.\n{_write_items(task.items, task.form)}"


def parse(text: str) -> Task | None:
    """The task that a text states, or None if it states none of this world.

    Inverse of `render`, letter for letter; only space around the whole text is overlooked.
    """
    text = text.strip()
    head, _, body = text.partition(".\n")
    opener, _, chain = head.partition(": ")
    steps = [_BY_PHRASE.get(phrase) for phrase in chain.split(", then ")]
    form, items = _read_items(body)
    known = set(items) <= set(WORDS) or set(items) <= set(NUMBERS)
    if opener not in OPENERS or None in steps or not items or not known:
        return None
    task = Task(tuple(step.name for step in steps if step), items, form, opener)
    return task if is_valid(task) and render(task) == text else None


def count_steps(text: str) -> int:
    """Number of steps of the task that a text states; 0 for any other text."""
    task = parse(text)
    return len(task.steps) if task else 0


def sample_task(rng: random.Random, *, steps: int, form: Form = "plain") -> Task:
    """A valid task of so many steps; chains and inputs are drawn evenly from those that are valid."""
    while True:
        pool = WORDS if rng.random() < 0.5 else NUMBERS
        items = tuple(rng.sample(pool, rng.randint(SHORTEST, LONGEST)))
        chain = tuple(rng.choice(_STEPS).name for _ in range(steps))
        task = Task(chain, items, form, rng.choice(PLAIN_OPENERS))
        if is_valid(task):
            return task


def sample_seeds(count: int, seed: int) -> list[str]:
    """Distinct one-step tasks, as instructions: the seeds of a simulated run.

    Raises:
      UserError: the world has not that many.
    """
    rng = random.Random(f"seeds of the simulated world {seed}")
    texts: dict[str, None] = {}
    in_vain = 0
    while len(texts) < count:
        before = len(texts)
        texts[render(sample_task(rng, steps=1))] = None
        in_vain = 0 if len(texts) > before else in_vain + 1
        if in_vain == _DRAWS_IN_VAIN:
            raise UserError(f"seeds.count = {count}: the simulated world has only about {before} one-step tasks")
    return list(texts)


def with_added_step(task: Task, rng: random.Random, *, kind: str) -> Task | None:
    """The task with one more step of a kind somewhere in its chain, or None where no such step fits."""
    options = [
        replace(task, steps=(*task.steps[:at], step.name, *task.steps[at:]))
        for step in _STEPS
        if step.kind == kind
        for at in range(len(task.steps) + 1)
    ]
    valid = [option for option in options if is_valid(option)]
    return rng.choice(valid) if valid else None


def _write_items(items: Sequence[str], form: Form) -> str:
    match form:
        case "plain":
            return " ".join(items)
        case "json":
            return json.dumps([int(item) if item.isdigit() else item for item in items])
        case "csv":
            return "\n".join(("item", *items))
        case "xml":
            return f"<items>{' '.join(items)}</items>"


def _read_items(text: str) -> tuple[Form, Items]:
    """The form and the list that an input seems to hold; `parse` checks that it is written so."""
    if text.startswith("["):
        return "json", tuple(re.findall(r"\w+", text))
    if text.startswith("item\n"):
        return "csv", tuple(text.split("\n")[1:])
    if text.startswith("<"):
        return "xml", tuple(text.removeprefix("<items>").removesuffix("</items>").split(" "))
    return "plain", tuple(text.split(" "))

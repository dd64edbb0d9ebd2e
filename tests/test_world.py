"""Tasks of the simulated world: what is written can be read back, and what is said to be right is right."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import world

SLOWLY: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse it": lambda items: [items[-1 - place] for place in range(len(items))],
    "sort it": lambda items: _selected_one_by_one(items),
    "rotate it": lambda items: [items[(place + 1) % len(items)] for place in range(len(items))],
    "drop the first": lambda items: [items[place] for place in range(1, len(items))],
    "drop the last": lambda items: [items[place] for place in range(len(items) - 1)],
    "keep the first two": lambda items: [items[place] for place in range(min(2, len(items)))],
    "keep the even": lambda items: [item for item in items if item[-1] in "02468"],
    "upper-case it": lambda items: ["".join(chr(ord(letter) - 32) for letter in item) for item in items],
    "add one": lambda items: [f"{sum((int(item), 1))}" for item in items],
    "repeat each": lambda items: [items[place // 2] for place in range(2 * len(items))],
    "count it": lambda items: [str(sum(1 for _ in items))],
    "join it with dashes": lambda items: ["".join(f"{item}-" for item in items)[:-1]],
}
"""Each phrase, done in another way than the world does it."""


def _selected_one_by_one(items: list[str]) -> list[str]:
    left, chosen = list(items), []
    while left:
        # Of numbers without leading zeros, the shorter is the smaller.
        least = min(left, key=lambda item: (len(item) if item[0] in "0123456789" else 0, item))
        left.remove(least)
        chosen.append(least)
    return chosen


tasks = st.builds(
    lambda seed, steps, form, opener: world.Task(
        *world.sample_task(random.Random(seed), steps=steps).pair, form=form, opener=opener
    ),
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from(world.FORMS),
    st.sampled_from(world.OPENERS),
)


@given(tasks)
def test_what_is_rendered_is_read_back(task: world.Task) -> None:
    assert world.parse(world.render(task)) == task
    assert world.parse(f"\n {world.render(task)}\n") == task
    assert world.count_steps(world.render(task)) == len(task.steps)


@given(tasks, st.data())
def test_a_changed_text_is_no_task_or_another_one_that_is_written_exactly_so(
    task: world.Task, data: st.DataObject
) -> None:
    text = world.render(task)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 6)))
    pieces = st.sampled_from((" ", "\n", ", ", '"', "[", "]", "item\n", "1", "13", "fig", "²", ", then count it"))
    put_in = data.draw(st.one_of(pieces, st.text(max_size=3), st.just("")))
    changed = text[:start] + put_in + text[end:]
    read = world.parse(changed)
    assert read is None or world.render(read) == changed.strip()


@given(st.text())
def test_any_other_text_has_no_steps(text: str) -> None:
    assert world.parse(text) is None
    assert world.count_steps(text) == 0


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        "[10, 2, 3]",
        '["apple","fig"]',
        f"[{'9' * 10_000}]",
        "apple fig  jam",
        "apple 3 jam",
        "item",
        "<items></items>",
        "banana fig jam",
        "",
    ],
)
def test_inputs_that_the_world_does_not_write_are_no_task(body: str) -> None:
    assert world.parse(f"Take this list: reverse it.\n{body}") is None


@pytest.mark.parametrize(
    "chain",
    [
        "sort it",  # is sorted
        "keep the first two",  # are two
        "drop the first, then drop the first",  # leaves nothing
        "count it, then reverse it",  # a number is no list
        "add one",  # to words
        "repeat each, then repeat each, then repeat each",  # 16 items
        "juggle it",
        "",
    ],
)
def test_a_chain_that_can_not_be_followed_is_no_task(chain: str) -> None:
    assert world.parse(f"Take this list: {chain}.\napple fig") is None


@given(tasks)
def test_answers_are_those_of_an_independent_slow_computation(task: world.Task) -> None:
    head, _, _ = world.render(task).partition(".\n")
    items, shown = list(task.items), [" ".join(task.items)]
    for phrase in head.partition(": ")[2].split(", then "):
        before, items = items, SLOWLY[phrase](items)
        assert items, "no step leaves nothing"
        assert items != before, "no step does nothing"
        shown.append(" ".join(items))
    assert world.answer(task) == " -> ".join(shown)
    assert world.result(world.answer(task)) == shown[-1]


def test_every_step_is_computed_slowly_too() -> None:
    assert SLOWLY.keys() == {step.phrase for step in world.STEPS.values()}


def test_a_result_is_what_stands_after_the_last_arrow() -> None:
    assert world.result("fig kiwi -> kiwi   fig \n") == "kiwi fig"
    assert world.result("no arrow at all") == "no arrow at all"
    assert world.result("fig ->") == ""


@given(tasks, st.sampled_from(("order", "filter", "value")), st.integers(0, 1000))
def test_an_added_step_is_one_more_of_its_kind(task: world.Task, kind: str, seed: int) -> None:
    harder = world.with_added_step(task, random.Random(seed), kind=kind)
    if harder is None:
        return
    assert world.is_valid(harder)
    assert world.count_steps(world.render(harder)) == len(task.steps) + 1
    kinds = [world.STEPS[name].kind for name in harder.steps]
    assert kinds.count(kind) == [world.STEPS[name].kind for name in task.steps].count(kind) + 1
    assert (harder.items, harder.form, harder.opener) == (task.items, task.form, task.opener)


def test_seeds_are_distinct_one_step_tasks_and_a_function_of_the_seed_number() -> None:
    seeds = world.sample_seeds(500, 7)
    assert len(set(seeds)) == 500
    assert {world.count_steps(text) for text in seeds} == {1}
    assert world.sample_seeds(500, 7) == seeds
    assert world.sample_seeds(300, 7) == seeds[:300]
    assert not set(world.sample_seeds(500, 8)) >= set(seeds)
    used = {name for text in seeds if (task := world.parse(text)) for name in task.steps}
    assert used == world.STEPS.keys()

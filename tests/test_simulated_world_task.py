"""Held-out tasks: nothing in common with what was trained on, and scored letter for letter."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from configs.errors import UserError
from data_gen import world
from data_gen.records import Record, Turn
from data_gen.shards import write_dataset
from wizard_jax.evaluate.config import SimulatedWorld
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.tasks.simulated_world import BANDS, Seen, items, read, read_seen, score

NOTHING = Seen(frozenset(), frozenset(), ())
PER_BAND = 40


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the very tasks that would be asked, worded, written and spaced otherwise."""
    asked, _ = items(SimulatedWorld(per_band=PER_BAND, held_out_from=("x",)), NOTHING)
    rng = random.Random(0)
    texts = []
    for item in asked:
        task = world.parse(item.turns[0])
        assert task is not None
        reworded = world.Task(task.steps, task.items, rng.choice(world.FORMS), rng.choice(world.OPENERS))
        texts.append(world.render(reworded))
    records = [
        Record(id=f"{number}/0", lineage=str(number), turns=(Turn("user", text), Turn("assistant", "an answer")))
        for number, text in enumerate(texts)
    ]
    folder = tmp_path_factory.mktemp("trained_on")
    write_dataset(records, folder, name="seen", count=len(records), records_per_shard=50, description="all of it")
    return folder


def test_no_text_and_no_pair_in_common_with_what_was_trained_on(trained_on: Path) -> None:
    seen = read_seen([str(trained_on)])
    config = SimulatedWorld(per_band=PER_BAND, held_out_from=(str(trained_on),))
    asked, thrown_away = items(config, seen)
    assert thrown_away >= PER_BAND
    texts = [turn.content for record in _records(trained_on) for turn in record.turns if turn.role == "user"]
    tasks = [task for text in texts if (task := world.parse(text))]
    assert len(tasks) == 4 * PER_BAND
    for item in asked:
        mine = world.parse(item.turns[0])
        assert mine is not None
        for text, task in zip(texts, tasks, strict=True):
            assert item.turns[0].lower().split() != text.lower().split()
            assert (mine.steps, mine.items) != (task.steps, task.items)


def test_instructions_that_are_no_tasks_of_the_world_are_counted(tmp_path: Path) -> None:
    asked, _ = items(SimulatedWorld(per_band=1, held_out_from=("x",)), NOTHING)
    texts = ["Write a poem about figs.", asked[0].turns[0], "Name three birds."]
    turns = [turn for text in texts for turn in (Turn("user", text), Turn("assistant", "an answer"))]
    records = [Record(id="0/0", lineage="0", turns=tuple(turns))]
    write_dataset(records, tmp_path / "data", name="mixed", count=1, records_per_shard=1, description="mixed")
    seen = read_seen([str(tmp_path / "data")])
    assert (seen.unparsed, len(seen.pairs), len(seen.texts)) == (2, 1, 3)


def _records(folder: Path) -> list[Record]:
    from data_gen.shards import read_dataset

    return list(read_dataset(folder))


def test_a_text_that_was_seen_is_not_asked_whatever_its_case() -> None:
    first = items(SimulatedWorld(per_band=5, held_out_from=("x",)), NOTHING)[0]
    texts = frozenset(" ".join(item.turns[0].lower().split()) for item in first)
    second, thrown_away = items(SimulatedWorld(per_band=5, held_out_from=("x",)), Seen(texts, frozenset(), ()))
    assert thrown_away >= 5
    assert not {item.turns[0] for item in first} & {item.turns[0] for item in second}


def test_bands_hold_what_they_say_and_targets_are_right() -> None:
    asked, _ = items(SimulatedWorld(per_band=PER_BAND, held_out_from=("x",)), NOTHING)
    assert Counter(item.band for item in asked) == dict.fromkeys(BANDS, PER_BAND)
    assert len({item.id for item in asked}) == 4 * PER_BAND
    steps = {"1 step": {1}, "2 steps": {2}, "3 steps": {3}, "4+ steps": {4, 5}}
    for item in asked:
        task = world.parse(item.turns[0])
        assert task is not None
        assert len(task.steps) in steps[item.band]
        assert (task.form, task.opener in world.PLAIN_OPENERS) == ("plain", True)
        assert item.target == " ".join(world.trace(task)[-1])
    assert len({world.parse(item.turns[0]) for item in asked}) == 4 * PER_BAND


def test_tasks_are_a_function_of_their_seed() -> None:
    configs = [SimulatedWorld(per_band=9, seed=seed, held_out_from=("x",)) for seed in (1, 1, 2)]
    first, again, other = (items(config, NOTHING) for config in configs)
    assert first == again
    assert first != other


class _Everything(frozenset[str]):
    """A model that has seen every text there is."""

    def __contains__(self, _: object) -> bool:
        return True


def test_a_world_that_training_has_seen_all_of_is_refused() -> None:
    seen = Seen(_Everything(), frozenset(), ())
    with pytest.raises(UserError, match=r"only 0 held-out tasks of 1 step .* Ask for fewer"):
        items(SimulatedWorld(per_band=2, held_out_from=("x",)), seen)


@pytest.mark.parametrize("settings", [{"per_band": 0, "held_out_from": ("x",)}, {"held_out_from": ()}])
def test_settings_that_ask_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError):
        SimulatedWorld(**settings)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("jam fig -> fig jam", True),
        (" fig   jam \n", True),
        ("fig jam -> jam fig", False),
        ("Fig jam", False),
        ("fig jam.", False),
        ("", False),
    ],
)
def test_only_the_result_counts_letter_for_letter(completion: str, correct: bool) -> None:
    item = Item(id="1 step/0001", turns=("Take this list: sort it.\njam fig",), band="1 step", target="fig jam")
    answer = Answer(item=item.id, model="m", texts=(completion,), finish_reasons=("stop",))
    assert score(item, answer).values == {"exact match": float(correct)}


def test_what_was_held_out_is_told_with_the_tasks(trained_on: Path) -> None:
    found = read(SimulatedWorld(per_band=2, held_out_from=(str(trained_on),)))
    assert [item.band for item in found.items] == [band for band in BANDS for _ in range(2)]
    assert found.facts["held_out"]["checked_against"][0]["folder"] == str(trained_on)
    assert found.facts["held_out"]["pairs"] == 4 * PER_BAND
    assert found.sha256 != read(SimulatedWorld(per_band=2, seed=2, held_out_from=(str(trained_on),))).sha256

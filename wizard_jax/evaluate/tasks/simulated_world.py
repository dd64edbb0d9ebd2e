"""Held-out tasks of the simulated world: truth is computable, so exact match needs no judge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from data_gen import shards, world
from wizard_jax.evaluate.config import SimulatedWorld
from wizard_jax.evaluate.items import Answer, Item, Items, Score

BANDS = ("1 step", "2 steps", "3 steps", "4+ steps")
STEPS = ((1,), (2,), (3,), (4, 5))  # how many steps the tasks of each band have
_DRAWS_PER_TASK = 1000


@dataclass(frozen=True)
class Seen:
    """What a model may have been trained on."""

    texts: frozenset[str]
    pairs: frozenset[tuple[tuple[str, ...], tuple[str, ...]]]
    datasets: tuple[tuple[str, int, str], ...]
    """Folder, number of records and SHA-256 of each data set that was read."""
    unparsed: int = 0
    """Instructions in them that are no tasks of the world: they have a text, and no pair."""


def read_seen(folders: Iterable[str]) -> Seen:
    """Reads every record of the data sets, whatever a run selected from them."""
    texts: set[str] = set()
    pairs = set()
    datasets = []
    unparsed = 0
    for folder in folders:
        manifest = shards.verify(Path(folder))
        for record in shards.read_dataset(Path(folder)):
            for turn in record.turns:
                if turn.role == "user":
                    texts.add(normalised(turn.content))
                    if task := world.parse(turn.content):
                        pairs.add(task.pair)
                    else:
                        unparsed += 1
        datasets.append((folder, manifest.records, manifest.sha256))
    return Seen(frozenset(texts), frozenset(pairs), tuple(datasets), unparsed)


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def read(config: SimulatedWorld) -> Items:
    """The tasks, held out from the data sets that the config names. Raises UserError as `items` does."""
    seen = read_seen(config.held_out_from)
    drawn, thrown_away = items(config, seen)
    return Items(
        items=tuple(drawn),
        source=f"simulated world, seed {config.seed}",
        sha256=hashlib.sha256("\n".join(item.turns[0] for item in drawn).encode()).hexdigest(),
        facts={
            "held_out": {
                "checked_against": [dict(zip(("folder", "records", "sha256"), d, strict=True)) for d in seen.datasets],
                "texts": len(seen.texts),
                "pairs": len(seen.pairs),
                "unparsed": seen.unparsed,
                "drawn_and_thrown_away": thrown_away,
            }
        },
    )


def items(config: SimulatedWorld, seen: Seen) -> tuple[list[Item], int]:
    """The tasks, and how many drawn ones were thrown away because training may have seen them.

    A task is held out when neither its instruction text nor its pair (chain of steps, input) is in `seen`, and it
    was not drawn before. The input is written plainly, so that only the number of steps differs between bands.

    Raises:
      UserError: the world has too few tasks that were not seen.
    """
    rng = random.Random(f"held-out tasks {config.seed}")
    chosen: list[Item] = []
    taken = set(seen.pairs)
    thrown_away = 0
    for band, choices in zip(BANDS, STEPS, strict=True):
        drawn = found = 0
        while found < config.per_band:
            task = world.sample_task(rng, steps=rng.choice(choices))
            text = world.render(task)
            drawn += 1
            if task.pair in taken or normalised(text) in seen.texts:
                thrown_away += 1
                if drawn > _DRAWS_PER_TASK * config.per_band:
                    raise UserError(
                        f"only {found} held-out tasks of {band} could be found for per_band={config.per_band}: "
                        "training has seen almost all of them. Ask for fewer, or train on fewer seeds."
                    )
                continue
            taken.add(task.pair)
            found += 1
            target = world.result(world.answer(task))
            chosen.append(
                Item(
                    id=f"{band}/{found:04d}",
                    turns=(text,),
                    skill="simulated world",
                    band=band,
                    difficulty=float(len(task.steps)),
                    target=target,
                )
            )
    return chosen, thrown_away


def score(item: Item, answer: Answer) -> Score:
    """Whether what the answer came down to is the target, letter for letter."""
    extracted = world.result(answer.texts[0])
    return Score(values={"exact match": float(extracted == item.target)}, extracted=extracted)

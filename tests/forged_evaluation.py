"""Finished evaluations with answers that a test chooses, made without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.folder import open_stage
from wizard_jax.evaluate.config import EvalConfig, Local, SimulatedWorld
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.results import ANSWERS, answer_rows, model_results
from wizard_jax.evaluate.tasks import simulated_world
from wizard_jax.evaluate.tasks.simulated_world import Seen

NOTHING_SEEN = Seen(frozenset(), frozenset(), (("evolved", 1234, "ab" * 32),))


def forge_evaluation(
    out: Path,
    *,
    answer: Callable[[Item], str] = lambda item: item.target,
    label: str = "",
    model: str = "nowhere/run",
    per_band: int = 3,
    seed: int = 1,
    notes: Sequence[str] = (),
    untraced: str = "",
    unparsed: int = 0,
) -> Path:
    """`answer` says what the model said to each task."""
    task = SimulatedWorld(per_band=per_band, seed=seed, held_out_from=("evolved",))
    config = EvalConfig(models={"one": Local(path=model, label=label)}, task=task)
    items, thrown_away = simulated_world.items(task, NOTHING_SEEN)
    said = {
        item.id: (Answer(item=item.id, model="one", texts=(answer(item),), finish_reasons=("stop",)),) for item in items
    }
    rows = answer_rows(items, {"one": said}, score=simulated_world.score)
    told = {"label": label or Path(model).name, "model": model, "notes": list(notes), "untraced": untraced}
    held_out = {
        "checked_against": [{"folder": "evolved", "records": 1234, "sha256": "ab" * 32}],
        "texts": 5678,
        "pairs": 4321,
        "unparsed": unparsed,
        "drawn_and_thrown_away": thrown_away,
    }
    with open_stage(out, config, stage="eval") as folder:
        (out / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        asked = {
            "name": "SimulatedWorld",
            "source": "simulated world, seed 1",
            "sha256": "cd" * 32,
            "items": len(items),
        }
        spent = {"calls": len(items), "input_tokens": 1, "output_tokens": 1, "usd": 0.0}
        models = {"one": {**told, **model_results(rows)}}
        folder.complete({"task": {**asked, "notes": [], "held_out": held_out}, "models": models, "spent": spent})
    return out

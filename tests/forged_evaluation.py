"""Finished evaluations with answers that a test chooses, made without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from configs.folder import open_stage
from wizard_jax.evaluate.config import EvalConfig, SimulatedWorld
from wizard_jax.evaluate.statistics import wilson
from wizard_jax.evaluate.tasks import simulated_world
from wizard_jax.evaluate.tasks.simulated_world import BANDS, Sample, Seen

NOTHING_SEEN = Seen(frozenset(), frozenset(), (("evolved", 1234, "ab" * 32),))


def forge_evaluation(
    out: Path,
    *,
    answer: Callable[[Sample], str] = lambda sample: sample.target,
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
    config = EvalConfig(model=model, task=task, label=label)
    samples, thrown_away = simulated_world.samples(task, NOTHING_SEEN)
    scored = [(sample, answer(sample)) for sample in samples]
    rows = [
        {**asdict(sample), "completion": said, **asdict(simulated_world.score(sample, said))} for sample, said in scored
    ]
    counts = {band: sum(row["correct"] for row in rows if row["band"] == band) for band in BANDS}
    with open_stage(out, config, stage="eval") as folder:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / "simulated_world.jsonl").write_text(text, encoding="utf-8")
        folder.complete(
            {
                "label": label or Path(model).name,
                "model": model,
                "notes": list(notes),
                "untraced": untraced,
                "bands": {band: wilson(counts[band], per_band)._asdict() for band in BANDS},
                "held_out": {
                    "checked_against": [{"folder": "evolved", "records": 1234, "sha256": "ab" * 32}],
                    "texts": 5678,
                    "pairs": 4321,
                    "unparsed": unparsed,
                    "drawn_and_thrown_away": thrown_away,
                },
            }
        )
    return out

"""A training run of seconds, on conversations of two sources and three rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_gen.records import Record, Turn
from data_gen.shards import write_dataset
from wizard_jax.data.config import DataConfig, RowsPerStep
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import train_tokenizer
from wizard_jax.train.config import RandomInit, TrainConfig
from wizard_jax.train.optimizer import AdamW

STEPS = 6


def write_material(folder: Path) -> None:
    """A data set of 60 lineages, and a tokenizer trained on it."""
    animals = ["owl", "fox", "hen", "cat", "dog", "ant"]
    records = []
    for lineage in range(60):
        source = "farm" if lineage % 3 else "zoo"
        for round_ in range(3):
            text = " and ".join(animals[: 1 + (lineage + round_) % 6]) + f" number {lineage}"
            turns = (Turn("user", f"Say {text}."), Turn("assistant", f"{text}, as you say."))
            record = Record(id=f"s{lineage}/{round_}", lineage=f"s{lineage}", turns=turns, round=round_, source=source)
            records.append(record)
    write_dataset(records, folder / "data", name="said", count=180, records_per_shard=60, description="echoes")
    train_tokenizer([turn.content for r in records for turn in r.turns], folder / "tokenizer.model", vocab_size=320)


def tiny_config(material: Path, **changes: Any) -> TrainConfig:
    data = DataConfig(dataset=str(material / "data"), chat_format="wizardlm_7b", seq_len=128, held_out_share=0.2)
    settings: dict[str, Any] = {
        "model": ModelConfig(vocab_size=320, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        "init": RandomInit(),
        "tokenizer": str(material / "tokenizer.model"),
        "data": data,
        "batch": RowsPerStep(rows=8),
        "optimizer": AdamW(peak_lr=0.01),
        "steps": STEPS,
        "checkpoint_every": 2,
        "log_every": 2,
        "pack_cache": str(material / "packed"),
    }
    return TrainConfig(**settings | changes)


def quiet(done: int, total: int, facts: Any) -> None:
    del done, total, facts

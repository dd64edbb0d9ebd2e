"""A config tree with every kind of field, for the tests of the loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.loader import setting
from wizard_jax.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Warmup:
    steps: int = setting(100)
    shape: Literal["linear", "cosine"] = setting("linear")


@dataclass(frozen=True, kw_only=True)
class AdamW:
    peak_lr: float = setting(1e-3, doc="at the end of the warm-up")
    b2: float = setting(0.95)
    warmup: Warmup = setting(Warmup())


@dataclass(frozen=True, kw_only=True)
class Lion:
    peak_lr: float = setting(1e-4)
    weight_decay: float = setting(0.1)


@dataclass(frozen=True, kw_only=True)
class Probe:
    every: int = setting()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every = {self.every}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class Data:
    path: str = setting(doc="the packed folder")
    seq_len: int = setting(512)
    columns: tuple[str, ...] = setting(("tokens",))
    blocks: tuple[tuple[int, str], ...] = setting(())
    limit: int | None = setting(None)
    label: str | None = setting(None)
    size: int | Literal["auto"] = setting("auto")
    tag: int | str = setting(0)
    workers: int = setting(2, operational=True)


@dataclass(frozen=True, kw_only=True)
class Train:
    data: Data
    optimizer: AdamW | Lion = setting(AdamW())
    judge: AdamW | Lion = setting(Lion(weight_decay=0.5))
    probe: Probe | None = setting(None)
    watch: Warmup = setting(Warmup(steps=7), operational=True)
    arms: Mapping[str, AdamW | Lion] = setting(default_factory=dict, doc="by name")
    probes: Mapping[str, Probe] = setting(default_factory=dict, operational=True)
    steps: int = setting(10)
    scale: float = setting(1.0)
    strict: bool = setting(False)
    note: str = setting("")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    model: ModelConfig

"""What `wizard eval` is told."""

from __future__ import annotations

from dataclasses import dataclass

from configs.errors import UserError
from configs.loader import setting


@dataclass(frozen=True, kw_only=True)
class SimulatedWorld:
    """Held-out tasks of the simulated world, scored by exact match of the result."""

    per_band: int = setting(200, doc="tasks of each number of steps: 1, 2, 3, and 4 or 5")
    seed: int = setting(1, doc="of the tasks")
    held_out_from: tuple[str, ...] = setting(
        doc="data sets that no task may share an instruction, or a chain of steps with its input, with"
    )

    def __post_init__(self) -> None:
        if self.per_band < 1:
            raise UserError(f"per_band is {self.per_band}: ask for at least 1 task of each number of steps")
        if not self.held_out_from:
            raise UserError("held_out_from is empty: name the data sets that were trained on, as in ('evolved',)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One model on one task."""

    model: str = setting(doc="a run, an imported model, or an exported Hugging Face folder")
    step: int | None = setting(None, doc="which checkpoint of a run; None: the newest")
    task: SimulatedWorld = setting(doc="what is asked and how it is scored")
    max_new_tokens: int = setting(64, doc="longest answer")
    batch_size: int = setting(200, operational=True, doc="prompts answered at once")
    label: str = setting("", operational=True, doc="the model's name in reports; '': its folder's name")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")

"""What a training run is told."""

from __future__ import annotations

import dataclasses
import math

from configs.errors import UserError
from configs.loader import setting
from launch.slices import find_slice
from wizard_jax.data.config import ConversationsPerStep, DataConfig, RowsPerStep, TrainedTokensPerStep
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.lora import LoRA
from wizard_jax.model.sharding import MeshConfig
from wizard_jax.train.guard import Skip, Stop
from wizard_jax.train.optimizer import Adafactor, AdamW, Lion
from wizard_jax.train.watching.trackers import Trackers


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomInit:
    """Start from random weights; the same seed gives the same ones on any mesh."""

    seed: int = setting(0, doc="of the initial weights")

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}: it must fit into 64 bits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromCheckpoint:
    """Start from weights that `wizard train` or `wizard import` has saved."""

    path: str = setting(doc="folder of a run or of an imported model; its newest complete checkpoint is taken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measure the loss on what `data.held_out_share` holds out: before the first step, at times, and at the end."""

    every: int = setting(500, doc="steps between measurements")

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"held_out.every is {self.every}: it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A fine-tuning run: what is trained, on what, and how."""

    model: ModelConfig = setting(doc="the network")
    init: RandomInit | FromCheckpoint = setting(doc="where the weights come from")
    adapter: LoRA | None = setting(None, doc="train a low-rank update of these weights, and not the weights")
    tokenizer: str = setting(doc="path of a tokenizer.model (SentencePiece) or a tokenizer.json")
    data: DataConfig = setting(doc="what is trained on")
    batch: RowsPerStep | ConversationsPerStep | TrainedTokensPerStep = setting(doc="how much of it a step sees")
    gradient_accumulation: int = setting(
        1, operational=True, doc="microbatches a step is split into, to save memory; the step is the same"
    )
    optimizer: AdamW | Adafactor | Lion = setting(doc="how gradients change weights")
    z_loss: float = setting(
        0.0, doc="times the squared log-normaliser of each prediction, added to its loss; PaLM: 1e-4"
    )
    steps: int | None = setting(None, doc="updates in the whole run; 0 saves the initial weights")
    epochs: float | None = setting(None, doc="instead of steps: how often every packed row is seen")
    seed: int = setting(0, doc="of the order of the data")
    guard: Stop | Skip = setting(
        Stop(), operational=True, doc="what to do about a loss that is no number or leaps; it may change at a restart"
    )
    slice: str | None = setting(
        None,
        operational=True,
        doc="the TPU slice that this is for, as v5e-16 or v5e:4x4; wizard train refuses other devices",
    )
    slices: int = setting(1, operational=True, doc="how many such slices, joined by the data-centre network")
    mesh: MeshConfig = setting(MeshConfig(), operational=True, doc="how devices divide the work")
    checkpoint_every: int = setting(500, operational=True, doc="steps between checkpoints; the last is always saved")
    keep_checkpoints: int = setting(2, operational=True, doc="newest checkpoints to keep")
    keep_every: int | None = setting(None, operational=True, doc="and those at its multiples, for good")
    keep_best: int | None = setting(None, operational=True, doc="and those of the lowest held-out losses, so many")
    stall_minutes: float = setting(
        30.0,
        operational=True,
        doc="without a finished step: all stacks are dumped, and the process ends with 42; four times that for the "
        "first step, which compiles",
    )
    log_every: int = setting(10, operational=True, doc="steps between visits of the device; every step is logged")
    held_out: HeldOut | None = setting(
        None, operational=True, doc="measure the loss on what data.held_out_share holds out"
    )
    trackers: Trackers = setting(Trackers(), operational=True, doc="what gets the figures beside TensorBoard")
    profile_steps: tuple[int, int] | None = setting(
        None, operational=True, doc="(first, how many): write a profiler trace of these steps into the run folder"
    )
    peak_flops: float | None = setting(
        None,
        operational=True,
        doc="FLOP/s that one device can do, for model-FLOPs utilisation; None: as published, which is known for TPUs",
    )
    compilation_cache: str | None = setting(
        None, operational=True, doc="folder of compiled steps, so that a second start need not compile; None keeps none"
    )
    pack_cache: str | None = setting(
        None, operational=True, doc="folder of packed data that runs share; None: `packed` beside the run folder"
    )

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise UserError(f"steps is {self.steps} and epochs {self.epochs}: give one of them, and None for the other")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs is {self.epochs}: it must be above 0, and finite")
        if self.z_loss == math.inf:
            raise UserError("z_loss is infinite: give a number, such as 1e-4")
        if self.adapter is not None and not isinstance(self.init, FromCheckpoint):
            raise UserError("adapter updates given weights, and init is random: set init=@FromCheckpoint and init.path")
        if self.held_out is not None and not self.data.held_out_share:
            raise UserError("held_out measures what data.held_out_share holds out, and that is 0: set it, as to 0.02")
        if self.peak_flops is not None and not 0 < self.peak_flops < math.inf:
            raise UserError(f"peak_flops is {self.peak_flops}: it is a number of operations a second, such as 9.89e14")
        if self.slice is not None:
            find_slice(self.slice)
        elif self.slices > 1:
            raise UserError(f"slices is {self.slices}, and slice says of what: give one, such as slice=v5e-16")
        if self.keep_best is not None and (self.held_out is None or self.checkpoint_every % self.held_out.every):
            raise UserError(
                "keep_best goes by the held-out loss, which every checkpoint must have: set held_out, and "
                "checkpoint_every to a multiple of held_out.every"
            )
        if self.stall_minutes <= 0:
            raise UserError(f"stall_minutes is {self.stall_minutes}: it must be above 0")
        least = {"steps": 0, "z_loss": 0, "slices": 1, "gradient_accumulation": 1, "checkpoint_every": 1}
        least |= {"keep_checkpoints": 1, "keep_every": 1, "keep_best": 1, "log_every": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}: it must be at least {minimum}")

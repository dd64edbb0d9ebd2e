"""Instruction-following difficulty: how much an instruction helps a model to foresee its answer.

    losses = mean_losses(sequences, params=params, config=config, length=2048)
    ifd(Losses(answer=1.2, alone=1.5, instruction=2.0))  ->  ifd_loss 0.8, ifd_ppl 0.74, ic_ifd 0.4

Every loss is the mean of -log p, in nats, over the tokens of the answer (or of the instruction). Two published
measures are both called IFD and are neither the same number nor the same ranking, so each has its own name here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from wizard_jax.evaluate.difficulty.sequences import Packed, Scored, pack
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.train.loss import token_losses

BATCH_TOKENS = {"cpu": 4096}
"""By the platform of the device; more keep no processor busier, and take memory."""
_MOST_BATCH_TOKENS = 32_768
_BLOCK_TOKENS = 1024  # of a batch, whose logits exist at the same time


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats a token."""

    answer: float
    """Of the answer given its instruction, and the turns before it."""
    alone: float
    """Of the same ids without them."""
    instruction: float
    """Of the last user turn by itself."""


@dataclass(frozen=True)
class IFD:
    """The measures of one record. The higher the first three, the less the instruction helps."""

    ifd_loss: float
    """loss(answer | instruction) / loss(answer), of the code of Cherry_LLM (arXiv 2308.12032)."""
    ifd_ppl: float
    """perplexity(answer | instruction) / perplexity(answer), of Superfiltering (arXiv 2402.00530)."""
    ic_ifd: float
    """ifd_loss / loss(instruction), of HypherX (its eval_loss.py): lower where the instruction itself is odd."""

    @property
    def is_unhelped(self) -> bool:
        """Whether the answer is no easier to foresee with its instruction: both forms are then at least 1."""
        return self.ifd_loss >= 1


def ifd(losses: Losses) -> IFD | None:
    """None where a ratio has no meaning: the model foresees the answer, or the instruction, without any doubt."""
    if losses.alone <= 0 or losses.instruction <= 0:
        return None
    ratio = losses.answer / losses.alone
    return IFD(
        ifd_loss=ratio,
        ifd_ppl=math.exp(min(losses.answer - losses.alone, 700.0)),  # a float ends at exp(709)
        ic_ifd=ratio / losses.instruction,
    )


def mean_losses(
    sequences: Sequence[Scored],
    *,
    params: decoder.Params,
    config: ModelConfig,
    length: int,
    told: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The mean loss of the scored tokens of each sequence, in nats: float64 [N].

    Sequences share rows, and see nothing of each other; which ones share them has no influence beyond rounding.
    `told` hears how many sequences are done.
    """
    platform = next(iter(jax.tree.leaves(params)[0].devices())).platform
    found = np.full(len(sequences), np.nan)
    done = 0

    def read(packed: Packed, losses: jax.Array) -> None:
        nonlocal done
        # Position i predicts the token after it, and the last of a sequence nothing: its sum is that of its slice.
        upto = np.pad(np.cumsum(np.asarray(losses, np.float64), axis=1), ((0, 0), (1, 0)))
        sums = upto[packed.rows, packed.ends] - upto[packed.rows, packed.starts]
        found[packed.sequences] = sums / [sequences[n].scored for n in packed.sequences]
        done += len(packed.sequences)
        if told is not None:
            told(done)

    under_way: tuple[Packed, jax.Array] | None = None  # the device has its next batch while one is read
    for packed in pack(sequences, length=length, batch_tokens=BATCH_TOKENS.get(platform, _MOST_BATCH_TOKENS)):
        before, under_way = under_way, (packed, _losses(params, packed.batch._asdict(), config=_for_scoring(config)))
        if before is not None:
            read(*before)
    if under_way is not None:
        read(*under_way)
    return found


@functools.cache
def _for_scoring(config: ModelConfig) -> ModelConfig:
    """Nothing is differentiated; and XLA's loops on CPU slow down what is in them."""
    unroll = config.n_layers if config.n_layers <= 8 else config.scan_unroll
    return dataclasses.replace(config, remat="none", scan_unroll=unroll)


@functools.partial(jax.jit, static_argnames="config")
def _losses(params: decoder.Params, columns: dict[str, jax.Array], *, config: ModelConfig) -> jax.Array:
    hidden_BxLxD = decoder.hidden_states(
        params,
        tokens=columns["tokens"],
        positions=columns["positions"],
        segment_ids=columns["segment_ids"],
        config=config,
    )
    return token_losses(
        hidden_BxLxD,
        unembedding_DxV=decoder.unembedding(params, config),
        targets_BxL=columns["targets"],
        weights_BxL=columns["loss_weights"],
        block_positions=max(1, _BLOCK_TOKENS // hidden_BxLxD.shape[0]),
    )

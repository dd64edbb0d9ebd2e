"""How well a model foresees conversations that it was never trained on."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from wizard_jax.data.packing import PackedFolder, pack
from wizard_jax.data.pipeline import held_out_batches
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.loss import token_losses

BATCH_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    value: float
    """exp of the mean loss in nats of a trained token."""
    tokens: int


def held_out_rows(run: Path, config: TrainConfig, tokenizer: Tokenizer) -> PackedFolder | None:
    """What a run holds out of training; None where it holds nothing out. They are packed where they are not yet."""
    if not config.data.held_out_share:
        return None
    cache = Path(config.pack_cache) if config.pack_cache else run.absolute().parent / "packed"
    return pack(config.data, tokenizer, cache_dir=cache, part="held_out")


def perplexity(params: decoder.Params, model: ModelConfig, packed: PackedFolder) -> Perplexity:
    """Of the answers in packed rows, each conversation by itself."""
    loss, tokens = 0.0, 0
    for held_out in held_out_batches(packed, batch_rows=BATCH_ROWS):
        columns = {name: jnp.asarray(column) for name, column in held_out.batch._asdict().items()}
        loss += float(np.asarray(_losses(params, columns, model=model), np.float64).sum())
        tokens += int((held_out.batch.loss_weights > 0).sum())
    return Perplexity(value=math.exp(loss / tokens), tokens=tokens)


@functools.partial(jax.jit, static_argnames="model")
def _losses(params: decoder.Params, columns: dict[str, jax.Array], *, model: ModelConfig) -> jax.Array:
    hidden = decoder.hidden_states(
        params,
        tokens=columns["tokens"],
        positions=columns["positions"],
        segment_ids=columns["segment_ids"],
        config=model,
    )
    return token_losses(
        hidden,
        unembedding_DxV=decoder.unembedding(params, model),
        targets_BxL=columns["targets"],
        weights_BxL=columns["loss_weights"],
    )
